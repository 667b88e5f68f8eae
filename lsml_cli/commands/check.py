"""`lsml check`: check a model of one's own against the contract."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lsml_cli.commands import completion, options

if TYPE_CHECKING:
    from lsml_cli.models.spec import ModelSpec
    from lsml_cli.schema.label_config import LabelConfig
    from lsml_cli.testing.model_under_test import ClauseResult

CONFIG_NAMES = ("label_config.xml", "config.xml")  # of a label config beside a model
TASKS_NAME = "tasks.json"  # this and the next: as `lsml init` calls them
ANNOTATED_NAME = "annotated.json"
MAX_ANNOTATED = 200  # tasks that a model is trained on, three times


def check(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            autocompletion=completion.complete_models,
            help="A project of lsml init, model.py:Class, package.mod:Class, or any other name that --model takes.",
        ),
    ],
    label_config: Annotated[
        Path | None,
        typer.Option(
            "--label-config", "-c", metavar="FILE", help="Labelling XML; default: label_config.xml beside the model."
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks", metavar="FILE", help="Tasks to predict; default: tasks.json beside the model, else samples."
        ),
    ] = None,
    annotated: Annotated[
        str | None,
        typer.Option(
            "--annotated",
            metavar="FILE",
            help="Annotated tasks, to check how it is trained; default: annotated.json beside the model.",
        ),
    ] = None,
    no_training: Annotated[bool, typer.Option("--no-training", help="Leave training out.")] = False,
    params: options.ModelParams = None,
    media_root: Annotated[
        Path | None,
        typer.Option("--media-root", metavar="DIR", help="Folder of the tasks' media; default: that of the tasks."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=2, metavar="N", help="Use only the first N tasks.")] = 16,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", min=1, metavar="SECONDS", help="For all predictions in a process of the model's own."
        ),
    ] = 60.0,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:N, mps; default: cpu.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array, for programs.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Check that a model keeps the contract that every command relies on; list each clause and what became of it.

    It checks batches and order, threads, another process, valid predictions, training, saving and loading.
    It runs the code of the model, and writes nothing. The same in tests: check_model.
    Exit code 0: every clause that could be checked holds; 1: one is broken; 2: wrong usage.

    Examples:

        lsml init moods && lsml check moods

        lsml check shouting.py:Shouting --label-config config.xml --tasks tasks.json
    """
    _check(
        CheckArguments(
            model=model,
            label_config=label_config,
            tasks=tasks,
            annotated=annotated,
            no_training=no_training,
            params=tuple(params or ()),
            media_root=media_root,
            limit=limit,
            timeout=timeout,
            device=device,
            as_json=as_json,
            quiet=quiet,
        )
    )


@dataclass(frozen=True)
class CheckArguments:
    """What `lsml check` was called with; each field is the option of that name."""

    model: str
    label_config: Path | None
    tasks: str | None
    annotated: str | None
    no_training: bool
    params: tuple[str, ...]
    media_root: Path | None
    limit: int
    timeout: float
    device: str | None
    as_json: bool
    quiet: bool


@dataclass(frozen=True)
class CheckInput:
    """What a model is checked with.

    Attributes:
        spec: The model.
        config: The label config.
        tasks: Tasks to predict.
        annotated: Annotated tasks to train on; empty: training is left out.
        media_root: Folder of the tasks' media.
        sources: Where all that comes from, in a few words each.
    """

    spec: ModelSpec
    config: LabelConfig
    tasks: Sequence[Any]
    annotated: Sequence[Any]
    media_root: Path
    sources: tuple[str, ...]


def _check(arguments: CheckArguments) -> None:
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.errors import UsageError
    from lsml_cli.io.reserved_stdout import reserve_stdout
    from lsml_cli.testing.check_model import prepare_check, run_check

    if arguments.no_training and arguments.annotated is not None:
        raise UsageError("--annotated is for training, which --no-training leaves out.", "Give only one of them.")
    with tempfile.TemporaryDirectory() as scratch, Console(arguments.quiet) as console:
        with reserve_stdout():  # what the model prints is not part of the report
            given = _gather_input(arguments, Path(scratch))
            console.note(f"Checking {given.spec.name} with {', '.join(given.sources)}.")
            subject = prepare_check(
                given.spec,
                label_config=given.config,
                tasks=given.tasks,
                folder=Path(scratch),
                annotated=given.annotated,
                media_root=given.media_root,
                device=arguments.device,
                timeout=arguments.timeout,
            )
            why_untrained = "--no-training leaves it out" if arguments.no_training else None
            results = merge_results(run_check(subject, why_untrained))
        print_results(results, arguments.as_json)
        for line in _summary_lines(given.spec.name, results):
            console.note(line)
    if any(result.violations for result in results):
        raise typer.Exit(1)
    if subject.needs_training and not given.annotated:
        raise UsageError(
            f"{given.spec.name} has to be trained before it can predict, so most could not be checked.",
            "Give annotated tasks to train it on: --annotated FILE",
        )


def _gather_input(arguments: CheckArguments, scratch: Path) -> CheckInput:
    """Find what was not given: beside the model, in a trained version, or among the samples of `lsml init`."""
    from lsml_cli.errors import UsageError
    from lsml_cli.models.base import Model
    from lsml_cli.registry import resolve
    from lsml_cli.scaffold import PROJECT_KINDS
    from lsml_cli.schema.label_config import LabelConfig

    params = resolve.parse_params(list(arguments.params))
    is_given = any((arguments.label_config, arguments.tasks, arguments.annotated))
    kind = None if is_given else PROJECT_KINDS.get(arguments.model)
    spec = resolve.find_model(arguments.model, (dict(kind.params) if kind else {}) | params)
    _require_modules(spec)
    can_train = spec.model_class().fit is not Model.fit
    if not can_train and arguments.annotated is not None:
        raise UsageError(f"{spec.name} does not override fit, so it learns nothing.", "Leave out --annotated.")
    beside = _folder_of_model(arguments.model)
    config_path = arguments.label_config or _find_file(beside, *CONFIG_NAMES)
    config = LabelConfig.load(config_path) if config_path is not None else resolve.stored_label_config(spec)
    if config is None and kind is not None:
        config = LabelConfig.parse(kind.sample.label_config)
    if config is None:
        raise UsageError(
            f"{arguments.model} needs a label config.",
            "Name the labelling XML with --label-config FILE, or put it beside the model as label_config.xml.",
        )
    annotated_path = arguments.annotated or _find_text(beside, ANNOTATED_NAME)
    tasks_path = arguments.tasks or _find_text(beside, TASKS_NAME) or annotated_path
    annotated: list[Any] = []
    if tasks_path is not None:
        tasks = _read_tasks(tasks_path, config, arguments.limit)
        media_root = arguments.media_root or Path(tasks_path).parent
    else:
        tasks, annotated = _make_samples(config, scratch, kind.sample if kind else None)
        tasks, media_root = tasks[: arguments.limit], scratch
    if arguments.no_training or not can_train or spec.path is not None:
        annotated = []
    elif annotated_path is not None:
        annotated = _read_tasks(annotated_path, config, MAX_ANNOTATED)
    sources = [
        f"the label config {config_path}" if config_path is not None else "its label config",
        _count(tasks, "task" if tasks_path else "sample task", tasks_path),
        *([_count(annotated, "annotated task", annotated_path)] if annotated else []),
    ]
    return CheckInput(spec, config, tasks, annotated, media_root, tuple(sources))


def _require_modules(spec: ModelSpec) -> None:
    """Raise ModelError if a module that the model declares is not installed: no clause could tell more."""
    from importlib.util import find_spec

    from lsml_cli.errors import ModelError, format_list
    from lsml_cli.runtime import install_hint

    model_class: Any = spec.model_class()
    names = model_class.required_modules if isinstance(model_class.required_modules, tuple | list) else ()
    missing = [name for name in names if isinstance(name, str) and name and find_spec(name.partition(".")[0]) is None]
    if missing:
        extra = model_class.install_extra
        hint = f"Run: lsml doctor {extra}" if extra else install_hint(*missing)
        raise ModelError(f"{spec.name} cannot be checked without {format_list(missing)}.", hint)


def _make_samples(config: LabelConfig, folder: Path, sample: Any) -> tuple[list[Any], list[Any]]:
    """Return (tasks, annotated tasks): those of a kind of project, or only tasks for any label config."""
    from lsml_cli.scaffold.config_samples import make_tasks
    from lsml_cli.scaffold.project import PICTURE_FOLDER

    if sample is None:
        return make_tasks(config, folder), []
    annotated, unlabeled = sample.make_tasks(folder / PICTURE_FOLDER)
    return unlabeled, annotated


def _folder_of_model(name: str) -> Path | None:
    """Return the folder of a project or of a file that a name spells; a folder of versions has no files of ours."""
    from lsml_cli.registry.model_location import is_registered_name, split_class
    from lsml_cli.registry.versions import is_data_folder

    if is_registered_name(name):
        return None
    class_name, _ = split_class(name) or (name, "")
    file = class_name.rpartition(":")[0] if ":" in class_name else class_name
    if file.endswith(".py"):
        return Path(file).parent
    return Path(name) if Path(name).is_dir() and not is_data_folder(Path(name)) else None


def _find_file(folder: Path | None, *names: str) -> Path | None:
    """Return the first of these files that the folder has."""
    return next((folder / name for name in names if (folder / name).is_file()), None) if folder is not None else None


def _find_text(folder: Path | None, name: str) -> str | None:
    path = _find_file(folder, name)
    return str(path) if path is not None else None


def _read_tasks(path: str, config: LabelConfig, limit: int) -> list[Any]:
    from lsml_cli.io.task_reader import read_tasks

    return list(islice(read_tasks(path, controls=frozenset(config.controls)), limit))


def _count(tasks: Sequence[Any], what: str, path: str | None) -> str:
    return f"{len(tasks):,} {what}{'s' * (len(tasks) != 1)}" + (f" of {path}" if path is not None else "")


def merge_results(results: Iterable[ClauseResult]) -> list[ClauseResult]:
    """Merge what became of a clause untrained and once trained; skipped only if it was skipped both times."""
    merged: dict[str, ClauseResult] = {}
    for result in results:
        name = result.clause.name
        if name in merged:
            is_checked = merged[name].skipped is None or result.skipped is None
            result = replace(
                result,
                violations=merged[name].violations + result.violations,
                skipped=None if is_checked else result.skipped,
            )
        merged[name] = result
    return list(merged.values())


def print_results(results: Sequence[ClauseResult], as_json: bool) -> None:
    """Print a row for each clause."""
    from lsml_cli.commands.console.stdout import print_json
    from lsml_cli.commands.console.tables import Column, print_table

    if as_json:
        print_json([_to_json(result) for result in results])
    else:
        rows = [(result.clause.name, result.state, _remarks(result)) for result in results]
        print_table((Column("clause"), Column("result"), Column("remarks", "text")), rows)


def _remarks(result: ClauseResult) -> str:
    """Return what the clause requires where it holds, how it is broken, or why it was not checked."""
    if result.skipped is not None:
        return _sentence(result.skipped)
    if not result.violations:
        return result.clause.requirement
    found = " ".join(_sentence(violation.sentence) for violation in result.violations)
    return f"{found} The contract: {result.clause.requirement}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _to_json(result: ClauseResult) -> Mapping[str, Any]:
    return {
        "clause": result.clause.name,
        "result": result.state,
        "requirement": result.clause.requirement,
        "violations": [violation.sentence for violation in result.violations],
        "skipped": result.skipped,
    }


def _summary_lines(name: str, results: Sequence[ClauseResult]) -> Iterator[str]:
    counts = {state: sum(result.state == state for result in results) for state in ("passed", "failed", "skipped")}
    broken = [result.clause.name for result in results if result.violations]
    skipped = f"; {counts['skipped']} skipped" if counts["skipped"] else ""
    if not broken:
        yield f"{name} keeps the contract: {counts['passed']} clauses passed{skipped}."
        return
    clauses = "1 clause" if len(broken) == 1 else f"{len(broken)} clauses"
    yield f"{name} breaks {clauses} of the contract: {', '.join(broken)}; {counts['passed']} passed{skipped}."
    if any(result.violations and result.clause.is_prerequisite for result in results):
        yield "There may be more: some clauses can only be checked once this is fixed."
