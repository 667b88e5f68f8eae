"""The detector meets a label config, and its boxes and masks become regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import LabelMismatch, UsageError, format_list, sort_by_similarity
from lsml_cli.models.base import Binding, LabelMapping
from lsml_cli.models.label_mapping import map_labels
from lsml_cli.schema import brush_rle
from lsml_cli.schema.label_config import Control, LabelConfig, Object
from lsml_cli.schema.predictions import Region
from lsml_cli.schema.tasks import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ControlPairs = Sequence[tuple[Control, Object]]

OBJECT_TAGS = ("Image",)
CONTROL_TAGS = ("RectangleLabels", "PolygonLabels", "BrushLabels")
MASK_CONTROL_TYPES = frozenset({"polygonlabels", "brushlabels"})
DEFAULT_THRESHOLD = (
    0.3  # score from which a detection is a region, where nobody says otherwise; the toolkit draws from there on
)
PERCENT_DIGITS = 4  # of a percent: a millionth of the picture's side
MIN_SIDE_PERCENT = 1e-3  # percent: a box of a smaller side is none
OUTLINE_TOLERANCE = 1.0  # pixels that the outline of a mask may be off


@dataclass(frozen=True)
class Mask:
    """Where something is, in a few kilobytes: a bit for each pixel of the smallest part of the picture that has it all.

    box   left, top, right, bottom of that part, in pixels of the picture as a person sees it
    bits  eight pixels a byte, row by row
    """

    box: tuple[int, int, int, int]
    bits: NDArray[np.uint8]

    @classmethod
    def from_array(cls, array: NDArray[np.bool_]) -> Mask | None:
        """(H, W) -> the part where something is; None where nothing is."""
        import numpy as np

        rows, columns = np.flatnonzero(array.any(axis=1)), np.flatnonzero(array.any(axis=0))
        if not len(rows):
            return None
        left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        return cls((left, top, right, bottom), np.packbits(array[top:bottom, left:right]))

    def to_array(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """(H, W) of a picture of (width, height)."""
        import numpy as np

        left, top, right, bottom = self.box
        wide, high = right - left, bottom - top
        found = np.zeros((size[1], size[0]), dtype=np.bool_)
        found[top:bottom, left:right] = np.unpackbits(self.bits, count=wide * high).reshape(high, wide)
        return found


@dataclass(frozen=True)
class Detection:
    """Something in a picture.

    box    left, top, right, bottom, in pixels of the picture as a person sees it
    kind   position of its class in the model's classes
    mask   where it is, for a model that has masks
    """

    box: tuple[float, float, float, float]
    class_index: int
    score: float
    mask: Mask | None = None


@dataclass(frozen=True)
class ImageDetections:
    """What a model found in one picture. size: (width, height) as a person sees it."""

    size: tuple[int, int]
    detections: Sequence[Detection]


@dataclass(frozen=True)
class ControlBinding:
    """How a control is filled: which class is which label of it, and how sure the model has to be of each class.

    least  of score, of those classes that have one of their own
    """

    control: Control
    object: Object
    label_of: Mapping[str, str]
    min_scores: Mapping[str, float]

    def regions(
        self, task: Task, image_detections: ImageDetections, classes: Sequence[str], threshold: float | None
    ) -> list[Region]:
        """The regions of one task, the surest first."""
        usual = self._default_threshold(threshold)
        found: list[Region] = []
        for each in sorted(image_detections.detections, key=lambda each: -each.score):
            name = classes[each.class_index]
            label = self.label_of.get(name)
            if label is None or each.score < self.min_scores.get(name, usual):
                continue
            value = self._geometry(each, image_detections.size)
            if value is None:
                continue
            found.append(
                self.control.region(
                    task,
                    value | {self.control.type: [label]},
                    score=each.score,
                    ordinal=len(found),
                    to_name=self.object.name,
                    original_width=image_detections.size[0],
                    original_height=image_detections.size[1],
                    image_rotation=0,
                )
            )
        return found

    def min_score_for(self, name: str, threshold: float | None) -> float:
        """The score below which nothing of a class becomes a region; infinity for one that has no label."""
        return self.min_scores.get(name, self._default_threshold(threshold)) if name in self.label_of else float("inf")

    def _default_threshold(self, threshold: float | None) -> float:
        """Of a label that has none of its own: what was asked for, else what the control says, as Label Studio's do."""
        said = self.control.attrs.get("model_score_threshold", "")
        return threshold if threshold is not None else _parse_score(said) if said else DEFAULT_THRESHOLD

    def _geometry(self, detection: Detection, size: tuple[int, int]) -> dict[str, Any] | None:
        """The geometry; None where nothing is left of it within the picture."""
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
    """What is looked at, and how each control is filled. `own_threshold`: each label may have its own."""

    classes: Sequence[str] = ()
    objects: tuple[Object, ...] = ()
    control_bindings: tuple[ControlBinding, ...] = ()
    applies_threshold: bool = True

    @property
    def can_predict(self) -> bool:
        return bool(self.control_bindings)

    @property
    def output_controls(self) -> frozenset[str]:
        return frozenset(each.control.name for each in self.control_bindings)

    def min_class_scores(self) -> list[float]:
        """For each class the score below which nothing of it becomes a region."""
        inf = float("inf")
        return [
            min((f.min_score_for(name, self.threshold) for f in self.control_bindings), default=inf)
            for name in self.classes
        ]


def find_control_pairs(config: LabelConfig, model_name: str) -> list[tuple[Control, Object]]:
    """The controls that a detector may fill, each with its picture. Raises LabelMismatch when there is none."""
    pairs = [pair for control in CONTROL_TAGS for pair in config.find_pairs(control, OBJECT_TAGS)]
    if pairs:
        return pairs
    there = format_list(map(str, config.controls.values())) or "no control at all"
    raise LabelMismatch(
        f"{model_name} fills <RectangleLabels>, <PolygonLabels> and <BrushLabels> about an <Image>, but the label config has "
        f"{there}.",
        "Choose a model that fills these controls: `lsml models` lists them.",
    )


def supported_pairs(pairs: ControlPairs, with_masks: bool, model_name: str) -> ControlPairs:
    """Those of the pairs that can be filled with boxes, and with masks if there are any; no training changes that.

    who  "yolox_tiny_8xb8-300e_coco", for the sentence

    Raises LabelMismatch when there is none.
    """
    able = [(control, source) for control, source in pairs if with_masks or control.type not in MASK_CONTROL_TYPES]
    if not able:
        raise LabelMismatch(
            f"{model_name} finds boxes, no masks, and the label config has only {format_list(str(c) for c, _ in pairs)}.",
            "Choose a config with masks (mask-rcnn_r50_fpn_1x_coco, rtmdet-ins_tiny_8xb32-300e_coco), or add "
            "<RectangleLabels>.",
        )
    return able


def bind(
    binding: DetectorBinding,
    pairs: ControlPairs,
    supported: ControlPairs,
    min_scores: Mapping[str, float],
    model_name: str,
) -> DetectorBinding:
    """Let the model's classes meet the labels of each control.

    able   those of the pairs that the model can fill at all; see `fillable`
    least  of score, by label or by class
    who    "yolox_tiny_8xb8-300e_coco", for the sentences

    Raises LabelMismatch that shows both lists when nothing meets.
    """
    fillings, notes, meetings = [], [], []
    for control, source in supported:
        label_of = map_labels(binding.classes, control, binding.label_map)
        meetings.append(
            LabelMapping(control.name, [label.name for label in control.labels], list(binding.classes), label_of)
        )
        if not label_of:
            continue
        # A label stands for all of its classes that have no score of their own.
        own = {name: min_scores[key] for name, label in label_of.items() for key in (label, name) if key in min_scores}
        fillings.append(ControlBinding(control, source, label_of, own))
        notes += _label_notes(binding.classes, control, label_of)
    _require_known_thresholds(
        min_scores, binding.classes, [label for filling in fillings for label in filling.label_of.values()]
    )
    if not fillings:
        labels = "; ".join(f'"{c.name}": {format_list([label.name for label in c.labels])}' for c, _ in supported)
        raise LabelMismatch(
            f"The model and the label config have no label in common. {model_name} has {format_list(binding.classes)}. "
            f"The label config has {labels}.",
            "Say which of the model's classes stands for which label: predicted_values in the label config, or "
            "--label-map FILE. `lsml fit` trains the model for these labels.",
        )
    if lost := [str(control) for control, _ in pairs if control.name not in {f.control.name for f in fillings}]:
        notes.append(f"Nothing is predicted for {format_list(lost)}.")
    binding.control_bindings = tuple(fillings)
    binding.objects = tuple(dict.fromkeys(filling.object for filling in fillings))
    binding.label_mappings, binding.notes = tuple(meetings), tuple(notes)
    return binding


def box_value(box: Sequence[float], size: tuple[int, int]) -> dict[str, Any] | None:
    """A box in pixels as Label Studio's value, in percent, clipped to the picture; None where nothing is left of it."""
    left, right = (_percent(each, size[0]) for each in (box[0], box[2]))
    top, bottom = (_percent(each, size[1]) for each in (box[1], box[3]))
    width, height = round(right - left, PERCENT_DIGITS), round(bottom - top, PERCENT_DIGITS)
    if not (width >= MIN_SIDE_PERCENT and height >= MIN_SIDE_PERCENT):
        return None
    return {"x": left, "y": top, "width": width, "height": height, "rotation": 0}


def mask_outline(mask: NDArray[np.bool_]) -> list[list[float]]:
    """The corners of a mask's largest part in percent, in order; none where it is too small to have some."""
    import cv2
    import numpy as np

    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return []
    largest = max(contours, key=cv2.contourArea)
    corners = cv2.approxPolyDP(largest, OUTLINE_TOLERANCE, True).reshape(-1, 2)
    if len(corners) < 3:
        return []
    height, width = mask.shape
    # A contour goes through the middles of its pixels.
    return [[_percent(x + 0.5, width), _percent(y + 0.5, height)] for x, y in corners.tolist()]


def _percent(pixels: float, side: int) -> float:
    return round(min(max(100.0 * float(pixels) / side, 0.0), 100.0), PERCENT_DIGITS)


def _label_notes(classes: Sequence[str], control: Control, label_of: Mapping[str, str]) -> list[str]:
    notes = []
    if lost := [name for name in classes if name not in label_of]:
        notes.append(
            f"Dropped {len(lost)} of the model's {len(classes)} classes, for which {control} has no label: "
            f"{format_list(lost)}."
        )
    if new := [label.name for label in control.labels if label.name not in label_of.values()]:
        notes.append(f"Never predicted, because the model does not know them, of {control}: {format_list(new)}.")
    return notes


def _require_known_thresholds(min_scores: Mapping[str, float], classes: Sequence[str], labels: Sequence[str]) -> None:
    for name in min_scores:
        if name not in classes and name not in labels:
            near = format_list(sort_by_similarity(name, {*classes, *labels}))
            raise UsageError(f"thresholds names {name!r}, which is neither a class nor a label.", f"There is: {near}.")


def _parse_score(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return DEFAULT_THRESHOLD
