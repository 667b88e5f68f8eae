"""The clauses for a model that can be trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import orjson

from lsml_cli.models.spec import ModelSpec
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import describe_json_type
from lsml_cli.testing.subject import Clause, ModelRaised, ModelUnderTest, ViolationFound, clause, is_json

TRAINING_CLAUSES: list[Clause] = []

# Name of a folder -> of the examples, every which is held out; 0 for none.
_FIT_RUNS = {"first": 4, "again": 4, "all": 0}
_MOVED = "moved"


@clause(TRAINING_CLAUSES, "fit", is_prerequisite=True)
def _fit(subject: ModelUnderTest) -> Iterator[str]:
    """`fit` learns from annotated tasks, whether some are held out or none, and leaves them as they are."""
    for name, every in _FIT_RUNS.items():
        train = copy.deepcopy(list(subject.examples))
        holdout = copy.deepcopy(list(subject.examples[::every] if every else []))
        folder = subject.folder / name
        folder.mkdir()
        model = subject.spec.build()
        said: list[Any] = []
        try:
            binding = model.bind(subject.config, {}, None)
            state: Any = model.fit(train, holdout, binding, folder, said.append)
        except (Exception, SystemExit) as error:
            raise ModelRaised(f"with {len(holdout)} examples held out, ", error) from error
        if not isinstance(state, Mapping):
            raise ViolationFound(
                f"fit returned {describe_json_type(state)}; it has to return a dict, an empty one if there is nothing to say"
            )
        if train != list(subject.examples):
            raise ViolationFound("fit changed the annotated tasks, which belong to the caller")
        if wrong := [sentence for sentence in said if not isinstance(sentence, str)]:
            raise ViolationFound(f"fit called progress with {describe_json_type(wrong[0])}; it takes a sentence")
        subject.states[name] = state
    yield from ()


@clause(TRAINING_CLAUSES, "state", is_prerequisite=True)
def _state(subject: ModelUnderTest) -> Iterator[str]:
    """What `fit` returns is JSON and comes back from it as it was."""
    for key, value in subject.states["first"].items():
        if not isinstance(key, str) or not is_json(value):
            yield f"the state that fit returned is not JSON at {key!r}: {value!r}; arrays belong into files"
            return


def trained_spec(subject: ModelUnderTest, folder_name: str = _MOVED) -> ModelSpec:
    """The spec of what was learned, as a version's model.json would give it back."""
    state = orjson.loads(orjson.dumps(dict(subject.states["first" if folder_name == _MOVED else folder_name])))
    return replace(subject.spec, path=subject.folder / folder_name, state=state, version="trained")


def _predict_trained(subject: ModelUnderTest, name: str) -> list[Prediction]:
    model = trained_spec(subject, name).open(subject.device)
    found: list[Any] = subject.predict(subject.positions, model, model.bind(subject.config, {}, None))
    if wrong := [each for each in found if not isinstance(each, Prediction)]:
        raise ViolationFound(f"decode returned {describe_json_type(wrong[0])}; it has to return a Prediction")
    return found


@clause(TRAINING_CLAUSES, "reload", is_prerequisite=True)
def _reload(subject: ModelUnderTest) -> Iterator[str]:
    """A new instance loads what `fit` wrote, and predicts."""
    subject.predictions = _predict_trained(subject, "first")
    yield from ()


@clause(TRAINING_CLAUSES, "repeatable")
def _repeatable(subject: ModelUnderTest) -> Iterator[str]:
    """The same annotated tasks make a model that predicts the same."""
    yield from subject.compare("Trained a second time", subject.positions, _predict_trained(subject, "again"))


@clause(TRAINING_CLAUSES, "moved", is_prerequisite=True)
def _moved(subject: ModelUnderTest) -> Iterator[str]:
    """The folder that `fit` wrote can be moved."""
    (subject.folder / "first").rename(subject.folder / _MOVED)
    try:
        found = _predict_trained(subject, _MOVED)
    except (Exception, SystemExit) as error:
        raise ModelRaised("after its folder was moved, the model ", error) from error
    yield from subject.compare("After its folder was moved", subject.positions, found)
