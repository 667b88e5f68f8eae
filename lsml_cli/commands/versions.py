"""`lsml versions`: list, promote and prune the trained versions of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lsml_cli.commands import options
from lsml_cli.commands.console.stdout import print_json
from lsml_cli.commands.console.tables import Column, print_table

if TYPE_CHECKING:
    from lsml_cli.registry.versions import Version, VersionEntry

# The headline metrics of choices, regions and texts, by their names in `Version.metrics`, with their headings.
HEADLINE_METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "map": "mAP",
    "map50": "mAP50",
    "cer": "CER",
    "exact": "exact",
}


def versions(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of the versions, --output of lsml fit; or a project.")
    ],
    promote: Annotated[
        str | None,
        typer.Option("--promote", metavar="VERSION", help="Put this version into use, older or newer."),
    ] = None,
    prune: Annotated[
        int | None,
        typer.Option("--prune", metavar="KEEP", min=1, help="Delete all but the newest KEEP; never the promoted one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array, for programs.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """List the versions of a model, oldest first, with what they were trained on and their metrics.

    With --promote or --prune the list shows the state afterwards. Promotion is atomic: a process that opens the model
    gets either the version promoted before or the one promoted now.

    Examples:

        lsml versions models/news

        lsml versions models/news --promote 20261120T213015
    """
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.registry import promotion
    from lsml_cli.registry import versions as store

    with Console(quiet) as console:
        folder = _find_versions(folder)
        _require_model(folder)
        if promote is not None:
            previous = store.current_version(folder)
            promotion.promote(folder, promote)
            instead = f", instead of {previous}" if previous and previous != promote else ""
            console.note(f"{folder} now means {promote}{instead}.")
        if prune is not None:
            removed = promotion.prune(folder, prune)
            console.note(
                f"Removed {len(removed)} versions: {', '.join(removed)}." if removed else "No version was removed."
            )
        entries = store.scan_versions(folder)
        if as_json:
            print_json([_to_json(entry) for entry in entries])
        else:
            _print_versions(entries)
        promoted = next((entry for entry in entries if entry.is_promoted), None)
        if promoted is None:
            console.note(f"None of them is promoted: lsml versions {folder} --promote {entries[-1].name}")
        elif promoted.damage:
            console.note(f"The promoted version {promoted.name} is damaged: {promoted.damage}")


def _find_versions(folder: Path) -> Path:
    """Return the folder of the versions of a project that `lsml init` wrote, or the folder itself.

    Raises:
        ModelError: The project has no version yet.
    """
    from lsml_cli.errors import ModelError
    from lsml_cli.registry.project_file import read_project_file
    from lsml_cli.registry.versions import is_data_folder

    project = None if is_data_folder(folder) else read_project_file(folder)
    if project is None:
        return folder
    if not project.versions_root.is_dir():
        raise ModelError(
            f"The project {folder} has no trained version yet.",
            f"Train one: lsml fit EXPORT --model {folder} --output {project.versions_root}",
        )
    return project.versions_root


def _require_model(folder: Path) -> None:
    """Raise UsageError or ModelError if the folder holds no versions."""
    from lsml_cli.errors import ModelError, UsageError, sort_by_similarity
    from lsml_cli.registry import versions as store

    if not folder.is_dir():
        siblings = [path.name for path in folder.parent.glob("*") if (path / store.CURRENT_FILE).is_file()]
        nearby = ", ".join(str(folder.parent / name) for name in sort_by_similarity(folder.name, siblings)[:5])
        raise UsageError(
            f"There is no folder {folder}.",
            f"Models nearby: {nearby}." if nearby else "Name a folder `lsml fit` wrote.",
        )
    if (folder / store.METADATA_FILE).is_file():
        raise UsageError(f"{folder} is one version of a model.", f"Name the folder above: {folder.resolve().parent}")
    if not store.scan_versions(folder):
        raise ModelError(f"{folder} holds no trained model.", store.training_hint(folder))


def _print_versions(entries: Sequence[VersionEntry]) -> None:
    metrics = list(_headline_metrics([entry.version for entry in entries if entry.version is not None]))
    columns = (
        Column("version"),
        Column("promoted"),
        Column("created", drop=1),  # the version's name begins with it
        Column("tasks", "number", drop=2),
        *_metric_columns(metrics),
        Column("remarks", "text"),
    )
    rows = []
    for entry in entries:
        version = entry.version
        created = version.created if version else "-"
        tasks = f"{version.trained_on:,}" if version and version.trained_on is not None else "-"
        numbers = [_format_number(_metrics_of(version, control).get(name)) for control, name in metrics]
        remarks = "; ".join(_remark_lines(entry)) or "-"
        rows.append([entry.name, "yes" if entry.is_promoted else "-", created, tasks, *numbers, remarks])
    print_table(columns, rows)


def _headline_metrics(versions: Sequence[Version]) -> Iterator[tuple[str, str]]:
    """Yield the headline metrics that any version has, as pairs of control and metric."""
    for control in dict.fromkeys(name for version in versions for name in version.metrics):
        stored = {name for version in versions for name in _metrics_of(version, control)}
        yield from ((control, name) for name in HEADLINE_METRICS if name in stored)


def _metrics_of(version: Version | None, control: str) -> dict[str, Any]:
    stored = version.metrics.get(control) if version else None
    return stored if isinstance(stored, dict) else {}


def _metric_columns(metrics: Sequence[tuple[str, str]]) -> Iterator[Column]:
    """Yield a column for each metric; where there is no room, the last goes first."""
    has_one_control = len({control for control, _ in metrics}) == 1
    for i, (control, name) in enumerate(metrics):
        heading = HEADLINE_METRICS[name] if has_one_control else f"{control} {HEADLINE_METRICS[name]}"
        yield Column(heading, "number", drop=2 + len(metrics) - i)


def _format_number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "-"


def _remark_lines(entry: VersionEntry) -> Iterator[str]:
    version = entry.version
    if version is None:
        yield f"damaged: {entry.damage}"
        return
    if version.parent:
        yield f"continues from {version.parent}"
    if version.refit:
        yield "refit on all tasks after the measurement"
    if version.counts.get("torn") is True:
        yield "trained on a file that ends too early"
    if version.failed_gates:
        yield f"gate missed: {', '.join(version.failed_gates)}"


def _to_json(entry: VersionEntry) -> dict[str, Any]:
    version = entry.version
    if version is None:
        return {"version": entry.name, "promoted": entry.is_promoted, "damage": entry.damage}
    return {
        "version": entry.name,
        "promoted": entry.is_promoted,
        "damage": None,
        "model": version.name,
        "folder": str(version.folder),
        "created": version.created,
        "trained_on": version.trained_on,
        "parent": version.parent,
        "refit": version.refit,
        "torn": version.counts.get("torn") is True,
        "missed": version.failed_gates,
        "gates": list(version.gates),
        "counts": version.counts,
        "metrics": version.metrics,
        "params": version.params,
        "family": version.family,
        "digest": version.digest,
        "data_digest": version.data_digest,
        "code_digest": version.code_digest,
        "libraries": version.libraries,
    }
