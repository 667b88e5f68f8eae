"""The conformance suite for a model: what lsml relies on, and a test of it for your own.

    from lsml_cli import check_model

    def test_it_keeps_the_contract():
        check_model("shouting.py:Shouting", label_config="config.xml", tasks=[{"text": "HELLO"}, {"text": "hello"}])

subject.py   the model under test, and how a breach is told
clauses.py   what every model keeps
training.py  what a model that overrides `fit` keeps as well
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lsml_cli.errors import ModelError, UsageError
from lsml_cli.inference.loaded_model import to_config, to_spec, to_task
from lsml_cli.models.base import Model
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.schema.annotations import select_annotated_tasks
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import AnnotatedTask, Task, UnreadableRecord
from lsml_cli.testing.clauses import CLAUSES
from lsml_cli.testing.subject import ModelUnderTest, Violation, run_clauses
from lsml_cli.testing.training import TRAINING_CLAUSES, trained_spec

__all__ = ["ContractBroken", "check_model"]

Tasks = Iterable[Task | UnreadableRecord | Mapping[str, Any]]


class ContractBroken(ModelError, AssertionError):
    """A model breaks its contract. `broken` has the clauses; the first error of the model's own is the cause."""

    def __init__(self, name: str, violations: Sequence[Violation]) -> None:
        self.name = name
        self.violations = tuple(violations)
        super().__init__(_report(name, violations))

    def __reduce__(self) -> tuple[type[ModelError], tuple[str]]:
        return ModelError, (self.message,)  # what the model raised need not survive pickling


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
    """Raise ContractBroken, an AssertionError, with every clause of the contract that the model breaks.

    model         as on the command line, a class, or a spec; a trained version as well as an untrained model
    label_config  labelling XML that the model can fill, or the path of a file with it
    tasks         at least two that the model can predict, from `read_tasks` or as dicts. Choose some that get
                  different predictions: what is in the wrong order cannot be seen otherwise
    annotated     what to train a model on that overrides `fit`: tasks as they were exported; those of `tasks` that
                  are annotated if not given; () leaves training out
    params        the model's own parameters
    media_root    folder that the tasks' pictures lie in
    device        "cpu" where the model can use it, else its first one
    tolerance     up to which numbers in predictions count as equal
    patience      seconds that the model in a process of its own has to answer

    Raises UsageError when this is not enough to check the model with.
    """
    __tracebackhide__ = True  # pytest shows the test, not this
    spec, config = to_spec(model, params), to_config(label_config)
    assert config is not None
    given = _to_tasks(tasks)
    if len(given) < 2:
        raise UsageError(f"check_model needs at least two tasks, not {len(given)}.")
    examples = _examples(spec, config, given, annotated)
    device = device or _choose_device(spec.model_class().devices)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(media_root) if media_root is not None else None
        subject = ModelUnderTest(spec, config, given, device, root, tolerance, timeout, examples, Path(folder))
        broken = _find_violations(subject)
    if broken:
        raise ContractBroken(spec.name, broken) from next((each.error for each in broken if each.error), None)


def _find_violations(subject: ModelUnderTest) -> list[Violation]:
    broken = run_clauses(CLAUSES, subject)
    if not subject.examples:
        if subject.needs_training and not broken:
            raise UsageError(
                f"{subject.spec.name} has to be trained before it can predict.",
                "Give check_model tasks to train it on: annotated=[...].",
            )
        return broken
    learning = replace(subject)
    broken += run_clauses(TRAINING_CLAUSES, learning)
    if any(each.clause.is_prerequisite for each in broken):
        return broken
    known = {each.clause.name for each in broken}
    again = run_clauses(CLAUSES, replace(subject, spec=trained_spec(learning)))
    return broken + [
        replace(each, sentence=f"once trained, {each.sentence}") for each in again if each.clause.name not in known
    ]


def _report(name: str, violations: Sequence[Violation]) -> str:
    """What stands in the output of pytest: for each breach what was found, and what the contract asks."""
    clauses = list(dict.fromkeys(each.clause.name for each in violations))
    lines = [f"{name} breaks {len(clauses)} clause{'s' * (len(clauses) > 1)} of the contract: {', '.join(clauses)}."]
    for each in violations:
        lines += ["", f"  {each.clause.name}: {each.sentence}.", f"      The contract: {each.clause.requirement}"]
    if any(each.clause.is_prerequisite for each in violations):
        lines += ["", "  There may be more: some clauses can only be looked at once this is right."]
    return "\n".join(lines)


def _examples(
    spec: ModelSpec, config: LabelConfig, tasks: Sequence[Task], annotated: Iterable[AnnotatedTask] | Tasks | None
) -> list[AnnotatedTask]:
    """What to train on; nothing for a model that cannot be trained, or is trained."""
    if spec.model_class().fit is Model.fit:
        if annotated:
            raise UsageError(f"{spec.name} does not override fit, so it learns nothing.", "Leave annotated out.")
        return []
    if annotated is None:
        found = _annotated_tasks(tasks, config)
        if not found and spec.path is None:
            raise UsageError(
                f"{spec.name} overrides fit, so check_model needs annotated tasks to train it on.",
                "Give them with annotated=[...], or annotated=() to leave training out.",
            )
        return found if spec.path is None else []
    given = list(annotated)
    ready = [item for item in given if isinstance(item, AnnotatedTask)]
    found = ready + _annotated_tasks(_to_tasks(item for item in given if not isinstance(item, AnnotatedTask)), config)
    if given and not found:
        raise UsageError("None of the tasks in annotated has an annotation.", "Export tasks that have been annotated.")
    return found


def _annotated_tasks(tasks: Sequence[Task], config: LabelConfig) -> list[AnnotatedTask]:
    nothing_is_an_answer = not all(control.is_single_choice for control in config.controls.values())
    return select_annotated_tasks(tasks, config, allow_empty=nothing_is_an_answer)[0]


def _choose_device(devices: Any) -> str:
    """Where to run; whether `devices` is what it should be is for a clause to say."""
    usable = isinstance(devices, tuple | list) and devices and "cpu" not in devices
    return str(devices[0]) if usable else "cpu"


def _to_tasks(items: Iterable[Any]) -> list[Task]:
    found = []
    for index, item in enumerate(items):
        if isinstance(item, UnreadableRecord):
            raise UsageError(f"Task {index} ({item.location}) cannot be read: {item.reason}.")
        try:
            found.append(item if isinstance(item, Task) else to_task(index, item))
        except ValueError as error:
            raise UsageError(f"Task {index} cannot be read: {error}.") from error
    return found
