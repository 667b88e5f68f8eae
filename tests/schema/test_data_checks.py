"""Check regions against the data of their task; Label Studio's own validation looks at the region alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from label_studio_sdk.label_interface.interface import LabelInterface

from lsml_cli.label_studio.push_spool import find_prediction_problem
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction, Region
from lsml_cli.schema.tasks import Task

CONFIG = LabelConfig.parse("""<View>
  <Text name="text" value="$text"/>
  <Labels name="span" toName="text"><Label value="PER"/><Label value="ORG"/></Labels>
  <Choices name="mood" toName="text" perRegion="true"><Choice value="good"/></Choices>
  <TextArea name="note" toName="text" perRegion="true"/>
  <Text name="far" value="$url" valueType="url"/><Labels name="remote" toName="far"><Label value="PER"/></Labels>
  <HyperText name="page" value="$html"/>
  <HyperTextLabels name="mark" toName="page"><Label value="PER"/></HyperTextLabels>
  <Paragraphs name="talk" value="$talk" nameKey="who" textKey="said"/>
  <ParagraphLabels name="turn" toName="talk"><Label value="PER"/></ParagraphLabels>
  <Audio name="sound" value="$audio"/><Labels name="noise" toName="sound"><Label value="dog"/></Labels>
  <TimeSeries name="series" value="$series" valueType="json" timeColumn="t"><Channel column="v"/></TimeSeries>
  <TimeSeriesLabels name="event" toName="series"><Label value="run"/></TimeSeriesLabels>
  <Video name="video" value="$video"/><TimelineLabels name="scene" toName="video"><Label value="run"/></TimelineLabels>
  <VideoRectangle name="track" toName="video"/>
</View>""")
DATA: dict[str, Any] = {
    "text": "😀 Ann\nworks at ACME",
    "url": "https://example.com/a.txt",
    "html": "<p>Ann <b>works</b></p>",
    "talk": [{"who": "A", "said": "😀 hello Ann"}, {"who": "B", "said": "bye"}],
    "audio": "a.wav",
    "series": {"t": [10, 20, 30], "v": [1, 2, 3]},
    "video": "v.mp4",
}
TASK = Task(0, 7, DATA, {})
INTERFACE = LabelInterface(CONFIG.xml)


def region_of(name: str, value: dict[str, Any], **extra: Any) -> Region:
    control = CONFIG.controls[name]
    labels = (
        {} if control.type in ("choices", "textarea", "videorectangle") else {control.type: [control.labels[0].name]}
    )
    return control.region(TASK, labels | value, **extra)


def problem_of(region: Region, data: dict[str, Any] | None = DATA) -> str | None:
    """Check a region that Label Studio itself accepts."""
    prediction = Prediction.of((region,), "m@1")
    assert not INTERFACE.validate_prediction(json.loads(json.dumps(prediction.to_json())), return_errors=True)
    return CONFIG.check(prediction, data)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("span", {"start": 2, "end": 5, "text": "Ann"}),
        ("span", {"start": 2, "end": 5}),
        ("span", {"start": 0, "end": 19, "text": "😀 Ann\nworks at ACME"}),
        ("span", {"start": 2, "end": 11, "text": "Ann\\nworks"}),  # as the editor writes a line break
        ("span", {"start": 5, "end": 5}),
        ("mood", {"start": 2, "end": 5, "text": "Ann", "choices": ["good"]}),
        ("note", {"start": 2, "end": 5, "text": ["what the annotator wrote"]}),
        ("remote", {"start": 900, "end": 999, "text": "not in the task"}),
        ("mark", {"start": "/p[1]/text()[1]", "end": "/p[1]/b[1]/text()[1]", "startOffset": 3, "endOffset": 2}),
        ("mark", {"start": "/p[1]", "end": "/p[1]", "globalOffsets": {"start": 0, "end": 3}}),
        ("turn", {"start": "0", "end": "0", "startOffset": 9, "endOffset": 12, "text": "Ann"}),
        ("turn", {"start": "0", "end": "1", "startOffset": 9, "endOffset": 3}),
        ("noise", {"start": 0.5, "end": 2.0}),
        ("event", {"start": 10, "end": 30, "instant": False}),
        ("scene", {"ranges": [{"start": 1, "end": 8}]}),
    ],
)
def test_span_that_its_task_holds_is_accepted(name: str, value: dict[str, Any]) -> None:
    assert problem_of(region_of(name, value)) is None


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("span", {"start": 2, "end": 20}, "end is 20, but the text of <Text"),
        ("span", {"start": 20, "end": 20}, "has 19 characters"),
        ("span", {"start": 2.5, "end": 5}, "start is 2.5, not a whole number of characters"),
        ("span", {"start": 5, "end": 2}, "start is 5, which is after the end, 2"),
        ("span", {"start": 2, "end": 5, "text": "Bob"}, "text is 'Bob', but start and end mark 'Ann'"),
        ("span", {"start": 3, "end": 6, "text": "Ann"}, "offsets count code points, as Python does, not UTF-16"),
        ("mood", {"start": 2, "end": 99, "choices": ["good"]}, "end is 99"),
        ("note", {"start": 2, "end": 99, "text": ["x"]}, "end is 99"),
        (
            "mark",
            {"start": "/p[1]", "end": "/p[1]", "startOffset": 3, "endOffset": 2},
            "startOffset is 3, which is after",
        ),
        ("mark", {"start": "/p", "end": "/q", "globalOffsets": {"start": 3, "end": 1}}, "start at 3, which is after"),
        ("mark", {"start": "/p", "end": "/q", "globalOffsets": {"start": 3, "end": 99}}, "has 23 characters, markup"),
        ("turn", {"start": "1", "end": "0"}, "start is turn 1, which is after the end, turn 0"),
        ("turn", {"start": "0", "end": "2"}, "end is turn 2, but <Paragraphs"),
        ("turn", {"start": "1", "end": "1", "startOffset": 0, "endOffset": 4}, "turn 1 of <Paragraphs"),
        ("turn", {"start": "0", "end": "0", "startOffset": 4, "endOffset": 2}, "in the same turn"),
        (
            "turn",
            {"start": "0", "end": "0", "startOffset": 8, "endOffset": 11, "text": "Ann"},
            "mark ' An' (offsets count UTF-16 code units",
        ),
        ("event", {"start": 9, "end": 30, "instant": False}, "start is 9, but the times of <TimeSeries"),
        ("event", {"start": 10, "end": 31, "instant": False}, "lie in 10..30"),
        ("scene", {"ranges": [{"start": 8, "end": 1}]}, "starts after its end"),
    ],
)
def test_span_that_its_task_does_not_hold_is_a_problem(name: str, value: dict[str, Any], sentence: str) -> None:
    assert sentence in (problem_of(region_of(name, value)) or "")


def test_range_beyond_the_stated_length_is_a_problem() -> None:
    sound = {"start": 1.0, "end": 9.0}
    assert problem_of(region_of("noise", sound, original_length=9.0)) is None
    assert "original_length says" in (problem_of(region_of("noise", sound, original_length=8.5)) or "")
    frame = {"frame": 9, "x": 1, "y": 1, "width": 5, "height": 5, "rotation": 0, "time": 0.3, "enabled": True}
    track = {"framesCount": 9, "duration": 0.4, "sequence": [frame]}
    assert problem_of(region_of("track", track)) is None
    assert "the video has 8" in (problem_of(region_of("track", {**track, "framesCount": 8})) or "")


@pytest.mark.parametrize("data", [None, {}, {"text": None}, {"text": 5}, {"text": ["a"]}])
def test_span_of_an_unknown_text_obeys_the_general_rules_alone(data: dict[str, Any] | None) -> None:
    assert problem_of(region_of("span", {"start": 2, "end": 99, "text": "Bob"}), data) is None
    assert "after the end" in (problem_of(region_of("span", {"start": 5, "end": 2}), data) or "")


@pytest.mark.parametrize("talk", [5, "x", [5], [{"said": 1}], {}])
def test_span_of_odd_paragraphs_is_not_compared(talk: Any) -> None:
    assert problem_of(region_of("turn", {"start": "0", "end": "7", "text": "x"}), {"talk": talk}) is None


def test_pushed_task_is_compared_with_its_own_data() -> None:
    span = Prediction.of((region_of("span", {"start": 2, "end": 5, "text": "Bob"}),), "m@1").to_json()
    assert "mark 'Ann'" in (find_prediction_problem(span, CONFIG, DATA) or "")
    assert find_prediction_problem(span, CONFIG) is None
