"""Bind the OCR to a label config, and turn lines of text into regions: shape, label and transcription with one id.

Controls                                          regions of a line of text
`Rectangle` or `Polygon`, `Labels`, `TextArea`    rectangle or polygon; labels; textarea
`RectangleLabels` or `PolygonLabels`, `TextArea`  rectanglelabels or polygonlabels; textarea
`TextArea`                                        textarea: the full image is one line of text
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lsml_cli.errors import LabelMismatch, format_list
from lsml_cli.models.base import OTHER_MODEL_HINT, Binding, LabelMapping
from lsml_cli.models.label_mapping import map_label
from lsml_cli.models.ocr import crops
from lsml_cli.models.ocr.crops import Point, Size
from lsml_cli.models.ocr.text_lines import ExistingShape, RegionValue, TextLine
from lsml_cli.models.openmmlab.geometry import PERCENT_DIGITS, box_value, to_percent
from lsml_cli.schema.label_config import Control, LabelConfig, Object
from lsml_cli.schema.predictions import Region
from lsml_cli.schema.shape_checks import SHAPE_CHECKS
from lsml_cli.schema.tasks import Task
from lsml_cli.schema.value_checks import ControlRule

OBJECT_TAGS = ("Image",)
CONTROL_TAGS = ("TextArea", "Labels", "Rectangle", "Polygon", "RectangleLabels", "PolygonLabels")
TEXT_CLASS = "text"  # the one class of every text detector
_ANY_RULE = ControlRule("", "", (), (), {}, False, False, frozenset())  # checks of a geometry need no control


@dataclass(frozen=True)
class ControlBinding:
    """The controls about one image.

    Args:
        image: The image.
        text: Takes the transcription.
        rectangle: A <Rectangle> or <RectangleLabels>.
        polygon: A <Polygon> or <PolygonLabels>.
        labels: A <Labels>, for a shape that has no labels of its own.
        label_of: The label that stands for text, by the name of the control.
    """

    image: Object
    text: Control
    rectangle: Control | None = None
    polygon: Control | None = None
    labels: Control | None = None
    label_of: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_whole_image(self) -> bool:
        """Tell whether the image is one line of text, since there is no control for shapes."""
        return self.rectangle is None and self.polygon is None

    @property
    def shape_controls(self) -> list[Control]:
        return [control for control in (self.rectangle, self.polygon) if control is not None]

    @property
    def controls(self) -> list[Control]:
        return [control for control in (*self.shape_controls, self.labels, self.text) if control is not None]

    def regions(
        self, task: Task, lines: Sequence[TextLine], size: Size, min_score: float, min_text_confidence: float
    ) -> list[Region]:
        """Return the regions of one task, line by line.

        Args:
            task: The task.
            lines: The text of its image.
            size: (width, height) of the image in pixels.
            min_score: Lines of a lower score are dropped; for a full image, lines of a lower text confidence.
            min_text_confidence: Texts of a lower confidence are dropped; their shapes stay.
        """
        if self.is_whole_image:
            return [
                self._text_region(task, line, {})
                for line in lines
                if line.text and line.text_confidence >= max(min_score, min_text_confidence)
            ]
        regions: list[Region] = []
        used_ids: set[str] = set()
        kept_lines = [line for line in lines if line.score is None or line.score >= min_score]
        for ordinal, line in enumerate(kept_lines):
            line_regions = self._line_regions(task, line, ordinal, size, used_ids, min_text_confidence)
            used_ids |= {region.id for region in line_regions}
            regions += line_regions
        return regions

    def _line_regions(
        self, task: Task, line: TextLine, ordinal: int, size: Size, used_ids: set[str], min_text_confidence: float
    ) -> list[Region]:
        """Return shape, label and transcription of a line; nothing if the line is outside the image."""
        placement = self._place_line(line, size)
        if placement is None:
            return []
        control, value = placement
        labels = self._labels_of(control, line.existing_shape)
        own_labels = {control.type: labels} if control.type.endswith("labels") and labels else {}
        existing_id = line.existing_shape.id if line.existing_shape is not None else None
        shape_id = existing_id if existing_id not in used_ids else None
        shape = control.region(
            task, value | own_labels, score=line.score, ordinal=ordinal, id=shape_id, image_size=size
        )
        regions = [shape]
        if self.labels is not None and labels and not own_labels:
            label_value = value | {"labels": labels}
            regions.append(self.labels.region(task, label_value, score=line.score, id=shape.id, image_size=size))
        if line.text and line.text_confidence >= min_text_confidence:
            regions.append(self._text_region(task, line, value, id=shape.id, image_size=size))
        return regions

    def _text_region(self, task: Task, line: TextLine, value: RegionValue, **extra: Any) -> Region:
        return self.text.region(task, value | {"text": [line.text]}, score=line.text_confidence, **extra)

    def _place_line(self, line: TextLine, size: Size) -> tuple[Control, RegionValue] | None:
        """Return the control for a line's shape, and its value; None if nothing of it is in the image."""
        if line.existing_shape is not None and (kept := self._reuse_shape(line.existing_shape)) is not None:
            return kept
        points = crops.clip_polygon(line.points, size)
        if not points:
            return None
        is_upright = crops.is_upright(points)
        control = self.rectangle if self.polygon is None or (is_upright and self.rectangle) else self.polygon
        assert control is not None
        if control is self.polygon:
            value = polygon_value(points, size)
        else:
            box = box_value(crops.bounding_box(points), size)
            value = (None if is_upright else rotated_box_value(points, size)) or box
        return None if value is None else (control, value)

    def _reuse_shape(self, existing_shape: ExistingShape) -> tuple[Control, RegionValue] | None:
        """Return a shape as it was drawn, if there is a control for it and Label Studio accepts it."""
        control = self.rectangle if existing_shape.kind == "rectangle" else self.polygon
        if control is None or SHAPE_CHECKS[existing_shape.kind](existing_shape.value, _ANY_RULE):
            return None
        return control, existing_shape.value

    def _labels_of(self, shape: Control, existing_shape: ExistingShape | None) -> list[str]:
        """Return the labels that the shape has already and the label config knows, else the one for text."""
        control = shape if shape.type.endswith("labels") else self.labels
        if control is None:
            return []
        existing = existing_shape.labels if existing_shape else ()
        labels = [control.label_names[label] for label in existing if label in control.label_names]
        return list(dict.fromkeys(labels)) or [label for label in [self.label_of.get(control.name)] if label]


@dataclass
class OcrBinding(Binding):
    """The controls that are filled. `decode` applies the threshold: an unsure text does not cost its shape."""

    control_bindings: tuple[ControlBinding, ...] = ()
    applies_threshold: bool = True

    @property
    def output_controls(self) -> frozenset[str]:
        return frozenset(control.name for binding in self.control_bindings for control in binding.controls)

    @property
    def has_only_whole_images(self) -> bool:
        """Tell whether no text has to be found, since each image is one line of it."""
        return all(binding.is_whole_image for binding in self.control_bindings)


def bind(binding: OcrBinding, model_name: str) -> OcrBinding:
    """Find the controls to fill and the label that stands for text, and add them to a binding in place.

    Args:
        binding: With the label config.
        model_name: For the error message.

    Raises:
        LabelMismatch: There are no such controls.
    """
    config = binding.config
    images = [image for image in config.objects.values() if image.tag.lower() == "image"]
    candidates = [_control_binding(config, image) for image in images]
    control_bindings = [candidate for candidate in candidates if candidate is not None]
    if not control_bindings:
        controls = format_list(map(str, config.controls.values())) or "no control at all"
        raise LabelMismatch(
            f"{model_name} fills a <TextArea> about an <Image>, beside <Rectangle> or <Polygon> with <Labels>, or "
            'beside <RectangleLabels> or <PolygonLabels>; perRegion="true" only beside one of them. The label config '
            f"has {controls}.",
            f"Label Studio's template for Optical Character Recognition has all of it. {OTHER_MODEL_HINT}",
        )
    binding.control_bindings = tuple(_with_labels(binding, control_binding) for control_binding in control_bindings)
    binding.notes += tuple(
        f'{control_binding.text} has no perRegion="true", so Label Studio shows its texts apart from their shapes.'
        for control_binding in control_bindings
        if not control_binding.is_whole_image and not control_binding.text.per_region
    )
    return binding


def _control_binding(config: LabelConfig, image: Object) -> ControlBinding | None:
    """Return the controls about an image; None if none of them takes its text."""
    controls = [control for control in config.controls.values() if image.name in control.to_names]

    def first(*types: str) -> Control | None:
        return next((control for control in controls if control.type in types), None)

    rectangle, polygon = first("rectangle", "rectanglelabels"), first("polygon", "polygonlabels")
    texts = [control for control in controls if control.type == "textarea"]
    if rectangle is None and polygon is None:
        texts = [control for control in texts if not control.per_region]
    else:  # the one for each region first: one about the full image is a remark
        texts.sort(key=lambda control: not control.per_region)
    return ControlBinding(image, texts[0], rectangle, polygon, first("labels")) if texts else None


def _with_labels(binding: OcrBinding, control_binding: ControlBinding) -> ControlBinding:
    """Add the label that stands for text in each control with labels; report it in the binding."""
    label_controls = [control for control in control_binding.shape_controls if control.type.endswith("labels")]
    if control_binding.labels is not None and len(label_controls) < len(control_binding.shape_controls):
        label_controls.append(control_binding.labels)
    label_of: dict[str, str] = {}
    for control in label_controls:
        label, note = label_for_text(control, binding.label_map)
        binding.notes += (note,) if note else ()
        label_of[control.name] = label
        names = [known.name for known in control.labels]
        binding.label_mappings += (LabelMapping(control.name, names, [TEXT_CLASS], {TEXT_CLASS: label}),)
    return replace(control_binding, label_of=label_of)


def label_for_text(control: Control, label_map: Mapping[str, str]) -> tuple[str, str]:
    """Return the label that stands for text, and a sentence if that is a guess, else ""."""
    mapped = map_label(TEXT_CLASS, control, label_map)
    names = [label.name for label in control.labels]
    same_name = [
        label.name for label in control.labels if TEXT_CLASS in (label.name.casefold(), label.value.casefold())
    ]
    if mapped is not None or same_name or not names:
        return mapped or next(iter(same_name), TEXT_CLASS), ""
    if len(names) == 1:
        return names[0], ""
    return names[0], (
        f'No label of {control} is called "{TEXT_CLASS}", so every text is labelled "{names[0]}", its first of '
        f'{len(names)}: --label-map with {{"{TEXT_CLASS}": …}} names another.'
    )


def rotated_box_value(points: Sequence[Point], size: Size) -> RegionValue | None:
    """Return the value of a rectangle along a turned text: its upper left corner, sides, and angle.

    None if that corner is outside the image, which Label Studio does not accept.
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
    """Return the value of a polygon region; None if it has no area."""
    if box_value(crops.bounding_box(points), size) is None:
        return None
    corners = [[to_percent(x, size[0]), to_percent(y, size[1])] for x, y in points]
    return {"points": corners, "closed": True}
