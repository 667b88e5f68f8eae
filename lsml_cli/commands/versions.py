"""`lsml versions`: the trained versions of a model, and which of them the model's name means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lsml_cli.commands import options
from lsml_cli.commands.console.progress import emit
from lsml_cli.commands.console.tables import print_table

if TYPE_CHECKING:
    from lsml_cli.registry.versions import Version, VersionEntry

MAX_CONTROLS = 3  # whose metrics have columns; more would not fit a screen


def versions(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the versions live: --output of lsml fit.")],
    promote: Annotated[
        str | None,
        typer.Option("--promote", metavar="VERSION", help="Make DIR mean this version from now on, older or newer."),
    ] = None,
    prune: Annotated[
        int | None,
        typer.Option("--prune", metavar="KEEP", min=1, help="Remove all but the newest KEEP; never the promoted one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array, for programs.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """List the versions of a model, oldest first, with what they were trained on and their metrics.

    After --promote or --prune the list is what there is then. A reader never sees anything in between: whoever opens
    the model gets the version promoted before, or the one promoted now.

    Examples:

        lsml versions models/news

        lsml versions models/news --promote 20261120T213015
    """
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.registry import promotion
    from lsml_cli.registry import versions as store

    with Console(quiet) as console:
        _require_model(folder)
        if promote is not None:
            before = store.current_version(folder)
            promotion.promote(folder, promote)
            was = f", instead of {before}" if before and before != promote else ""
            console.note(f"{folder} means {promote} now{was}.")
        if prune is not None:
            removed = promotion.prune(folder, prune)
            console.note(f"Removed {len(removed)} versions: {', '.join(removed)}." if removed else "Removed nothing.")
        found = store.scan_versions(folder)
        if as_json:
            _print_json(found)
        else:
            _print_versions(found)
        if (promoted := next((each for each in found if each.is_promoted), None)) is None:
            console.note(f"None of them is promoted: lsml versions {folder} --promote {found[-1].name}")
        elif promoted.damage:
            console.note(f"The promoted version {promoted.name} is damaged: {promoted.damage}")


def _require_model(folder: Path) -> None:
    """Raises UsageError or ModelError with a sentence when the folder holds no versions."""
    from lsml_cli.errors import ModelError, UsageError, sort_by_similarity
    from lsml_cli.registry import versions as store

    if not folder.is_dir():
        siblings = [path.name for path in folder.parent.glob("*") if (path / store.CURRENT_FILE).is_file()]
        near = ", ".join(str(folder.parent / name) for name in sort_by_similarity(folder.name, siblings)[:5])
        raise UsageError(
            f"There is no folder {folder}.", f"Models nearby: {near}." if near else "Name a folder `lsml fit` wrote."
        )
    if (folder / store.METADATA_FILE).is_file():
        raise UsageError(f"{folder} is one version of a model.", f"Name the folder above: {folder.resolve().parent}")
    if not store.scan_versions(folder):
        raise ModelError(f"{folder} holds no trained model.", store.training_hint(folder))


def _print_versions(listed: Sequence[VersionEntry]) -> None:
    named = [each.version for each in listed if each.version is not None]
    controls = list(dict.fromkeys(name for version in named for name in version.metrics))[:MAX_CONTROLS]
    headings = ["version", "promoted", "created", "tasks", *_metric_headings(controls), "remarks"]
    rows = []
    for each in listed:
        version = each.version
        created = version.created if version else "-"
        tasks = f"{version.trained_on:,}" if version and version.trained_on is not None else "-"
        numbers = [number for control in controls for number in _format_metrics(version, control)]
        remarks = "; ".join(_remark_lines(each)) or "-"
        rows.append([each.name, "yes" if each.is_promoted else "-", created, tasks, *numbers, remarks])
    print_table(headings, rows, right_aligned=range(3, len(headings) - 1))


def _metric_headings(controls: Sequence[str]) -> Iterator[str]:
    for control in controls:
        before = f"{control} " if len(controls) > 1 else ""
        yield from (f"{before}accuracy", f"{before}macro F1")


def _format_metrics(version: Version | None, control: str) -> tuple[str, str]:
    metrics = version.metrics.get(control) if version else None
    found: dict[str, Any] = metrics if isinstance(metrics, dict) else {}
    return _format_number(found.get("accuracy")), _format_number(found.get("macro_f1"))


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


def _print_json(listed: Sequence[VersionEntry]) -> None:
    import orjson

    lines = [_to_json(each) for each in listed]
    emit(orjson.dumps(lines, option=orjson.OPT_INDENT_2).decode())


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
