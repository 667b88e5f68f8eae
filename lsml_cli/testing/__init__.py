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
from lsml_cli.models.base import Json, Model, ModelSpec
from lsml_cli.schema.annotations import labelled
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import Labelled, Task, Unreadable
from lsml_cli.testing.clauses import CLAUSES
from lsml_cli.testing.subject import Broken, Subject, look
from lsml_cli.testing.training import TRAINING, trained

__all__ = ["ContractBroken", "check_model"]

Tasks = Iterable[Task | Unreadable | Mapping[str, Any]]


class ContractBroken(ModelError, AssertionError):
    """A model breaks its contract. `broken` has the clauses; the first error of the model's own is the cause."""

    def __init__(self, name: str, broken: Sequence[Broken]) -> None:
        self.name = name
        self.broken = tuple(broken)
        super().__init__(_report(name, broken))

    def __reduce__(self) -> tuple[type[ModelError], tuple[str]]:
        return ModelError, (self.message,)  # what the model raised need not survive pickling


def check_model(
    model: str | type[Model] | ModelSpec,
    *,
    label_config: LabelConfig | str | Path,
    tasks: Tasks,
    annotated: Iterable[Labelled] | Tasks | None = None,
    params: Mapping[str, Json] | None = None,
    media_root: str | Path | None = None,
    device: str | None = None,
    tolerance: float = 1e-4,
    patience: float = 60.0,
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
    given = _as_tasks(tasks)
    if len(given) < 2:
        raise UsageError(f"check_model needs at least two tasks, not {len(given)}.")
    examples = _examples(spec, config, given, annotated)
    device = device or _device(spec.family().devices)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(media_root) if media_root is not None else None
        subject = Subject(spec, config, given, device, root, tolerance, patience, examples, Path(folder))
        broken = _broken(subject)
    if broken:
        raise ContractBroken(spec.name, broken) from next((each.error for each in broken if each.error), None)


def _broken(subject: Subject) -> list[Broken]:
    broken = look(CLAUSES, subject)
    if not subject.examples:
        if subject.untrained and not broken:
            raise UsageError(
                f"{subject.spec.name} has to be trained before it can predict.",
                "Give check_model tasks to train it on: annotated=[...].",
            )
        return broken
    learning = replace(subject)
    broken += look(TRAINING, learning)
    if any(each.clause.basic for each in broken):
        return broken
    known = {each.clause.name for each in broken}
    again = look(CLAUSES, replace(subject, spec=trained(learning)))
    return broken + [
        replace(each, sentence=f"once trained, {each.sentence}") for each in again if each.clause.name not in known
    ]


def _report(name: str, broken: Sequence[Broken]) -> str:
    """What stands in the output of pytest: for each breach what was found, and what the contract asks."""
    clauses = list(dict.fromkeys(each.clause.name for each in broken))
    lines = [f"{name} breaks {len(clauses)} clause{'s' * (len(clauses) > 1)} of the contract: {', '.join(clauses)}."]
    for each in broken:
        lines += ["", f"  {each.clause.name}: {each.sentence}.", f"      The contract: {each.clause.asks}"]
    if any(each.clause.basic for each in broken):
        lines += ["", "  There may be more: some clauses can only be looked at once this is right."]
    return "\n".join(lines)


def _examples(
    spec: ModelSpec, config: LabelConfig, tasks: Sequence[Task], annotated: Iterable[Labelled] | Tasks | None
) -> list[Labelled]:
    """What to train on; nothing for a model that cannot be trained, or is trained."""
    if spec.family().fit is Model.fit:
        if annotated:
            raise UsageError(f"{spec.name} does not override fit, so it learns nothing.", "Leave annotated out.")
        return []
    if annotated is None:
        found = _labelled(tasks, config)
        if not found and spec.path is None:
            raise UsageError(
                f"{spec.name} overrides fit, so check_model needs annotated tasks to train it on.",
                "Give them with annotated=[...], or annotated=() to leave training out.",
            )
        return found if spec.path is None else []
    given = list(annotated)
    ready = [item for item in given if isinstance(item, Labelled)]
    found = ready + _labelled(_as_tasks(item for item in given if not isinstance(item, Labelled)), config)
    if given and not found:
        raise UsageError("None of the tasks in annotated has an annotation.", "Export tasks that have been annotated.")
    return found


def _labelled(tasks: Sequence[Task], config: LabelConfig) -> list[Labelled]:
    nothing_is_an_answer = not all(control.single for control in config.controls.values())
    return labelled(tasks, config, empty=nothing_is_an_answer)[0]


def _device(devices: Any) -> str:
    """Where to run; whether `devices` is what it should be is for a clause to say."""
    usable = isinstance(devices, tuple | list) and devices and "cpu" not in devices
    return str(devices[0]) if usable else "cpu"


def _as_tasks(items: Iterable[Any]) -> list[Task]:
    found = []
    for index, item in enumerate(items):
        if isinstance(item, Unreadable):
            raise UsageError(f"Task {index} ({item.place}) cannot be read: {item.reason}.")
        try:
            found.append(item if isinstance(item, Task) else to_task(index, item))
        except ValueError as error:
            raise UsageError(f"Task {index} cannot be read: {error}.") from error
    return found
