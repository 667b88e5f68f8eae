"""Parse label configs and check predictions; Label Studio's own validation is the oracle."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_studio_sdk.label_interface.interface import LabelInterface

from lsml_cli.errors import LabelConfigError, LabelMismatch, UsageError
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction, Region
from lsml_cli.schema.tasks import Task

TASK = Task(0, 7, {}, {})
SIZE: dict[str, Any] = {"original_width": 120, "original_height": 80, "image_rotation": 0}

SENTIMENT = """<View>
  <Text name="message" value="$text"/>
  <Choices name="kind" toName="message" choice="single">
    <Choice value="ham" predicted_values="ok, fine ,"/>
    <Choice value="spam" alias="s"/>
  </Choices>
</View>"""
TOPICS = SENTIMENT.replace('choice="single"', 'choice="multiple"')
BOXES = """<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="label" toName="image"><Label value="Airplane"/><Label value="Car"/></RectangleLabels>
</View>"""
SPANS = """<View>
  <Labels name="label" toName="text"><Label value="PER"/><Label value="ORG"/></Labels>
  <Text name="text" value="$text"/>
</View>"""
OCR = """<View>
  <Image name="image" value="$ocr"/>
  <Labels name="label" toName="image"><Label value="Text"/><Label value="Handwriting"/></Labels>
  <Rectangle name="bbox" toName="image"/>
  <Polygon name="poly" toName="image"/>
  <TextArea name="transcription" toName="image" perRegion="true"/>
</View>"""


def make_prediction(*regions: Region, version: str = "m@1") -> Prediction:
    return Prediction.of(regions, version)


def label_studio_problems(config: LabelConfig, prediction: Prediction) -> list[str]:
    """Return the problems that Label Studio finds in the JSON of a prediction."""
    stored = json.loads(json.dumps(prediction.to_json()))
    problems: list[str] = LabelInterface(config.xml).validate_prediction(stored, return_errors=True)
    return problems


# ---- reading XML


def test_config_is_parsed() -> None:
    config = LabelConfig.parse(SENTIMENT)
    kind, message = config.controls["kind"], config.objects["message"]
    assert (kind.type, kind.to_names, kind.is_single_choice, kind.per_region, kind.has_dynamic_labels) == (
        "choices",
        ("message",),
        True,
        False,
        False,
    )
    assert [(label.value, label.name, label.predicted_values) for label in kind.labels] == [
        ("ham", "ham", ("ok", "fine")),
        ("spam", "s", ()),
    ]
    assert (message.tag, message.value, message.data_key) == ("Text", "$text", "text")
    assert not config.warnings
    assert config.only("choices") is kind
    assert config.find_pairs("Choices", ["Text", "HyperText"]) == [(kind, message)]
    assert config.find_pairs("Choices", ["Image"]) == []


def test_bytes_with_bom_are_parsed() -> None:
    assert LabelConfig.parse(b"\xef\xbb\xbf" + SENTIMENT.encode()) == LabelConfig.parse(SENTIMENT)
    assert LabelConfig.parse('<?xml version="1.0" encoding="utf-8"?>' + SENTIMENT).only("Choices")


def test_nested_choices_are_flattened_in_order() -> None:
    config = LabelConfig.parse("""<View>
      <Text name="t" value="$t"/>
      <Taxonomy name="where" toName="t">
        <Choice value="Europe"><Choice value="France"/><Choice value="Spain"/></Choice>
        <Choice value="Asia"/>
      </Taxonomy>
      <Choices name="outer" toName="t">
        <View><Style>.a > .b {}</Style><Choice value="a"/><Choice alias="only-alias"/><Choice/></View>
        <View visibleWhen="choice-selected" whenTagName="outer" whenChoiceValue="a">
          <Choices name="inner" toName="t" whenTagName="outer"><Choice value="b"/><Choice value="b"/></Choices>
        </View>
        <Choice value="c"/>
      </Choices>
    </View>""")
    names = {name: [label.name for label in control.labels] for name, control in config.controls.items()}
    assert names == {
        "where": ["Europe", "France", "Spain", "Asia"],
        "outer": ["a", "only-alias", "c"],
        "inner": ["b"],
    }
    assert not config.warnings


def test_several_objects_lists_and_dynamic_labels() -> None:
    config = LabelConfig.parse("""<View>
      <Text name="left" value="$a"/><Text name="right" value="$b"/>
      <Image name="pages" valueList="$scans"/>
      <Pairwise name="better" toName="left,right"/>
      <Choices name="page" toName="pages" perItem="true" value="$options"/>
      <Taxonomy name="topic" toName="pages" apiUrl="https://example.com"/>
      <TextArea name="words" toName="pages" perRegion="true"/>
    </View>""")
    assert config.controls["better"].to_names == ("left", "right")
    assert config.controls["page"].has_dynamic_labels
    assert config.controls["topic"].has_dynamic_labels
    assert config.objects["pages"].data_key == "scans"
    assert [obj.name for _, obj in config.find_pairs("Pairwise", ["Text"])] == ["left", "right"]
    assert config.find_pairs("TextArea", ["Image"]) == []


def test_chat_is_its_own_control() -> None:
    config = LabelConfig.parse('<View><Chat name="chat" value="$messages"/><Rating name="r" toName="chat"/></View>')
    message = config.controls["chat"].region(TASK, {"chatmessage": {"role": "user", "content": "hello"}})
    assert (message.from_name, message.to_name, message.type) == ("chat", "chat", "chatmessage")
    assert config.check(make_prediction(message)) is None
    assert not label_studio_problems(config, make_prediction(message))


def test_unknown_tags_warn_and_are_kept() -> None:
    config = LabelConfig.parse("""<View>
      <Text name="t" value="$t"/>
      <Choises name="kind" toName="t"><Choice value="a"/></Choises>
      <Qwertzuiop/><Qwertzuiop/>
      <HyperText name="page" value="$html"><div><Choises/></div></HyperText>
    </View>""")
    assert config.warnings == (
        "<Choises> is not a tag that Label Studio knows; did you mean <Choices>?",
        "<Qwertzuiop> is not a tag that Label Studio knows.",
    )
    region = config.controls["kind"].region(TASK, {"whatever": 1})
    assert region.type == "choises"
    assert config.check(make_prediction(region)) is None
    assert not label_studio_problems(config, make_prediction(region))


def test_warns_about_what_label_studio_reads_differently() -> None:
    config = LabelConfig.parse("""<View><Text name="t"/>
      <Choices name="kind" toName="t"><Choice name="x" value="a"/><Choice value="b"/></Choices></View>""")
    assert config.warnings == (
        '<Text name="t"> has no value: Label Studio refuses predictions for it.',
        '<Choice value="a"> has a name, so Label Studio does not take it for a label: remove it.',
    )
    problem = config.check(make_prediction(config.only("Choices").region(TASK, {"choices": ["b"]})))
    assert problem == "region 1 of 1, from control 'kind': to_name is 't', but this control is about: nothing"


BROKEN = {
    "": "The label config is empty. Copy it from the project's Settings > Labeling Interface > Code.",
    " \n": "The label config is empty. Copy it from the project's Settings > Labeling Interface > Code.",
    "<View>\n<Text></View>": "The label config is not well-formed XML: mismatched tag in line 2, column 8.",
    "no xml": "The label config is not well-formed XML: syntax error in line 1, column 0.",
    "<View>&nbsp;</View>": "The label config is not well-formed XML: undefined entity in line 1, column 6.",
    "<!DOCTYPE View>\n<View/>": "The label config has a DOCTYPE in line 1. Remove it: none is read.",
    '<?xml version="1.0"?>\n<!DOCTYPE v [<!ENTITY a "b">]>\n<View>&a;</View>': (
        "The label config has a DOCTYPE in line 2. Remove it: none is read."
    ),
    '<!DOCTYPE v SYSTEM "file:///etc/passwd"><View/>': (
        "The label config has a DOCTYPE in line 1. Remove it: none is read."
    ),
    '<View><Chat value="$c"/></View>': '<Chat> has no name. Add name="...".',
    '<View><Text name="a" value="$t"/><Image name="a" value="$i"/></View>': '<Text> and <Image> are both named "a".',
    '<View><Text name="other" value="o"/><Text name="message" value="$t"/><Choices toName="mesage" name="c"/></View>': (
        '<Choices name="c"> has toName="mesage", but no object has that name; there is: message, other. '
        "Correct the toName, or add the object."
    ),
    '<View><Choices name="c" toName="t"/></View>': (
        '<Choices name="c"> has toName="t", but no object has that name; there is: none at all. '
        "Correct the toName, or add the object."
    ),
}


@pytest.mark.parametrize("xml", BROKEN)
def test_broken_xml_gives_one_sentence(xml: str) -> None:
    with pytest.raises(LabelConfigError) as caught:
        LabelConfig.parse(xml)
    assert str(caught.value) == BROKEN[xml]


@pytest.mark.parametrize(("tag", "missing"), [('<Choices toName="t"/>', "name"), ('<Rating name="c"/>', "toName")])
def test_incomplete_control_is_skipped_with_warning(tag: str, missing: str) -> None:
    config = LabelConfig.parse(f'<View><Text name="t" value="$t"/>{tag}</View>')
    assert not config.controls
    assert f"has no {missing}, so nothing can be predicted for it." in config.warnings[0]


@given(st.text() | st.binary())
@settings(max_examples=50, deadline=None)
def test_parse_raises_only_label_config_errors(xml: str | bytes) -> None:
    with pytest.raises(LabelConfigError):
        LabelConfig.parse(xml)


def test_deep_nesting_is_parsed() -> None:
    deep = "<View>" * 5000 + '<Text name="t" value="$t"/>' + "</View>" * 5000
    assert list(LabelConfig.parse(deep).objects) == ["t"]


def test_load_reads_files(tmp_path: Path) -> None:
    path = tmp_path / "config.xml"
    with pytest.raises(UsageError, match=r"The label config .*config\.xml does not exist\."):
        LabelConfig.load(path)
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        LabelConfig.load(tmp_path)
    path.write_bytes("<View café='1'/>".encode("latin-1"))
    with pytest.raises(LabelConfigError, match=r"config\.xml: The label config is not UTF-8"):
        LabelConfig.load(path)
    path.write_bytes(b"")
    with pytest.raises(LabelConfigError, match=r"config\.xml: The label config is empty"):
        LabelConfig.load(path)
    path.write_text(SENTIMENT, encoding="utf-8")
    assert LabelConfig.load(path) == LabelConfig.parse(SENTIMENT)


def test_config_can_be_pickled() -> None:
    config = LabelConfig.parse(OCR)
    config.check(make_prediction())
    copied = pickle.loads(pickle.dumps(config))
    assert copied == config
    assert copied.controls == config.controls
    assert copied.digest == config.digest
    assert pickle.loads(pickle.dumps(config)) is copied  # parsed once, not with every batch


def test_digest_ignores_whitespace_between_tags_only() -> None:
    digest = LabelConfig.parse(SENTIMENT).digest
    assert LabelConfig.parse(SENTIMENT.replace("\n", "\r\n\t") + "\n").digest == digest
    assert LabelConfig.parse(SENTIMENT.replace('"ham"', '"h am"')).digest != digest


def test_only_lists_existing_controls() -> None:
    two = SENTIMENT.replace("</View>", '<Choices name="second" toName="message"/></View>')
    for xml, tag, sentence in (
        (BOXES, "Choices", 'has no <Choices>: it has <RectangleLabels name="label">.'),
        (two, "Choices", 'has 2 of them: it has <Choices name="kind">, <Choices name="second">.'),
        ("<View/>", "Labels", "has no <Labels>: it has no control at all."),
    ):
        with pytest.raises(LabelMismatch) as caught:
            LabelConfig.parse(xml).only(tag)
        assert caught.value.message == f"One <{tag}> is needed, but the label config {sentence}"
        assert "lsml init NAME -c config.xml" in (caught.value.hint or "")


# ---- objects and controls


@pytest.mark.parametrize(
    ("value", "data", "expected"),
    [
        ("$text", {"text": "hello"}, "hello"),
        ("$text", {"text": 0}, 0),
        ("$a.b", {"a.b": "flat", "a": {"b": "nested"}}, "flat"),
        ("$a.b", {"a": {"b": "nested"}}, "nested"),
        ("$pages[1].url", {"pages": [{"url": "x"}, {"url": "y"}]}, "y"),
        ("Read this, please", {}, "Read this, please"),
        ("costs $5", {}, "costs $5"),
    ],
)
def test_object_reads_task_value(value: str, data: dict[str, Any], expected: Any) -> None:
    obj = LabelConfig.parse(f'<View><Text name="message" value="{value}"/></View>').objects["message"]
    assert obj.read(data) == expected


@pytest.mark.parametrize(
    ("value", "data", "sentence"),
    [
        ("$text", {"id": 1, "body": ""}, 'the task has no "text", which <Text name="message" value="$text"> wants; '),
        ("$text", {"text": None}, 'the task has null for "text", which <Text name="message" value="$text"> wants; '),
        ("$a[3]", {"a": [1]}, 'the task has no "a[3]", which <Text name="message" value="$a[3]"> wants; it has: a'),
        ("$a.b", {"a": "text"}, 'the task has no "a.b"'),
        ("$text", {f"column{i}": 1 for i in range(30)}, "and 20 more"),
    ],
)
def test_missing_task_value_is_explained(value: str, data: dict[str, Any], sentence: str) -> None:
    obj = LabelConfig.parse(f'<View><Text name="message" value="{value}"/></View>').objects["message"]
    with pytest.raises(ValueError, match="wants; it has: ") as caught:
        obj.read(data)
    assert sentence in str(caught.value)


def test_missing_value_message_lists_keys() -> None:
    with pytest.raises(ValueError, match=r"it has: body, id$"):
        LabelConfig.parse(SENTIMENT).objects["message"].read({"id": 1, "body": ""})


def test_regions_have_stable_ids() -> None:
    control = LabelConfig.parse(BOXES).only("RectangleLabels")
    first, again, second = (control.region(TASK, {}, ordinal=ordinal) for ordinal in (0, 0, 1))
    unnumbered = control.region(Task(7, None, {}, {}), {})
    assert first.id == again.id == unnumbered.id  # without an id its position, 7, is used
    assert first.id != second.id
    assert control.region(TASK, {}, id="shared").id == "shared"
    region = control.region(TASK, {"x": 1}, score=0.5, original_width=10)
    assert region.to_json() == {
        **{"id": first.id, "from_name": "label", "to_name": "image", "type": "rectanglelabels"},
        **{"value": {"x": 1}, "score": 0.5, "original_width": 10},
    }
    with pytest.raises(ValueError, match='<RectangleLabels name="label"> is not about "text", only about image'):
        control.region(TASK, {}, to_name="text")


# ---- checking predictions: Label Studio accepts whatever lsml accepts

TOOLS = """<View>
  <Image name="image" value="$image"/><Text name="text" value="$text"/><Video name="video" value="$video"/>
  <HyperText name="html" value="$html"/><TimeSeries name="series" value="$csv"/><Pdf name="pdf" value="$pdf"/>
  <List name="list" value="$list"/><Image name="pages" valueList="$pages"/>
  <Labels name="tag" toName="image"><Label value="A"/><Label value="B" alias="b"/></Labels>
  <Rectangle name="rectangle" toName="image"/><Ellipse name="ellipse" toName="image"/>
  <Polygon name="polygon" toName="image"/><KeyPoint name="keypoint" toName="image"/>
  <Brush name="brush" toName="image"/><Bitmask name="bitmask" toName="image"/><Vector name="vector" toName="image"/>
  <MagicWand name="wand" toName="image"/>
  <RectangleLabels name="rectangles" toName="image"><Label value="A"/></RectangleLabels>
  <EllipseLabels name="ellipses" toName="image"><Label value="A"/></EllipseLabels>
  <PolygonLabels name="polygons" toName="image"><Label value="A"/></PolygonLabels>
  <KeyPointLabels name="keypoints" toName="image"><Label value="A"/></KeyPointLabels>
  <BrushLabels name="brushes" toName="image"><Label value="A"/></BrushLabels>
  <BitmaskLabels name="bitmasks" toName="image"><Label value="A"/></BitmaskLabels>
  <VectorLabels name="vectors" toName="image"><Label value="A"/></VectorLabels>
  <OcrLabels name="ocr" toName="pdf"><Label value="A"/></OcrLabels>
  <VideoRectangle name="tracks" toName="video"/><Labels name="tracked" toName="video"><Label value="A"/></Labels>
  <VideoVectorLabels name="paths" toName="video"><Label value="A"/></VideoVectorLabels>
  <TimelineLabels name="timeline" toName="video"><Label value="A"/></TimelineLabels>
  <HyperTextLabels name="marks" toName="html"><Label value="A"/></HyperTextLabels>
  <TimeSeriesLabels name="events" toName="series"><Label value="A"/></TimeSeriesLabels>
  <Choices name="one" toName="text"><Choice value="yes"/><Choice value="no"/></Choices>
  <Choices name="many" toName="text" choice="multiple"><Choice value="yes"/><Choice value="no"/></Choices>
  <Choices name="any" toName="text" value="$options"/>
  <Choices name="each" toName="pages" perItem="true"><Choice value="yes"/></Choices>
  <Taxonomy name="where" toName="text"><Choice value="Asia"><Choice value="Japan"/></Choice></Taxonomy>
  <Rating name="stars" toName="text" maxRating="7"/><Number name="count" toName="text"/>
  <DateTime name="when" toName="text"/><TextArea name="words" toName="text"/>
  <Ranker name="ranker" toName="list"/><Pairwise name="pair" toName="text,image"/>
</View>"""
BOX = {"x": 10, "y": 20.5, "width": 30, "height": 40, "rotation": 0}
POINTS = {"points": [[1, 2], [3.5, 4], [100, 0]], "closed": True}
FRAME = {"frame": 1, "time": 0.5, "x": 1, "y": 2, "width": 3, "height": 4, "enabled": True}
TRACK = {"framesCount": 10, "duration": 2.5, "sequence": [FRAME]}
VERTICES = {"closed": False, "vertices": [{"id": "v1", "x": 1, "y": 2, "isBezier": False, "prevPointId": None}]}
PATH = {"framesCount": 10, "duration": 2.5, "sequence": [{"frame": 1, "enabled": True, **VERTICES}]}
ELLIPSE = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 50, "rotation": 90}
MASK = {"imageDataURL": "data:image/png;base64,AAAA"}

# control -> valid values
VALUES: dict[str, list[dict[str, Any]]] = {
    "rectangle": [BOX, {**BOX, "x": 90, "rotation": 45}, {"x": 0, "y": 0, "width": 100, "height": 100}],
    "ellipse": [ELLIPSE],
    "polygon": [POINTS],
    "keypoint": [{"x": 1, "y": 2, "width": 0.5}],
    "brush": [{"format": "rle", "rle": [0, 255, 3]}, {"rle": [1]}],
    "bitmask": [MASK],
    "vector": [VERTICES],
    "wand": [{"format": "rle", "rle": [0, 255, 3]}],
    "rectangles": [{**BOX, "rectanglelabels": ["A"]}],
    "ellipses": [{**ELLIPSE, "ellipselabels": ["A"]}],
    "polygons": [{**POINTS, "polygonlabels": ["A"]}],
    "keypoints": [{"x": 1, "y": 2, "width": 0.5, "keypointlabels": ["A"]}],
    "brushes": [{"format": "rle", "rle": [1, 2], "brushlabels": ["A"]}],
    "bitmasks": [{**MASK, "bitmasklabels": ["A"]}],
    "vectors": [{**VERTICES, "vectorlabels": ["A"]}],
    "ocr": [{**BOX, "ocrtext": "word", "pageIndex": 1, "ocrlabels": ["A"]}],
    "tracks": [TRACK, {**TRACK, "labels": ["anything"]}],
    "paths": [{**PATH, "labels": ["A"]}],
    "timeline": [{"ranges": [{"start": 1, "end": 5.5, "enabled": True}], "timelinelabels": ["A"]}],
    "marks": [{"start": "/p[1]", "end": "/p[2]", "startOffset": 1, "endOffset": 4, "hypertextlabels": ["A"]}],
    "events": [{"start": -1.5, "end": 5, "instant": False, "timeserieslabels": ["A"]}],
    "tag": [{"start": 0, "end": 5, "text": "hello", "labels": ["A", "b"]}],
    "one": [{"choices": ["yes"]}, {"choices": []}],
    "many": [{"choices": ["yes", "no"]}],
    "any": [{"choices": ["whatever the task says"]}],
    "each": [{"choices": ["yes"]}],
    "where": [{"taxonomy": [["Asia"], ["Asia", "Japan"]]}],
    "stars": [{"rating": 7}],
    "count": [{"number": -2.5}],
    "when": [{"datetime": "2026-11-20"}],
    "words": [{"text": ["some", "words"]}],
    "ranker": [{"ranker": {"ranker": ["a", "b"]}}],
    "pair": [{"selected": "left"}],
}
CONFIG = LabelConfig.parse(TOOLS)
ORACLE = LabelInterface(TOOLS)


def oracle_problems(prediction: Prediction) -> list[str]:
    problems: list[str] = ORACLE.validate_prediction(json.loads(json.dumps(prediction.to_json())), return_errors=True)
    return problems


def region_of(name: str, value: Mapping[str, Any], ordinal: int = 0) -> Region:
    control = CONFIG.controls[name]
    size: dict[str, Any] = SIZE if control.to_names[0] in ("image", "pages") else {}
    return control.region(TASK, value, score=0.5, ordinal=ordinal, **size)


def test_valid_values_cover_every_control() -> None:
    assert not CONFIG.warnings
    assert set(VALUES) == set(CONFIG.controls) - {"tracked"}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in VALUES for value in VALUES[name]])
def test_valid_values_are_accepted_by_both(name: str, value: dict[str, Any]) -> None:
    prediction = make_prediction(region_of(name, value))
    assert CONFIG.check(prediction) is None
    assert not oracle_problems(prediction)


def test_labels_on_a_box_of_another_control() -> None:
    box = region_of("rectangle", BOX)
    for value, is_valid in (
        ({**BOX, "labels": ["A"]}, True),
        ({**BOX, "labels": ["C"]}, False),
        ({"labels": ["A"]}, False),
        ({"start": 1, "end": 2, "labels": ["A"]}, False),
    ):
        label = CONFIG.controls["tag"].region(TASK, value, id=box.id, **SIZE)
        for regions in ((box, label), (label, box)):
            assert (CONFIG.check(make_prediction(*regions)) is None) is is_valid
            assert (not oracle_problems(make_prediction(*regions))) is is_valid
    alone = CONFIG.controls["tag"].region(TASK, {**BOX, "labels": ["A"]}, **SIZE)
    assert "start is missing" in (CONFIG.check(make_prediction(alone, box)) or "")
    assert oracle_problems(make_prediction(alone, box))


def test_labels_merged_into_a_box() -> None:
    for key, labels, kind, is_valid in (
        ("rectanglelabels", ["A"], "rectanglelabels", True),
        ("labels", ["A"], "rectanglelabels", True),
        ("rectanglelabels", ["C"], "rectanglelabels", False),
        ("rectanglelabels", [], "rectanglelabels", False),
        ("labels", ["A"], "textarealabels", False),
    ):
        region = Region("r", "tag", "image", kind, {**BOX, key: labels}, extra=SIZE)
        assert (CONFIG.check(make_prediction(region)) is None) is is_valid
        assert (not oracle_problems(make_prediction(region))) is is_valid


def test_relations_connect_regions() -> None:
    first, second = region_of("rectangle", BOX), region_of("polygon", POINTS)
    for ends, is_valid in (((first.id, second.id), True), ((first.id, "nobody"), False)):
        between = {"direction": "right", "from_id": ends[0], "to_id": ends[1]}
        relation = Region("", "", "", "relation", {}, extra=between)
        prediction = make_prediction(first, relation, second)
        assert (CONFIG.check(prediction) is None) is is_valid
        assert (not oracle_problems(prediction)) is is_valid


# (control, invalid value, its message)
INVALID_VALUES: list[tuple[str, dict[str, Any], str]] = [
    ("one", {"choices": ["yes", "no"]}, "2 choices on a control that takes one"),
    ("one", {"choices": ["Yes"]}, "choices holds 'Yes', but the label config has: yes, no"),
    ("one", {"choices": "yes"}, "choices must be a list of texts, not 'yes'"),
    ("one", {"choices": [1]}, "choices holds 1, which is not a text"),
    ("one", {}, "choices must be a list of texts, not None"),
    ("rectangles", {**BOX, "rectanglelabels": ["A"], "x": -1}, "x is -1, which is outside 0..100"),
    ("rectangles", {**BOX, "rectanglelabels": ["A"], "x": 90}, "x + width is 120, which is outside 0..100"),
    ("rectangles", {**BOX, "rectanglelabels": ["A"], "width": 0}, "width is 0, so the box is empty"),
    ("rectangles", {**BOX, "rectanglelabels": ["A"], "y": math.nan}, "y is nan, not a finite number"),
    ("rectangles", {**BOX, "rectanglelabels": ["A"], "y": "1"}, "y is '1', not a finite number"),
    ("rectangles", {**BOX, "rectanglelabels": ["A"], "y": True}, "y is True, not a finite number"),
    ("rectangles", {"x": 1, "y": 2, "width": 3, "rectanglelabels": ["A"]}, "height is missing"),
    ("rectangle", {**BOX, "rotation": 400}, "rotation is 400, not an angle in -360..360 degrees"),
    ("ellipse", {**ELLIPSE, "radiusY": 51}, "radiusY is 51, which is outside 0..50"),
    ("ellipse", {**ELLIPSE, "radiusX": 0}, "radiusX is 0, so the ellipse is empty"),
    ("polygon", {"points": [[1, 2], [3, 4]]}, "points must be a list of at least 3 points"),
    (
        "polygon",
        {"points": [[1, 2], [3, 4], [5, 101]]},
        "the point [5, 101] is wrong: y is 101, which is outside 0..100",
    ),
    ("keypoint", {"x": 101, "y": 1}, "x is 101, which is outside 0..100"),
    ("brush", {"rle": [256]}, "rle must hold whole numbers in 0..255"),
    ("brush", {"rle": []}, "rle must be a list of bytes that is not empty"),
    ("tag", {"start": 5, "end": 2, "labels": ["A"]}, "start is 5, which is after the end, 2"),
    ("tag", {"start": 5, "labels": ["A"]}, "end is missing: it must be a place in the text or sound"),
    (
        "marks",
        {"start": "a", "end": "b", "startOffset": -1, "hypertextlabels": ["A"]},
        "startOffset is -1, not a number",
    ),
    ("words", {"text": "hello"}, "text must be a list of texts, not 'hello'"),
    ("stars", {"rating": 8}, "rating is 8, not a whole number in 0..7"),
    ("where", {"taxonomy": ["Asia"]}, "a path of the taxonomy must be a list of texts, not 'Asia'"),
    (
        "where",
        {"taxonomy": [["Europe"]]},
        "a path of the taxonomy holds 'Europe', but the label config has: Asia, Japan",
    ),
    ("timeline", {"ranges": [], "timelinelabels": ["A"]}, "ranges must be a list that is not empty"),
    ("ranker", {"ranker": {"ranker": "a"}}, "'ranker' must be a list of texts, not 'a'"),
    ("one", {"one": {"choices": ["yes"]}}, "its value has an object 'one', the control's own name"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), INVALID_VALUES)
def test_invalid_value_gives_one_sentence(name: str, value: dict[str, Any], sentence: str) -> None:
    problem = CONFIG.check(make_prediction(region_of(name, value)))
    assert problem is not None
    assert problem.startswith(f"region 1 of 1, from control '{name}': {sentence}")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"from_name": "labels"}, "region 1 of 1: from_name is 'labels', but the label config has: "),
        ({"from_name": ["label"]}, "region 1 of 1: from_name is ['label'], but the label config has: "),
        ({"to_name": "photo"}, "to_name is 'photo', but this control is about: image"),
        ({"type": "labels"}, "type is 'labels', but this control's regions are of type 'rectanglelabels'"),
        ({"type": "RectangleLabels"}, "type is 'RectangleLabels', but"),
        ({"id": 5}, "its id is 5, not a text"),
        ({"id": ""}, "its id is '', not a text"),
        ({"value": ["x"]}, "its value is ['x'], not an object"),
        ({"score": 1.2}, "its score is 1.2, not a number in 0..1"),
        ({"score": math.nan}, "its score is nan, not a number in 0..1"),
        ({"extra": {}}, "original_width is missing: it must be the image's size in pixels"),
        ({"extra": {**SIZE, "original_height": 80.5}}, "original_height is 80.5: it must be"),
        ({"extra": {**SIZE, "original_width": 0}}, "original_width is 0: it must be"),
        ({"extra": {**SIZE, "type": "labels"}}, "'type' is given twice"),
    ],
)
def test_invalid_region_gives_one_sentence(change: dict[str, Any], sentence: str) -> None:
    config = LabelConfig.parse(BOXES)
    good = config.only("RectangleLabels").region(TASK, {**BOX, "rectanglelabels": ["Car"]}, **SIZE)
    assert config.check(make_prediction(good)) is None
    fields = {name: getattr(good, name) for name in ("id", "from_name", "to_name", "type", "value", "score", "extra")}
    problem = config.check(Prediction((Region(**{**fields, **change}),), None, "m@1"))
    assert problem is not None
    assert sentence in problem


@pytest.mark.parametrize(
    ("score", "version", "sentence"),
    [
        (1.5, "m", "the prediction's score is 1.5, not a number in 0..1"),
        (math.inf, "m", "the prediction's score is inf, not a number in 0..1"),
        ("high", "m", "the prediction's score is 'high', not a number in 0..1"),
        (0.5, "", "model_version is '', not a name"),
        (0.5, 3, "model_version is 3, not a name"),
        (0.5, None, "model_version is None, not a name"),
        (None, "m", None),
        (1.0000001, "m", None),  # float32; written as 1.0
    ],
)
def test_invalid_score_or_version_is_explained(score: Any, version: Any, sentence: str | None) -> None:
    assert CONFIG.check(Prediction((), score, version)) == sentence


def test_duplicate_answers_and_ids_are_rejected() -> None:
    twice = [region_of("one", {"choices": ["yes"]}, ordinal) for ordinal in (0, 1)]
    assert CONFIG.check(make_prediction(*twice)) == "control 'one' answers twice, but a task takes one answer of it"
    pages = [region_of("each", {"choices": ["yes"]}, ordinal) for ordinal in (0, 1)]
    assert CONFIG.check(make_prediction(*pages)) is None
    boxes = [region_of("rectangle", BOX) for _ in range(2)]
    assert CONFIG.check(make_prediction(*boxes)) == (
        f"two regions of control 'rectangle' have the id '{boxes[0].id}': give each its own ordinal"
    )


@pytest.mark.parametrize("name", ["ants-bees", "coco128", "receipts", "sms-spam"])
def test_exported_annotations_pass(name: str, shared_data: Path) -> None:
    config = LabelConfig.load(shared_data / "exports" / f"{name}.xml")
    tasks = json.loads((shared_data / "exports" / f"{name}-annotated.json").read_text("utf-8"))
    own = ("id", "from_name", "to_name", "type", "value")
    assert not config.warnings
    for task in tasks:
        for annotation in task["annotations"]:
            regions = [
                Region(
                    **{name: region[name] for name in own},
                    extra={key: value for key, value in region.items() if key not in own},
                )
                for region in annotation["result"]
            ]
            assert config.check(make_prediction(*regions)) is None


# ---- random configs, random predictions

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-200, 200) | st.floats() | st.sampled_from(["", "A", "yes", "5", "left"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "text", "labels"]), inner),
    max_leaves=4,
)


def all_paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [inner for key, item in inside for inner in all_paths(item, (*path, key))]


@st.composite
def mutated(draw: st.DrawFn, value: dict[str, Any]) -> dict[str, Any]:
    """Draw the value with up to two of its parts replaced or removed."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(0, 2))):
        if not (paths := all_paths(value)):
            break
        *path, last = draw(st.sampled_from(paths))
        inside = value
        for key in path:
            inside = inside[key]
        if draw(st.booleans()):
            inside[last] = draw(json_values)
        else:
            del inside[last]
    return value


@st.composite
def predictions(draw: st.DrawFn) -> Prediction:
    """Draw up to three regions of any controls, valid or almost valid."""
    regions = []
    for ordinal in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(VALUES)))
        region = region_of(name, draw(mutated(draw(st.sampled_from(VALUES[name])))), ordinal)
        fields = {
            key: getattr(region, key) for key in ("id", "from_name", "to_name", "type", "value", "score", "extra")
        }
        if draw(st.integers(0, 4)) == 0:
            fields["id"] = draw(st.sampled_from(["shared", "", 5]))
            fields["type"] = draw(st.sampled_from([region.type, "labels", f"{region.type}labels", "relation"]))
            fields["from_name"] = draw(st.sampled_from([name, "tag", "nobody"]))
            fields["to_name"] = draw(st.sampled_from([region.to_name, "image", "nobody"]))
            fields["score"] = draw(st.sampled_from([None, 0.5, 1.5, math.nan]))
        regions.append(Region(**fields))
    return Prediction(tuple(regions), draw(st.sampled_from([None, 0, 0.5, 1, 1.0000001, 1.1, math.nan])), "m@1")


@given(predictions())
@settings(max_examples=400, deadline=None)
def test_accepted_predictions_are_accepted_by_label_studio(prediction: Prediction) -> None:
    if CONFIG.check(prediction) is None:
        assert not oracle_problems(prediction)


names = st.text("abc äß'<&\"$ ", min_size=1, max_size=6)


def quoted(text: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), ('"', "&quot;")):
        text = text.replace(character, entity)
    return text


@st.composite
def configs(draw: st.DrawFn) -> tuple[LabelConfig, list[str]]:
    """Draw a config with one control of a random tag, and the names of its labels."""
    tag, child, obj = draw(
        st.sampled_from(
            [
                ("Choices", "Choice", '<Text name="o" value="$t"/>'),
                ("RectangleLabels", "Label", '<Image name="o" value="$i"/>'),
                ("Labels", "Label", '<Text name="o" value="$t"/>'),
            ]
        )
    )
    attributes = draw(st.sampled_from(["", ' choice="single"', ' choice="multiple"', ' perRegion="true"']))
    labels = draw(st.lists(st.tuples(names, st.none() | names), min_size=1, max_size=4))
    body = ""
    for value, alias in labels:
        called = "" if alias is None else f' alias="{quoted(alias)}"'
        body += f'<{child} value="{quoted(value)}"{called}/>'
        if draw(st.booleans()):
            body = f'<View style="a">{body}</View>'
    xml = f'<View>{obj}<{tag} name="c" toName="o"{attributes}>{body}</{tag}></View>'
    return LabelConfig.parse(xml), [alias or value for value, alias in labels]


@given(configs(), st.data())
@settings(max_examples=150, deadline=None)
def test_labels_agree_with_label_studio(config_and_labels: tuple[LabelConfig, list[str]], data: st.DataObject) -> None:
    config, labels = config_and_labels
    control = config.controls["c"]
    assert [label.name for label in control.labels] == list(dict.fromkeys(labels))
    max_labels = 1 if control.is_single_choice else 2
    chosen = data.draw(
        st.lists(st.sampled_from(labels), min_size=1, max_size=max_labels) | st.lists(names, max_size=max_labels)
    )
    value: dict[str, Any] = {control.type: chosen}
    if control.type == "rectanglelabels":
        value |= BOX
    elif control.type == "labels":
        value |= {"start": 0, "end": 3}
    prediction = make_prediction(control.region(TASK, value, **SIZE))
    assert (config.check(prediction) is None) == (not label_studio_problems(config, prediction))


within = st.floats(0, 60, allow_nan=False)


@given(st.lists(st.tuples(within, within, st.floats(0.01, 40), st.floats(0.01, 40), st.text(max_size=5)), max_size=4))
@settings(max_examples=50, deadline=None)
def test_ocr_regions_are_accepted(words: list[tuple[float, float, float, float, str]]) -> None:
    config = LabelConfig.parse(OCR)
    regions = []
    for ordinal, (x, y, width, height, text) in enumerate(words):
        box = {"x": x, "y": y, "width": width, "height": height, "rotation": 0}
        first = config.only("Rectangle").region(TASK, box, score=0.9, ordinal=ordinal, **SIZE)
        label = config.only("Labels").region(TASK, {**box, "labels": ["Text"]}, score=0.9, id=first.id, **SIZE)
        transcription = config.only("TextArea").region(TASK, {**box, "text": [text]}, score=0.8, id=first.id, **SIZE)
        regions += [first, label, transcription]
    prediction = make_prediction(*regions)
    assert config.check(prediction) is None
    assert not label_studio_problems(config, prediction)


def test_file_that_is_no_label_config_names_where_one_is_found(tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text("hello")
    with pytest.raises(LabelConfigError, match="syntax error") as broken:
        LabelConfig.load(tmp_path / "config.xml")
    with pytest.raises(UsageError, match="does not exist") as missing:
        LabelConfig.load(tmp_path / "none.xml")
    for error in (broken.value, missing.value):
        assert "Settings, Labeling Interface, Code" in (error.hint or "")
