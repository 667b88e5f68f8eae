"""Check that a model keeps the contract that lsml relies on.

    from lsml_cli import check_model

    def test_model_keeps_the_contract():
        check_model("shouting.py:Shouting", label_config="config.xml", tasks=[{"text": "HELLO"}, {"text": "hello"}])

`lsml check` does the same in two steps, `prepare_check` and `run_check`, and shows every clause.

model_under_test.py   the model under test, and the description of violations
clauses.py            the clauses for every model
training.py           the clauses for a model that overrides `fit`
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lsml_cli.errors import ModelError, UsageError
from lsml_cli.inference.loaded_model import to_config, to_spec, to_task
from lsml_cli.models.base import Model
from lsml_cli.models.loading import end_import_of_caller
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.schema.annotations import select_annotated_tasks
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import AnnotatedTask, Task, UnreadableRecord
from lsml_cli.testing.clauses import CLAUSES
from lsml_cli.testing.model_under_test import (
    ClauseResult,
    ModelUnderTest,
    Violation,
    needs_clause,
    run_clauses,
)
from lsml_cli.testing.training import TRAINING_CLAUSES, trained_spec

__all__ = ["ContractBroken", "check_model"]

_UNREADABLE_HINT = "Leave it out, or correct it: a check needs tasks that the model can predict."

Tasks = Iterable[Task | UnreadableRecord | Mapping[str, Any]]


class ContractBroken(ModelError, AssertionError):
    """A model breaks the contract; the first error that the model raised is the `__cause__`.

    Attributes:
        name: Name of the model.
        violations: What was found, each with its clause.

    Example:
        try:
            check_model("shouting.py:Shouting", label_config="config.xml", tasks=tasks)
        except ContractBroken as error:
            print({violation.clause.name for violation in error.violations})
    """

    def __init__(self, name: str, violations: Sequence[Violation]) -> None:
        self.name = name
        self.violations = tuple(violations)
        super().__init__(_report(name, violations))

    def __reduce__(self) -> tuple[type[ModelError], tuple[str]]:
        return ModelError, (self.message,)  # without the model's own errors, which may not be picklable


def check_model(
    model: str | type[Model] | ModelSpec,
    *,
    label_config: LabelConfig | str | Path,
    tasks: Tasks,
    annotated: Iterable[AnnotatedTask] | Tasks | None = None,
    params: Mapping[str, Json] | None = None,
    media_root: str | Path | None = None,
    device: str | None = None,
    tolerance: float = 1e-4,
    timeout: float = 60.0,
) -> None:
    """Check that a model keeps every clause of the contract, untrained and, if it can be trained, trained.

    Args:
        model: A name as on the command line, a class, or a spec; a trained version as well as an untrained model.
        label_config: Labelling XML that the model can fill, or the path of a file with it.
        tasks: At least two tasks that the model can predict, from `read_tasks` or as dicts. Choose some that get
            different predictions, because a wrong order cannot be seen otherwise.
        annotated: What a model that overrides `fit` is trained on: exported tasks with annotations. The annotated ones
            of `tasks` if not given; () leaves training out.
        params: The model's own parameters.
        media_root: Folder of the tasks' media.
        device: Where to run; "cpu" if the model can use it, else its first device.
        tolerance: Difference up to which numbers in predictions are equal.
        timeout: Seconds for all predictions in a process of the model's own.

    Raises:
        ContractBroken: The model breaks the contract; an AssertionError that lists every violation.
        UsageError: The model cannot be checked with these tasks.

    Example:
        def test_model_keeps_the_contract():
            check_model("shouting.py:Shouting", label_config="config.xml", tasks=[{"text": "HEY"}, {"text": "hey"}])
    """
    __tracebackhide__ = True  # pytest shows the line of the test instead
    end_import_of_caller()
    with tempfile.TemporaryDirectory() as folder:
        subject = prepare_check(
            model,
            label_config=label_config,
            tasks=tasks,
            folder=Path(folder),
            annotated=annotated,
            params=params,
            media_root=media_root,
            device=device,
            tolerance=tolerance,
            timeout=timeout,
        )
        violations = [violation for result in run_check(subject) for violation in result.violations]
    if violations:
        cause = next((violation.error for violation in violations if violation.error), None)
        raise ContractBroken(subject.spec.name, violations) from cause
    if subject.needs_training and not subject.examples:
        raise UsageError(
            f"{subject.spec.name} has to be trained before it can predict.",
            "Give check_model tasks to train it on: annotated=[...].",
        )


def prepare_check(
    model: str | type[Model] | ModelSpec,
    *,
    label_config: LabelConfig | str | Path,
    tasks: Tasks,
    folder: Path,
    annotated: Iterable[AnnotatedTask] | Tasks | None = None,
    params: Mapping[str, Json] | None = None,
    media_root: str | Path | None = None,
    device: str | None = None,
    tolerance: float = 1e-4,
    timeout: float = 60.0,
) -> ModelUnderTest:
    """Find the model and the tasks of a check, and return both for `run_check`.

    Args are those of `check_model`, and:
        folder: Folder for what `fit` writes.

    Raises:
        UsageError: The model cannot be checked with these tasks.
    """
    spec, config = to_spec(model, params), to_config(label_config)
    assert config is not None
    task_list = _to_tasks(tasks)
    if len(task_list) < 2:
        raise UsageError(
            f"A check needs at least two tasks, not {len(task_list)}.",
            "Add some that get different predictions: of one task neither order nor batches can be seen.",
        )
    examples = _training_examples(spec, config, task_list, annotated)
    device = device or _choose_device(spec.model_class().devices)
    root = Path(media_root) if media_root is not None else None
    return ModelUnderTest(spec, config, task_list, device, root, tolerance, timeout, examples, folder)


def run_check(subject: ModelUnderTest, why_untrained: str | None = None) -> Iterator[ClauseResult]:
    """Check all clauses, and those for every model a second time on what was trained; yield each result.

    Those of the trained model have the same clauses as those before. A clause that is violated untrained is not
    reported twice.

    Args:
        subject: From `prepare_check`.
        why_untrained: Why the clauses about training are skipped, if that was the caller's decision.
    """
    results = []
    for result in run_clauses(CLAUSES, subject):
        results.append(result)
        yield result
    unbound = next((r for r in results if r.clause.name == "bind" and r.state != "passed"), None)
    if unbound is not None or not subject.examples:
        reason = why_untrained or (needs_clause("bind") if unbound else _no_training_reason(subject.spec))
        yield from (ClauseResult(clause, skipped=reason) for clause in TRAINING_CLAUSES)
        return
    training = replace(subject)
    for result in run_clauses(TRAINING_CLAUSES, training):
        results.append(result)
        yield result
    violated = {result.clause.name for result in results if result.violations}
    if any(result.violations and result.clause.is_prerequisite for result in results):
        return
    for result in run_clauses(CLAUSES, replace(subject, spec=trained_spec(training))):
        if result.clause.name not in violated:
            violations = [replace(item, sentence=f"once trained, {item.sentence}") for item in result.violations]
            yield replace(result, violations=tuple(violations))


def _no_training_reason(spec: ModelSpec) -> str:
    if spec.model_class().fit is Model.fit:
        return "the model does not override fit"
    return "the model is a trained version" if spec.path else "there are no annotated tasks to train it on"


def _report(name: str, violations: Sequence[Violation]) -> str:
    """Format the violations for the output of pytest: what was found, and what the contract requires."""
    clauses = list(dict.fromkeys(violation.clause.name for violation in violations))
    lines = [f"{name} breaks {len(clauses)} clause{'s' * (len(clauses) > 1)} of the contract: {', '.join(clauses)}."]
    for violation in violations:
        clause = violation.clause
        lines += ["", f"  {clause.name}: {violation.sentence}.", f"      The contract: {clause.requirement}"]
    if any(violation.clause.is_prerequisite for violation in violations):
        lines += ["", "  There may be more: some clauses can only be checked once this is fixed."]
    return "\n".join(lines)


def _training_examples(
    spec: ModelSpec, config: LabelConfig, tasks: Sequence[Task], annotated: Iterable[AnnotatedTask] | Tasks | None
) -> list[AnnotatedTask]:
    """Choose the tasks to train on; none for a model that cannot be trained, or is trained already."""
    if spec.model_class().fit is Model.fit:
        if annotated:
            raise UsageError(f"{spec.name} does not override fit, so it learns nothing.", "Leave annotated out.")
        return []
    if annotated is None:
        examples = _annotated_tasks(tasks, config)
        if not examples and spec.path is None:
            raise UsageError(
                f"{spec.name} overrides fit, so check_model needs annotated tasks to train it on.",
                "Give them with annotated=[...], or annotated=() to leave training out.",
            )
        return examples if spec.path is None else []
    items = list(annotated)
    exported = _to_tasks(item for item in items if not isinstance(item, AnnotatedTask))
    examples = [item for item in items if isinstance(item, AnnotatedTask)] + _annotated_tasks(exported, config)
    if items and not examples:
        raise UsageError("None of the tasks in annotated has an annotation.", "Export tasks that have been annotated.")
    return examples


def _annotated_tasks(tasks: Sequence[Task], config: LabelConfig) -> list[AnnotatedTask]:
    may_be_empty = not all(control.is_single_choice for control in config.controls.values())
    return select_annotated_tasks(tasks, config, allow_empty=may_be_empty)[0]


def _choose_device(devices: Any) -> str:
    """Choose where to run. `devices` may be anything, because a clause checks it later."""
    needs_other = isinstance(devices, tuple | list) and devices and "cpu" not in devices
    return str(devices[0]) if needs_other else "cpu"


def _to_tasks(items: Iterable[Any]) -> list[Task]:
    tasks = []
    for index, item in enumerate(items):
        if isinstance(item, UnreadableRecord):
            raise UsageError(f"Task {index} ({item.location}) cannot be read: {item.reason}.", _UNREADABLE_HINT)
        try:
            tasks.append(item if isinstance(item, Task) else to_task(index, item))
        except ValueError as error:
            raise UsageError(f"Task {index} cannot be read: {error}.", _UNREADABLE_HINT) from error
    return tasks
