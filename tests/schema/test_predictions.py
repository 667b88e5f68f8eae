"""Predictions and the records in which they are written."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsml_cli.schema.json_codec import dumps
from lsml_cli.schema.predictions import (
    ExistingPrediction,
    Failure,
    Prediction,
    Region,
    prediction_record,
    region_id,
    stored_predictions,
    task_record,
)
from lsml_cli.schema.tasks import Task

REGION = Region("r1", "size", "text", "choices", {"choices": ["short"]}, 0.123456)
PREDICTION = Prediction.of((REGION,), "m@1")
scores = st.none() | st.floats(0, 1)


@given(st.lists(scores, max_size=5))
def test_score_is_mean_of_regions(region_scores):
    regions = tuple(Region("r", "a", "b", "choices", {}, score) for score in region_scores)
    known = [score for score in region_scores if score is not None]
    score = Prediction.of(regions, "v").score
    if known:
        assert score is not None
        assert math.isclose(score, math.fsum(known) / len(known), abs_tol=1e-12)
    else:
        assert score is None


def test_scores_are_rounded_to_four_digits():
    assert REGION.to_json()["score"] == 0.1235
    assert PREDICTION.to_json()["score"] == 0.1235
    assert "score" not in Region("r", "a", "b", "choices", {}).to_json()


def test_extra_fields_are_top_level():
    region = Region("r", "a", "b", "rectanglelabels", {"x": 1}, None, {"original_width": 10, "image_rotation": 0})
    assert region.to_json()["original_width"] == 10


@given(
    st.tuples(st.integers(), st.text("ab"), st.integers(0, 9)),
    st.tuples(st.integers(), st.text("ab"), st.integers(0, 9)),
)
def test_region_ids_are_unique(one, other):
    first, second = (region_id(Task(0, number, {}, {}), *rest) for number, *rest in (one, other))
    assert (first == second) == (one == other)


def test_region_ids_are_the_same_in_every_run_and_differ_by_what_was_drawn():
    task = Task(0, 5, {}, {})
    assert region_id(task, "box", 0) == "41891fb09f"
    drawn: list[dict[str, Any] | None] = [
        {"result": [{"id": "a", "value": {"x": 2**70}}]},
        {"result": [{"id": "b"}]},
        None,
    ]
    assert len({region_id(replace(task, context=context), "box", 0) for context in drawn}) == 3


def test_failure_record_keeps_task():
    task = Task(0, 4, {"text": "a"}, {"id": 4, "data": {"text": "a"}, "predictions": [1]})
    failure = Failure("fetch", "gone", transient=True)
    assert task_record(task, failure, [], False) == {"id": 4, "data": {"text": "a"}, "predictions": []}
    error = {"stage": "fetch", "reason": "gone"}
    assert prediction_record(task, failure) == {"task": 4, "result": [], "error": error}
    assert prediction_record(None, failure)["task"] is None


def test_empty_prediction_is_written():
    task = Task(0, 4, {}, {"id": 4, "data": {}})
    [prediction] = task_record(task, Prediction.of((), "m@1"), [], False)["predictions"]
    assert prediction == {"result": [], "score": None, "model_version": "m@1"}


def test_bare_item_becomes_importable_task():
    task = Task(0, None, {"text": "a"}, {"text": "a"})
    assert list(task_record(task, PREDICTION, [], False)) == ["data", "predictions"]


def test_existing_prediction_is_kept():
    stored = {"result": [{"id": "x"}], "score": 0.98765, "model_version": "m@1"}
    task = Task(0, 4, {}, {"id": 4, "data": {}, "predictions": [stored, 7]})
    assert stored_predictions(task.raw) == [stored]
    assert task_record(task, ExistingPrediction(stored), [], False)["predictions"] == [stored]
    assert prediction_record(task, ExistingPrediction(stored)) == {"task": 4} | stored


@pytest.mark.parametrize("stored", [5, None, "x", [1, {"result": 5}, {"model_version": "a"}]])
def test_invalid_stored_predictions_are_ignored(stored):
    assert stored_predictions({"predictions": stored}) == []


@given(st.lists(st.tuples(st.sampled_from("abc"), scores), max_size=6), st.floats(0, 1))
def test_threshold_drops_regions_sharing_an_id(regions, min_score):
    prediction = Prediction.of(tuple(Region(name, "a", "b", "choices", {}, score) for name, score in regions), "v")
    kept = prediction.drop_low_scores(min_score)
    dropped = {name for name, score in regions if score is not None and score < min_score}
    assert [region.id for region in kept.result] == [name for name, _ in regions if name not in dropped]


def test_prediction_json_round_trip():
    assert Prediction.from_json(json.loads(dumps(PREDICTION.to_json()))).to_json() == PREDICTION.to_json()
    region = Region("r", "a", "b", "rectanglelabels", {"x": 1}, None, {"original_width": 10})
    prediction = Prediction.of((region,), "v")
    assert Prediction.from_json(prediction.to_json()) == prediction


def test_numpy_numbers_are_serialized():
    region = Region("r", "a", "b", "rectanglelabels", {"x": np.float64(1.5), "y": np.float32(2)}, np.float64(0.5))
    assert json.loads(dumps(region.to_json()))["value"] == {"x": 1.5, "y": 2.0}
