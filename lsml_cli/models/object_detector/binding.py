"""Bind a detector to a label config, and turn its detections into regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lsml_cli.errors import LabelMismatch, UsageError, format_list, sort_by_similarity
from lsml_cli.models.base import OTHER_MODEL_HINT, Binding, LabelMapping
from lsml_cli.models.label_mapping import describe_unmapped, map_labels, suggest_label_map
from lsml_cli.models.object_detector.postprocess import Detection, ImageDetections, mask_outline
from lsml_cli.models.openmmlab.geometry import box_value
from lsml_cli.schema import brush_rle
from lsml_cli.schema.label_config import Control, LabelConfig, Object
from lsml_cli.schema.predictions import Region
from lsml_cli.schema.tasks import Task

ControlPairs = Sequence[tuple[Control, Object]]

OBJECT_TAGS = ("Image",)
CONTROL_TAGS = ("RectangleLabels", "PolygonLabels", "BrushLabels")
MASK_CONTROL_TYPES = frozenset({"polygonlabels", "brushlabels"})
DEFAULT_THRESHOLD = 0.3  # score from which a detection becomes a region; the toolkit draws from there on, too


@dataclass(frozen=True)
class ControlBinding:
    """How a control is filled.

    Args:
        control: The control.
        object: The image that it is about.
        label_of: The label of each class that has one.
        min_scores: The thresholds of classes that have one of their own.
    """

    control: Control
    object: Object
    label_of: Mapping[str, str]
    min_scores: Mapping[str, float]

    def regions(
        self, task: Task, image_detections: ImageDetections, classes: Sequence[str], threshold: float | None
    ) -> list[Region]:
        """Return the regions of one task, highest score first.

        Args:
            task: The task.
            image_detections: What the model found in its image.
            classes: Of the model.
            threshold: Of `--threshold`; None if it was not given.
        """
        default = self._default_threshold(threshold)
        regions: list[Region] = []
        for detection in sorted(image_detections.detections, key=lambda detection: -detection.score):
            name = classes[detection.class_index]
            label = self.label_of.get(name)
            if label is None or detection.score < self.min_scores.get(name, default):
                continue
            value = self._geometry(detection, image_detections.size)
            if value is None:
                continue
            region = self.control.region(
                task,
                value | {self.control.type: [label]},
                score=detection.score,
                ordinal=len(regions),
                to_name=self.object.name,
                image_size=image_detections.size,
            )
            regions.append(region)
        return regions

    def min_score_for(self, name: str, threshold: float | None) -> float:
        """Return the score below which no detection of a class becomes a region; infinity for one without a label."""
        if name not in self.label_of:
            return float("inf")
        return self.min_scores.get(name, self._default_threshold(threshold))

    def _default_threshold(self, threshold: float | None) -> float:
        """Return the threshold of classes without their own: `threshold`, else the one in the label config."""
        attribute = self.control.attrs.get("model_score_threshold", "")
        return threshold if threshold is not None else _parse_score(attribute) if attribute else DEFAULT_THRESHOLD

    def _geometry(self, detection: Detection, size: tuple[int, int]) -> dict[str, Any] | None:
        """Return the geometry of a region; None if nothing of it is in the image."""
        if self.control.type == "rectanglelabels":
            return box_value(detection.box, size)
        if detection.mask is None:
            return None
        mask = detection.mask.to_array(size)
        if self.control.type == "brushlabels":
            return {"format": "rle", "rle": list(brush_rle.encode_rle(mask.astype("uint8") * 255, 4))}
        points = mask_outline(mask)
        return {"points": points, "closed": True} if points else None


@dataclass
class DetectorBinding(Binding):
    """The images that a detector needs, and how each control is filled; labels may have thresholds of their own."""

    classes: Sequence[str] = ()
    objects: tuple[Object, ...] = ()
    control_bindings: tuple[ControlBinding, ...] = ()
    applies_threshold: bool = True

    @property
    def can_predict(self) -> bool:
        return bool(self.control_bindings)

    @property
    def output_controls(self) -> frozenset[str]:
        return frozenset(binding.control.name for binding in self.control_bindings)

    def min_class_scores(self) -> list[float]:
        """Return for each class the score below which none of its detections becomes a region."""
        return [
            min(
                (binding.min_score_for(name, self.threshold) for binding in self.control_bindings), default=float("inf")
            )
            for name in self.classes
        ]


def find_control_pairs(config: LabelConfig, model_name: str) -> list[tuple[Control, Object]]:
    """Return the controls that a detector may fill, each with its image. Raises LabelMismatch if there is none."""
    pairs = [pair for control in CONTROL_TAGS for pair in config.find_pairs(control, OBJECT_TAGS)]
    if pairs:
        return pairs
    controls = format_list(map(str, config.controls.values())) or "no control at all"
    raise LabelMismatch(
        f"{model_name} fills <RectangleLabels>, <PolygonLabels> and <BrushLabels> about an <Image>, but the label "
        f"config has {controls}.",
        OTHER_MODEL_HINT,
    )


def supported_pairs(pairs: ControlPairs, has_masks: bool, model_name: str) -> ControlPairs:
    """Return the controls that a model can fill with boxes and, if it has any, masks; training does not change that.

    Args:
        pairs: What `find_control_pairs` returned.
        has_masks: Whether the model has masks.
        model_name: "yolox_tiny_8xb8-300e_coco", for the error message.

    Raises:
        LabelMismatch: There is none.
    """
    supported = [(control, image) for control, image in pairs if has_masks or control.type not in MASK_CONTROL_TYPES]
    if not supported:
        controls = format_list(str(control) for control, _ in pairs)
        raise LabelMismatch(
            f"{model_name} finds boxes, no masks, and the label config has only {controls}.",
            "Choose a config with masks (mask-rcnn_r50_fpn_1x_coco, rtmdet-ins_tiny_8xb32-300e_coco), or add "
            "<RectangleLabels>.",
        )
    return supported


def bind(
    binding: DetectorBinding,
    pairs: ControlPairs,
    supported: ControlPairs,
    min_scores: Mapping[str, float],
    model_name: str,
) -> DetectorBinding:
    """Map the model's classes to the labels of each control, in place.

    Args:
        binding: With the classes.
        pairs: What `find_control_pairs` returned.
        supported: What `supported_pairs` returned.
        min_scores: Thresholds by label or class.
        model_name: "yolox_tiny_8xb8-300e_coco", for messages.

    Raises:
        LabelMismatch: No class has a label; the message shows both lists.
        UsageError: A threshold is for something that is neither a class nor a label.
    """
    control_bindings, notes, label_mappings = [], [], []
    for control, image in supported:
        label_of = map_labels(binding.classes, control, binding.label_map)
        labels = [label.name for label in control.labels]
        label_mappings.append(LabelMapping(control.name, labels, list(binding.classes), label_of))
        if not label_of:
            continue
        # The threshold of a label holds for all of its classes that have none of their own.
        own = {name: min_scores[key] for name, label in label_of.items() for key in (label, name) if key in min_scores}
        control_bindings.append(ControlBinding(control, image, label_of, own))
        notes += describe_unmapped(binding.classes, control, label_of)
    used_labels = [label for control_binding in control_bindings for label in control_binding.label_of.values()]
    _require_known_thresholds(min_scores, binding.classes, used_labels)
    if not control_bindings:
        raise _no_common_label(model_name, binding.classes, supported)
    filled = {control_binding.control.name for control_binding in control_bindings}
    if unfilled := [str(control) for control, _ in pairs if control.name not in filled]:
        notes.append(f"Nothing is predicted for {format_list(unfilled)}.")
    binding.control_bindings = tuple(control_bindings)
    binding.objects = tuple(dict.fromkeys(control_binding.object for control_binding in control_bindings))
    binding.label_mappings, binding.notes = tuple(label_mappings), tuple(notes)
    return binding


def _no_common_label(model_name: str, classes: Sequence[str], pairs: ControlPairs) -> LabelMismatch:
    labels = "; ".join(
        f'"{control.name}": {format_list([label.name for label in control.labels])}' for control, _ in pairs
    )
    return LabelMismatch(
        f"The model and the label config have no label in common. {model_name} has {format_list(classes)}. "
        f"The label config has {labels}.",
        suggest_label_map(classes, [control for control, _ in pairs])
        or "Say which of the model's classes stands for which label: predicted_values in the label config, or "
        "--label-map FILE. `lsml fit` trains the model for these labels.",
    )


def _require_known_thresholds(min_scores: Mapping[str, float], classes: Sequence[str], labels: Sequence[str]) -> None:
    for name in min_scores:
        if name not in classes and name not in labels:
            known = format_list(sort_by_similarity(name, {*classes, *labels}))
            raise UsageError(f"thresholds names {name!r}, which is neither a class nor a label.", f"There is: {known}.")


def _parse_score(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return DEFAULT_THRESHOLD
