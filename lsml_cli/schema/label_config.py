"""Labelling XML -> the controls to fill and the objects they are about.

`validation.py` holds the rules of what a prediction for them must look like.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lsml_cli.errors import LabelConfigError, LabelMismatch, UsageError, format_list, sort_by_similarity
from lsml_cli.schema import region_rules, validation
from lsml_cli.schema.predictions import Prediction, Region, region_id
from lsml_cli.schema.tasks import Task

OBJECT_TAGS = "Audio AudioPlus Chat HyperText Image List Object3D Paragraphs Pdf ReactCode Table Text TimeSeries Video"
CONTROL_TAGS = """
    Bitmask BitmaskLabels Brush BrushLabels Choices Cube CubeLabels DateTime Ellipse EllipseLabels HyperTextLabels
    KeyPoint KeyPointLabels Labels MagicWand Number OcrLabels OcrTokenLabels Pairwise ParagraphLabels PdfLabels Polygon
    PolygonLabels Ranker Rating Rectangle RectangleLabels TableLabels Taxonomy TextArea TimelineLabels
    TimeSeriesLabels Vector VectorLabels VideoRectangle VideoVector VideoVectorLabels
"""
OTHER_TAGS = """
    Bucket Channel Choice Collapse Dialog Filter Header Html Label Markdown MultiChannel Panel Relation Relations
    Repeater ResizableView Shortcut Style View
"""
TAGS = {tag.lower(): tag for tags in (OBJECT_TAGS, CONTROL_TAGS, OTHER_TAGS) for tag in tags.split()}
OBJECTS = frozenset(OBJECT_TAGS.lower().split())
CONTROLS = frozenset(CONTROL_TAGS.lower().split())
LABEL_TAGS = frozenset({"choice", "label", "relation"})
PROSE_TAGS = frozenset({"header", "html", "hypertext", "markdown", "reactcode", "style"})  # what is inside is not ours
SELF_CONTROL_TAGS = {"chat": "ChatMessage", "reactcode": "ReactCode"}  # objects that are their own control, of this tag


@dataclass(frozen=True)
class Label:
    """One <Choice> or <Label>. `predicted_values` are a model's own names for it."""

    value: str
    alias: str | None = None
    predicted_values: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The only spelling that a prediction may use: the alias where there is one."""
        return self.alias or self.value


@dataclass(frozen=True)
class Object:
    """What is shown to the annotator. `value` is the raw attribute: "$text", or a literal."""

    name: str
    tag: str
    value: str
    attrs: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def data_key(self) -> str | None:
        """The key of the task's data: "text" for "$text", None for a literal value."""
        return self.value[1:] if re.fullmatch(r"\$[^, ]+", self.value) else None

    def read(self, data: Mapping[str, Any]) -> Any:
        """The value that this object shows: `data[key]`, else what lies at the path `key` ("pages[0].url").

        A literal value is returned as it stands. Raises ValueError with a sentence when the task has no such value.
        """
        key = self.data_key
        if key is None:
            return self.value
        found = data[key] if key in data else _get_by_path(data, key)
        if found is None:
            there = f'has null for "{key}"' if key in data else f'has no "{key}"'
            raise ValueError(
                f"the task {there}, which {self} wants; it has: {format_list(sort_by_similarity(key, data)) or 'nothing'}"
            )
        return found

    def __str__(self) -> str:
        attribute = "valueList" if "valueList" in self.attrs else "value"
        return f'<{self.tag} name="{self.name}" {attribute}="{self.value}">'


@dataclass(frozen=True)
class Control:
    """What the annotator fills in, and so does a prediction.

    to_names  names of the objects it is about; several for Pairwise only
    labels    in the order of the config, nested ones flattened; `dynamic` ones come from the task (value="$options")
    """

    name: str
    tag: str
    to_names: tuple[str, ...]
    labels: tuple[Label, ...] = ()
    attrs: Mapping[str, str] = field(default_factory=dict, hash=False)
    has_dynamic_labels: bool = False

    @property
    def type(self) -> str:
        """The `type` of its regions."""
        return self.tag.lower()

    @property
    def is_single_choice(self) -> bool:
        """Whether this is a <Choices> that takes one choice at most."""
        return self.type == "choices" and self.attrs.get("choice", "single") in ("single", "single-radio")

    @property
    def per_region(self) -> bool:
        """Whether it describes regions of other controls and not the task: perRegion="true"."""
        return self._flag("perRegion")

    @property
    def per_item(self) -> bool:
        """Whether it answers once per picture of a list: perItem="true"."""
        return self._flag("perItem")

    @cached_property
    def label_names(self) -> Mapping[str, str]:
        """A label's value or alias -> its name: annotations made before it had the alias say the value."""
        return {label.value: label.name for label in self.labels} | {label.name: label.name for label in self.labels}

    def _flag(self, attribute: str) -> bool:
        value = self.attrs.get(attribute) or self.attrs.get(attribute.lower()) or ""
        return value.lower() == "true"

    def region(
        self,
        task: Task,
        value: Mapping[str, Any],
        *,
        score: float | None = None,
        ordinal: int = 0,
        to_name: str | None = None,
        id: str | None = None,
        **extra: Any,
    ) -> Region:
        """A region of this control.

        value    Label Studio's value object, geometry in percent of the picture
        score    probability in 0..1
        ordinal  which of this control's regions in the task, from 0: two regions must not share one
        to_name  which object, where the control has several
        id       of the region that this one describes (OCR: box, label and text share one id)
        extra    what else belongs to the region's top level: original_width=1600 (pixels), ...
        """
        if to_name is None:
            to_name = self.to_names[0]
        elif to_name not in self.to_names:
            raise ValueError(f'{self} is not about "{to_name}", only about {", ".join(self.to_names)}')
        if id is None:
            id = region_id(task.index if task.id is None else task.id, self.name, ordinal)
        if score is not None and type(score) is not float and hasattr(score, "item"):  # of numpy or torch
            score = score.item()
        return Region(id, self.name, to_name, self.type, value, score, extra)

    def __str__(self) -> str:
        return f'<{self.tag} name="{self.name}">'


@dataclass(frozen=True)
class LabelConfig:
    """A project's labelling interface. `warnings` are sentences that the user should read once.

    `controls` and `objects` are keyed by name, in the order of the config. Equal where the XML is.
    """

    xml: str
    controls: Mapping[str, Control] = field(compare=False, repr=False)
    objects: Mapping[str, Object] = field(compare=False, repr=False)
    warnings: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def parse(cls, xml: str | bytes) -> LabelConfig:
        """Read labelling XML. Raises LabelConfigError."""
        if isinstance(xml, bytes):
            try:
                xml = xml.decode()
            except UnicodeDecodeError as error:
                raise LabelConfigError("The label config is not UTF-8.", "Save it as UTF-8.") from error
        xml = xml.removeprefix("\ufeff")
        if not xml.strip():
            hint = "Copy it from the project's Settings > Labeling Interface > Code."
            raise LabelConfigError("The label config is empty.", hint)
        return _ConfigParser().parse(xml)

    @classmethod
    def load(cls, path: Path) -> LabelConfig:
        """Read a file of labelling XML. Raises UsageError without one, LabelConfigError naming the file."""
        try:
            content = path.read_bytes()
        except OSError as error:
            reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
            raise UsageError(f"The label config {path} {reason}.") from error
        try:
            return cls.parse(content)
        except LabelConfigError as error:
            raise LabelConfigError(f"{path}: {error.message}", error.hint) from error

    @cached_property
    def digest(self) -> str:
        """Identity, hexadecimal: the same for XML that differs only in the whitespace between its tags."""
        return blake2b(re.sub(r">\s+<", "><", self.xml.strip()).encode(), digest_size=16).hexdigest()

    def find_pairs(self, control_tag: str, object_tags: Sequence[str]) -> list[tuple[Control, Object]]:
        """The controls of a tag that a prediction can fill (not the perRegion ones), each with an object it is about.

        In the order of the config; only objects of the given tags.
        """
        wanted = {tag.lower() for tag in object_tags}
        return [
            (control, self.objects[name])
            for control in self.controls.values()
            if control.type == control_tag.lower() and not control.per_region
            for name in control.to_names
            if self.objects[name].tag.lower() in wanted
        ]

    def only(self, tag: str) -> Control:
        """The only control of that tag. Raises LabelMismatch when there is none, or more than one."""
        found = [control for control in self.controls.values() if control.type == tag.lower()]
        if len(found) == 1:
            return found[0]
        there = format_list(map(str, found or self.controls.values())) or "no control at all"
        number = f"{len(found)} of them" if found else f"no <{tag}>"
        raise LabelMismatch(f"One <{tag}> is needed, but the label config has {number}: it has {there}.")

    def check(self, prediction: Prediction) -> str | None:
        """None when Label Studio accepts the prediction, else one sentence about the first thing wrong."""
        return validation.find_first_problem(self._rules, prediction)

    @cached_property
    def _rules(self) -> validation.ConfigRules:
        return validation.ConfigRules({name: self._build_rule(control) for name, control in self.controls.items()})

    def _build_rule(self, control: Control) -> region_rules.ControlRule:
        # An object without a value is none to Label Studio's import.
        about = [
            obj
            for name in control.to_names
            if (obj := self.objects[name]).value or obj.tag.lower() in SELF_CONTROL_TAGS
        ]
        beside = {
            other.type for other in self.controls.values() if not set(other.to_names).isdisjoint(control.to_names)
        }
        return region_rules.ControlRule(
            name=control.name,
            type=control.type,
            to_names=tuple(obj.name for obj in about),
            image_names=tuple(obj.name for obj in about if obj.tag.lower() == "image"),
            labels=dict.fromkeys(label.name for label in control.labels),
            is_single_choice=control.is_single_choice,
            is_once_per_task=control.type in validation.SINGLE_RESULT_TYPES
            and not (control.per_region or control.per_item),
            mergeable_types=frozenset(beside & region_rules.MERGEABLE_CHECKS.keys())
            if control.type == "labels"
            else frozenset(),
            max_rating=control.attrs.get("maxRating", "5"),
        )

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return LabelConfig.parse, (self.xml,)  # the rules hold functions, and parsing is as quick as unpickling


class _ConfigParser:
    """Collects what one XML document declares."""

    def __init__(self) -> None:
        self.tag_by_name: dict[str, str] = {}  # name -> the tag that has it
        self.controls: dict[str, Control] = {}
        self.labels: dict[str, dict[str, Label]] = {}  # control -> what a prediction calls the label -> label
        self.objects: dict[str, Object] = {}
        self.warnings: list[str] = []

    def parse(self, xml: str) -> LabelConfig:
        for element, owner, is_prose in _walk_elements(_parse_xml(xml)):
            tag = element.tag.lower()
            if tag not in TAGS and not is_prose:
                self.warnings.append(_unknown_tag_warning(element.tag))
            if name := element.attrib.get("name"):
                if name in self.tag_by_name:
                    raise LabelConfigError(f'<{self.tag_by_name[name]}> and <{element.tag}> are both named "{name}".')
                self.tag_by_name[name] = element.tag
            if tag in LABEL_TAGS:
                self._add_label(element, owner)
            elif tag in SELF_CONTROL_TAGS:
                self._add_self_control(element)
            elif _is_control(element):
                self._add_control(element)
            elif tag in CONTROLS:
                missing = "toName" if name else "name"
                label = f'<{element.tag} name="{name}">' if name else f"<{element.tag}>"
                self.warnings.append(f"{label} has no {missing}, so nothing can be predicted for it.")
            elif name:
                self._add_object(element)
        controls = {name: self._resolve_control(control) for name, control in self.controls.items()}
        return LabelConfig(xml, controls, self.objects, tuple(dict.fromkeys(self.warnings)))

    def _add_control(self, element: Any) -> None:
        attrs = dict(element.attrib)
        dynamic = attrs.get("value", "").startswith("$") or bool(attrs.get("apiUrl"))
        to_names = tuple(attrs["toName"].split(","))
        self.controls[attrs["name"]] = Control(attrs["name"], element.tag, to_names, (), attrs, dynamic)

    def _add_object(self, element: Any) -> None:
        attrs = dict(element.attrib)
        value = attrs.get("valueList") or attrs.get("value") or ""
        if not value and element.tag.lower() not in OBJECTS:
            return  # a named <View>, a <Bucket>: nothing that a control could be about
        name = attrs["name"]
        self.objects[name] = Object(name, element.tag, value, attrs)
        if value and "$" not in value and element.tag.lower() in ("text", "hypertext", "image", "audio", "video"):
            self.warnings.append(
                f'<{element.tag} name="{name}" value="{value}"> shows every task the same; did you mean "${value}"?'
            )
        if not value:
            self.warnings.append(
                f'<{element.tag} name="{name}"> has no value: Label Studio refuses predictions for it.'
            )

    def _add_self_control(self, element: Any) -> None:
        """<Chat> and <ReactCode>: one tag that is an object and the control that is about it."""
        attrs = dict(element.attrib)
        if not (name := attrs.get("name")):
            raise LabelConfigError(f"<{element.tag}> has no name.", 'Add name="...".')
        value = attrs.get("valueList") or attrs.get("value") or ""
        self.objects[name] = Object(name, element.tag, value, attrs)
        if attrs.get("toName"):
            self._add_control(element)
        else:
            self.controls[name] = Control(name, SELF_CONTROL_TAGS[element.tag.lower()], (name,), (), attrs)

    def _add_label(self, element: Any, owner: str | None) -> None:
        value, alias = element.attrib.get("value"), element.attrib.get("alias") or None
        if owner is None or (value is None and alias is None):
            return
        if element.attrib.get("name") and value:
            # That is how Label Studio's import reads it, and nobody means it.
            self.warnings.append(
                f'<{element.tag} value="{value}"> has a name, so Label Studio does not take it for a label: remove it.'
            )
            return
        predicted = element.attrib.get("predicted_values", "").split(",")
        label = Label(value or alias or "", alias, tuple(text.strip() for text in predicted if text.strip()))
        self.labels.setdefault(owner, {}).setdefault(label.name, label)

    def _resolve_control(self, control: Control) -> Control:
        for to_name in control.to_names:
            if to_name not in self.objects:
                there = ", ".join(sort_by_similarity(to_name, self.objects)) or "none at all"
                problem = f'{control} has toName="{to_name}", but no object has that name; there is: {there}.'
                raise LabelConfigError(problem, "Correct the toName, or add the object.")
        labels = tuple(self.labels.get(control.name, {}).values())
        return Control(control.name, control.tag, control.to_names, labels, control.attrs, control.has_dynamic_labels)


def _parse_xml(xml: str) -> Any:
    from defusedxml import DefusedXmlException  # 14 ms: not everything that imports this module parses
    from defusedxml.ElementTree import DefusedXMLParser, ParseError

    parser = DefusedXMLParser(forbid_dtd=True)
    try:
        parser.feed(xml)
        return parser.close()
    except ParseError as error:
        what, _, where = str(error).rpartition(": line ")
        raise LabelConfigError(f"The label config is not well-formed XML: {what} in line {where}.") from error
    except UnicodeEncodeError as error:
        raise LabelConfigError("The label config holds characters that no XML can hold.") from error
    except DefusedXmlException as error:
        line = parser.parser.CurrentLineNumber
        raise LabelConfigError(f"The label config has a DOCTYPE in line {line}.", "Remove it: none is read.") from error


def _walk_elements(root: Any) -> Iterator[tuple[Any, str | None, bool]]:
    """Every element in document order, with the nearest control above it, and whether it is part of some prose."""
    stack: list[tuple[Any, str | None, bool]] = [(root, None, False)]
    while stack:
        element, owner, is_prose = stack.pop()
        yield element, owner, is_prose
        owner = element.attrib["name"] if _is_control(element) else owner
        is_prose = is_prose or element.tag.lower() in PROSE_TAGS
        stack += [(child, owner, is_prose) for child in reversed(element)]


def _is_control(element: Any) -> bool:
    """Label Studio's own rule: whatever has a name and a toName, known tag or not."""
    return bool(element.attrib.get("name") and element.attrib.get("toName")) and element.tag.lower() != "filter"


def _unknown_tag_warning(tag: str) -> str:
    closest = difflib.get_close_matches(tag.lower(), TAGS, n=1)
    meant = f"; did you mean <{TAGS[closest[0]]}>?" if closest else "."
    return f"<{tag}> is not a tag that Label Studio knows{meant}"


def _get_by_path(data: Any, path: str) -> Any:
    """What lies at "a.b[0]", None when there is no such place."""
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            data = data[int(index)] if index else data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data
