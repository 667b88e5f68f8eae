"""Text in a picture meets a label config: shape, label and transcription, which share an id.

Controls                                          regions of a line of text
`Rectangle` or `Polygon`, `Labels`, `TextArea`    rectangle or polygon; labels; textarea
`RectangleLabels` or `PolygonLabels`, `TextArea`  rectanglelabels or polygonlabels; textarea
`TextArea`                                        textarea: the whole picture is one line of text
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lsml_cli.errors import LabelMismatch, format_list
from lsml_cli.models.base import Binding, LabelMapping
from lsml_cli.models.label_mapping import map_label
from lsml_cli.models.ocr import crops
from lsml_cli.models.ocr.crops import Point, Size
from lsml_cli.schema.label_config import Control, LabelConfig, Object
from lsml_cli.schema.predictions import Region
from lsml_cli.schema.region_rules import SHAPE_CHECKS, ControlRule
from lsml_cli.schema.tasks import Task

OBJECT_TAGS = ("Image",)
CONTROL_TAGS = ("TextArea", "Labels", "Rectangle", "Polygon", "RectangleLabels", "PolygonLabels")
TEXT_CLASS = "text"  # the one class of every text detector
PERCENT_DIGITS = 4  # of a percent: a millionth of the picture's side
MIN_SIDE_PERCENT = 1e-3  # percent: a shape of a smaller side is none

RegionValue = dict[str, Any]


@dataclass(frozen=True)
class ExistingShape:
    """What of a line of text somebody has drawn already: the id of the region, its value as it was stored, its labels.

    kind  "rectangle" or "polygon"
    """

    id: str | None
    kind: str
    value: RegionValue
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextLine:
    """A line of text.

    points  where it is, in pixels of the picture
    score   how sure the text detector is of it; None where nobody was asked
    text    what it says, "" where nothing can be read; `sure` is how sure the recogniser is of that
    """

    points: tuple[Point, ...] = ()
    score: float | None = None
    text: str = ""
    text_confidence: float = 0.0
    has_reading_order: bool = False
    existing_shape: ExistingShape | None = None


@dataclass(frozen=True)
class ControlBinding:
    """The controls about one picture, each with the label that text has there.

    labels   a <Labels>, where the shape has no labels of its own
    """

    image: Object
    text: Control
    rectangle: Control | None = None
    polygon: Control | None = None
    labels: Control | None = None
    label_of: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_whole_image(self) -> bool:
        """Whether the picture is one line of text, since there is nothing to draw a shape with."""
        return self.rectangle is None and self.polygon is None

    @property
    def shape_controls(self) -> list[Control]:
        return [each for each in (self.rectangle, self.polygon) if each is not None]

    @property
    def controls(self) -> list[Control]:
        return [each for each in (*self.shape_controls, self.labels, self.text) if each is not None]

    def regions(
        self, task: Task, lines: Sequence[TextLine], size: Size, min_score: float, min_text_confidence: float
    ) -> list[Region]:
        """The regions of one task, line by line.

        least       of a line's score; with nothing but a text to go by, of the text's
        least_text  of how sure a text is: a line keeps its shape without it
        """
        if self.is_whole_image:
            return [
                self._text_region(task, line, {})
                for line in lines
                if line.text and line.text_confidence >= max(min_score, min_text_confidence)
            ]
        found: list[Region] = []
        taken: set[str] = set()
        for ordinal, line in enumerate(each for each in lines if each.score is None or each.score >= min_score):
            placed = self._place_line(line, size)
            if placed is None:
                continue
            control, value = placed
            labels = self._labels_of(control, line.existing_shape)
            own = {control.type: labels} if control.type.endswith("labels") and labels else {}
            extra: Any = {"original_width": size[0], "original_height": size[1], "image_rotation": 0}
            drawn_id = (
                line.existing_shape.id
                if line.existing_shape is not None and line.existing_shape.id not in taken
                else None
            )
            shape = control.region(task, value | own, score=line.score, ordinal=ordinal, id=drawn_id, **extra)
            taken.add(shape.id)
            found.append(shape)
            if self.labels is not None and labels and not own:
                named = value | {"labels": labels}
                found.append(self.labels.region(task, named, score=line.score, id=shape.id, **extra))
            if line.text and line.text_confidence >= min_text_confidence:
                found.append(self._text_region(task, line, value, id=shape.id, **extra))
        return found

    def _text_region(self, task: Task, line: TextLine, value: RegionValue, **extra: Any) -> Region:
        return self.text.region(task, value | {"text": [line.text]}, score=line.text_confidence, **extra)

    def _place_line(self, line: TextLine, size: Size) -> tuple[Control, RegionValue] | None:
        """The control for a line's shape, with its value; None where nothing is left of it within the picture."""
        if line.existing_shape is not None and (kept := self._reuse_shape(line.existing_shape)) is not None:
            return kept
        points = crops.clip_polygon(line.points, size)
        if not points:
            return None
        upright = crops.is_upright(points)
        control = self.rectangle if self.polygon is None or (upright and self.rectangle) else self.polygon
        assert control is not None
        if control is self.polygon:
            value = polygon_value(points, size)
        else:
            value = (None if upright else rotated_box_value(points, size)) or box_value(points, size)
        return None if value is None else (control, value)

    def _reuse_shape(self, existing_shape: ExistingShape) -> tuple[Control, RegionValue] | None:
        """A shape as it was drawn, where there is a control for it and Label Studio would take it again."""
        control = self.rectangle if existing_shape.kind == "rectangle" else self.polygon
        return (
            None
            if control is None or SHAPE_CHECKS[existing_shape.kind](existing_shape.value, _ANY_RULE)
            else (control, existing_shape.value)
        )

    def _labels_of(self, shape: Control, existing_shape: ExistingShape | None) -> list[str]:
        """Those that were given already, where the label config has them, else the one that text has."""
        control = shape if shape.type.endswith("labels") else self.labels
        if control is None:
            return []
        given = [
            control.label_names[each]
            for each in (existing_shape.labels if existing_shape else ())
            if each in control.label_names
        ]
        return list(dict.fromkeys(given)) or [label for label in [self.label_of.get(control.name)] if label]


_ANY_RULE = ControlRule("", "", (), (), {}, False, False, frozenset())  # the rules of geometry ask no control


@dataclass
class OcrBinding(Binding):
    """Which controls are filled. `own_threshold`: a text that is unsure does not cost the shape around it."""

    control_bindings: tuple[ControlBinding, ...] = ()
    applies_threshold: bool = True

    @property
    def output_controls(self) -> frozenset[str]:
        return frozenset(control.name for each in self.control_bindings for control in each.controls)


def bind(binding: OcrBinding, model_name: str) -> OcrBinding:
    """Find the controls to fill, and the label that text has. Raises LabelMismatch when there are none.

    name  of the model, for the sentence
    """
    config = binding.config
    found = [_control_binding(config, image) for image in config.objects.values() if image.tag.lower() == "image"]
    fillings = [each for each in found if each is not None]
    if not fillings:
        there = format_list(map(str, config.controls.values())) or "no control at all"
        raise LabelMismatch(
            f"{model_name} fills a <TextArea> about an <Image>, beside <Rectangle> or <Polygon> with <Labels>, or beside "
            f'<RectangleLabels> or <PolygonLabels>; perRegion="true" only beside one of them. The label config has '
            f"{there}.",
            "Label Studio's template for Optical Character Recognition has all of it; `lsml models` lists the others.",
        )
    binding.control_bindings = tuple(_with_labels(binding, each) for each in fillings)
    binding.notes += tuple(
        f'{filling.text} has no perRegion="true", so Label Studio shows its texts apart from their shapes.'
        for filling in fillings
        if not filling.is_whole_image and not filling.text.per_region
    )
    return binding


def _control_binding(config: LabelConfig, image: Object) -> ControlBinding | None:
    def first(*types: str) -> Control | None:
        about = [each for each in config.controls.values() if image.name in each.to_names]
        return next((each for each in about if each.type in types), None)

    rectangle, polygon = first("rectangle", "rectanglelabels"), first("polygon", "polygonlabels")
    whole = rectangle is None and polygon is None
    written = [each for each in config.controls.values() if each.type == "textarea" and image.name in each.to_names]
    # Beside shapes the text is that of a shape; one about the whole picture is a remark.
    texts = sorted(written, key=lambda each: not each.per_region) if not whole else written
    texts = [each for each in texts if not (whole and each.per_region)]
    return ControlBinding(image, texts[0], rectangle, polygon, first("labels")) if texts else None


def _with_labels(binding: OcrBinding, control_binding: ControlBinding) -> ControlBinding:
    """The same with the label that text has in each control that has labels; noted down in the binding."""
    own = [each for each in control_binding.shape_controls if each.type.endswith("labels")]
    split = control_binding.labels is not None and len(own) < len(control_binding.shape_controls)
    label_of: dict[str, str] = {}
    for control in [*own, *([control_binding.labels] if split and control_binding.labels is not None else [])]:
        label, note = label_for_text(control, binding.label_map)
        binding.notes += (note,) if note else ()
        label_of[control.name] = label
        names = [each.name for each in control.labels]
        binding.label_mappings += (LabelMapping(control.name, names, [TEXT_CLASS], {TEXT_CLASS: label}),)
    return ControlBinding(
        control_binding.image,
        control_binding.text,
        control_binding.rectangle,
        control_binding.polygon,
        control_binding.labels,
        label_of,
    )


def label_for_text(control: Control, label_map: Mapping[str, str]) -> tuple[str, str]:
    """The label that stands for text, and a sentence where that is a guess."""
    found = map_label(TEXT_CLASS, control, label_map)
    names = [label.name for label in control.labels]
    alike = [each.name for each in control.labels if TEXT_CLASS in (each.name.casefold(), each.value.casefold())]
    if found is not None or alike or not names:
        return found or next(iter(alike), TEXT_CLASS), ""
    if len(names) == 1:
        return names[0], ""
    return names[0], (
        f'No label of {control} is called "{TEXT_CLASS}", so every text is labelled "{names[0]}", its first of '
        f'{len(names)}: --label-map with {{"{TEXT_CLASS}": …}} names another.'
    )


def box_value(points: Sequence[Point], size: Size) -> RegionValue | None:
    """The box around a polygon in the picture, in percent; None for one without an area."""
    left, top, right, bottom = crops.bounding_box(points)
    x, y = _percent(left, size[0]), _percent(top, size[1])
    width, height = (
        round(_percent(right, size[0]) - x, PERCENT_DIGITS),
        round(_percent(bottom, size[1]) - y, PERCENT_DIGITS),
    )
    if not (width >= MIN_SIDE_PERCENT and height >= MIN_SIDE_PERCENT):
        return None
    return {"x": x, "y": y, "width": width, "height": height, "rotation": 0}


def rotated_box_value(points: Sequence[Point], size: Size) -> RegionValue | None:
    """The box along a text that is turned: its upper left corner, its sides, and the angle that it was turned by.

    None where that corner is outside of the picture, where Label Studio takes none.
    """
    import numpy as np

    quad = crops.reading_quad(points)
    width, height = np.linalg.norm(quad[1] - quad[0]), np.linalg.norm(quad[3] - quad[0])
    value: RegionValue = {
        "x": round(100 * float(quad[0][0]) / size[0], PERCENT_DIGITS),
        "y": round(100 * float(quad[0][1]) / size[1], PERCENT_DIGITS),
        "width": round(100 * float(width) / size[0], PERCENT_DIGITS),
        "height": round(100 * float(height) / size[1], PERCENT_DIGITS),
        "rotation": round(crops.text_angle(quad) % 360, PERCENT_DIGITS),
    }
    return None if SHAPE_CHECKS["rectangle"](value, _ANY_RULE) else value


def polygon_value(points: Sequence[Point], size: Size) -> RegionValue | None:
    """A polygon in the picture, in percent; None for one without an area."""
    if box_value(points, size) is None:
        return None
    corners = [[_percent(x, size[0]), _percent(y, size[1])] for x, y in points]
    return {"points": corners, "closed": True}


def _percent(pixels: float, side: int) -> float:
    return round(min(max(100.0 * float(pixels) / side, 0.0), 100.0), PERCENT_DIGITS)
