"""Records of the output, and what Label Studio's own validation says about them."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsml_cli.predictions import Failure, Prediction, Region, Stored, region_id, render
from lsml_cli.tasks import Task

REGION = Region("r1", "size", "text", "choices", {"choices": ["short"]}, 0.123456)
PREDICTION = Prediction.of((REGION,), "m@1")
scores = st.none() | st.floats(0, 1)


@given(st.lists(scores, max_size=5))
def test_a_predictions_score_is_the_mean_of_its_regions(given_scores):
    regions = tuple(Region("r", "a", "b", "choices", {}, score) for score in given_scores)
    known = [score for score in given_scores if score is not None]
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


def test_extra_fields_stand_beside_the_value():
    region = Region("r", "a", "b", "rectanglelabels", {"x": 1}, None, {"original_width": 10, "image_rotation": 0})
    assert region.to_json()["original_width"] == 10


@given(
    st.tuples(st.integers(), st.text("ab"), st.integers(0, 9)),
    st.tuples(st.integers(), st.text("ab"), st.integers(0, 9)),
)
def test_region_ids_differ_exactly_when_their_places_differ(one, other):
    assert (region_id(*one) == region_id(*other)) == (one == other)


def test_a_task_without_a_prediction_keeps_its_place():
    task = Task(0, 4, {"text": "a"}, {"id": 4, "data": {"text": "a"}, "predictions": [1]})
    failure = Failure("fetch", "gone", transient=True)
    assert json.loads(render(task, failure, "tasks", False)) == {"id": 4, "data": {"text": "a"}, "predictions": []}
    assert json.loads(render(task, failure, "predictions", False)) == {
        "task": 4,
        "result": [],
        "error": {"stage": "fetch", "reason": "gone"},
    }
    assert render(None, failure, "tasks", False) == b""
    assert json.loads(render(None, failure, "predictions", False))["task"] is None


def test_found_nothing_is_an_answer():
    task = Task(0, 4, {}, {"id": 4, "data": {}})
    [prediction] = json.loads(render(task, Prediction.of((), "m@1"), "tasks", False))["predictions"]
    assert prediction == {"result": [], "score": None, "model_version": "m@1"}


def test_a_bare_item_becomes_a_task_that_imports():
    task = Task(0, None, {"text": "a"}, {"text": "a"})
    record = json.loads(render(task, PREDICTION, "tasks", False))
    assert list(record) == ["data", "predictions"]


@pytest.mark.parametrize("shape", ["tasks", "predictions"])
def test_a_stored_prediction_stays_as_it_is(shape):
    old = {"result": [{"id": "x"}], "score": 0.98765, "model_version": "m@1"}
    task = Task(0, 4, {}, {"id": 4, "data": {}, "predictions": [old, 7]})
    record = json.loads(render(task, Stored(old), shape, False))
    assert (record["predictions"] == [old]) if shape == "tasks" else (record == {"task": 4} | old)
