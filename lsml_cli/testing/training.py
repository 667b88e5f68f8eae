"""The clauses of the contract for a model that can be trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import orjson

from lsml_cli.models.spec import ModelSpec
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import describe_json_type
from lsml_cli.testing.model_under_test import Clause, ModelRaised, ModelUnderTest, ViolationFound, clause, is_json

TRAINING_CLAUSES: list[Clause] = []

# By name of the folder that a run of `fit` writes: one of how many examples is held out, 0 for none.
_FIT_RUNS = {"first": 4, "again": 4, "all": 0}
_MOVED = "moved"  # new name of the folder of the first run


@clause(TRAINING_CLAUSES, "fit", is_prerequisite=True)
def _fit(subject: ModelUnderTest) -> Iterator[str]:
    """`fit` learns from annotated tasks, with and without held-out tasks, and does not change them."""
    for name, step in _FIT_RUNS.items():
        train = copy.deepcopy(list(subject.examples))
        validation = copy.deepcopy(list(subject.examples[::step] if step else []))
        folder = subject.folder / name
        folder.mkdir()
        model = subject.spec.build()
        messages: list[Any] = []
        try:
            binding = model.bind(subject.config, {}, None)
            binding.media, binding.device = subject.media, subject.device
            state: Any = model.fit(train, validation, binding, folder, messages.append)
        except (Exception, SystemExit) as error:
            raise ModelRaised(f"with {len(validation)} examples held out, ", error) from error
        if not isinstance(state, Mapping):
            raise ViolationFound(
                f"fit returned {describe_json_type(state)}; it has to return a dict, which may be empty"
            )
        if train != list(subject.examples):
            raise ViolationFound("fit changed the annotated tasks, which belong to the caller")
        if invalid := [message for message in messages if not isinstance(message, str)]:
            raise ViolationFound(f"fit called progress with {describe_json_type(invalid[0])}; it takes a sentence")
        subject.states[name] = state
    yield from ()


@clause(TRAINING_CLAUSES, "state", is_prerequisite=True)
def _state(subject: ModelUnderTest) -> Iterator[str]:
    """The state that `fit` returns is the same after a round trip through JSON."""
    for key, value in subject.states["first"].items():
        if not isinstance(key, str) or not is_json(value):
            yield f"the state that fit returned is not JSON at {key!r}: {value!r}; arrays belong into files"
            return


def trained_spec(subject: ModelUnderTest, folder_name: str = _MOVED) -> ModelSpec:
    """Make the spec of the trained model, with its state as read back from JSON."""
    state = orjson.loads(orjson.dumps(dict(subject.states["first" if folder_name == _MOVED else folder_name])))
    return replace(subject.spec, path=subject.folder / folder_name, state=state, version="trained")


def _predict_trained(subject: ModelUnderTest, name: str) -> list[Prediction]:
    """Predict all tasks with the model that a run of `fit` wrote."""
    model = trained_spec(subject, name).open(subject.device)
    predictions: list[Any] = subject.predict(subject.positions, model, model.bind(subject.config, {}, None))
    if invalid := [prediction for prediction in predictions if not isinstance(prediction, Prediction)]:
        raise ViolationFound(f"decode returned {describe_json_type(invalid[0])}; it has to return a Prediction")
    return predictions


@clause(TRAINING_CLAUSES, "reload", is_prerequisite=True)
def _reload(subject: ModelUnderTest) -> Iterator[str]:
    """A new instance loads the weights that `fit` wrote, and predicts."""
    subject.predictions = _predict_trained(subject, "first")
    yield from ()


@clause(TRAINING_CLAUSES, "repeatable")
def _repeatable(subject: ModelUnderTest) -> Iterator[str]:
    """Training twice on the same tasks gives the same predictions."""
    yield from subject.compare("Trained a second time", subject.positions, _predict_trained(subject, "again"))


@clause(TRAINING_CLAUSES, "moved", is_prerequisite=True)
def _moved(subject: ModelUnderTest) -> Iterator[str]:
    """The folder that `fit` wrote can be moved."""
    (subject.folder / "first").rename(subject.folder / _MOVED)
    try:
        predictions = _predict_trained(subject, _MOVED)
    except (Exception, SystemExit) as error:
        raise ModelRaised("after its folder was moved, the model ", error) from error
    yield from subject.compare("After its folder was moved", subject.positions, predictions)
