"""The detector meets a label config, and its boxes and masks become regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import LabelMismatch, UsageError, closest_first, listed
from lsml_cli.models.base import Binding, Meeting
from lsml_cli.models.label_mapping import met
from lsml_cli.schema import brush_rle
from lsml_cli.schema.label_config import Control, LabelConfig, Object
from lsml_cli.schema.predictions import Region
from lsml_cli.schema.tasks import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Pairs = Sequence[tuple[Control, Object]]

TAGS = ("Image",)
CONTROLS = ("RectangleLabels", "PolygonLabels", "BrushLabels")
OF_MASKS = frozenset({"polygonlabels", "brushlabels"})
SURE = 0.3  # score from which a detection is a region, where nobody says otherwise; the toolkit draws from there on
DIGITS = 4  # of a percent: a millionth of the picture's side
SMALLEST = 1e-3  # percent: a box of a smaller side is none
ROUGHLY = 1.0  # pixels that the outline of a mask may be off


@dataclass(frozen=True)
class Mask:
    """Where something is, in a few kilobytes: a bit for each pixel of the smallest part of the picture that has it all.

    box   left, top, right, bottom of that part, in pixels of the picture as a person sees it
    bits  eight pixels a byte, row by row
    """

    box: tuple[int, int, int, int]
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, whole: NDArray[np.bool_]) -> Mask | None:
        """(H, W) -> the part where something is; None where nothing is."""
        import numpy as np

        rows, columns = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
        if not len(rows):
            return None
        left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        return cls((left, top, right, bottom), np.packbits(whole[top:bottom, left:right]))

    def whole(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """(H, W) of a picture of (width, height)."""
        import numpy as np

        left, top, right, bottom = self.box
        wide, high = right - left, bottom - top
        found = np.zeros((size[1], size[0]), dtype=np.bool_)
        found[top:bottom, left:right] = np.unpackbits(self.bits, count=wide * high).reshape(high, wide)
        return found


@dataclass(frozen=True)
class Instance:
    """Something in a picture.

    box    left, top, right, bottom, in pixels of the picture as a person sees it
    kind   position of its class in the model's classes
    mask   where it is, for a model that has masks
    """

    box: tuple[float, float, float, float]
    kind: int
    score: float
    mask: Mask | None = None


@dataclass(frozen=True)
class Seen:
    """What a model found in one picture. size: (width, height) as a person sees it."""

    size: tuple[int, int]
    instances: Sequence[Instance]


@dataclass(frozen=True)
class Filling:
    """How a control is filled: which class is which label of it, and how sure the model has to be of each class.

    least  of score, of those classes that have one of their own
    """

    control: Control
    object: Object
    label_of: Mapping[str, str]
    least: Mapping[str, float]

    def regions(self, task: Task, seen: Seen, classes: Sequence[str], threshold: float | None) -> list[Region]:
        """The regions of one task, the surest first."""
        usual = self._usual(threshold)
        found: list[Region] = []
        for each in sorted(seen.instances, key=lambda each: -each.score):
            name = classes[each.kind]
            label = self.label_of.get(name)
            if label is None or each.score < self.least.get(name, usual):
                continue
            value = self._value(each, seen.size)
            if value is None:
                continue
            found.append(
                self.control.region(
                    task,
                    value | {self.control.type: [label]},
                    score=each.score,
                    ordinal=len(found),
                    to_name=self.object.name,
                    original_width=seen.size[0],
                    original_height=seen.size[1],
                    image_rotation=0,
                )
            )
        return found

    def lowest(self, name: str, threshold: float | None) -> float:
        """The score below which nothing of a class becomes a region; infinity for one that has no label."""
        return self.least.get(name, self._usual(threshold)) if name in self.label_of else float("inf")

    def _usual(self, threshold: float | None) -> float:
        """Of a label that has none of its own: what was asked for, else what the control says, as Label Studio's do."""
        said = self.control.attrs.get("model_score_threshold", "")
        return threshold if threshold is not None else _share(said) if said else SURE

    def _value(self, instance: Instance, size: tuple[int, int]) -> dict[str, Any] | None:
        """The geometry; None where nothing is left of it within the picture."""
        if self.control.type == "rectanglelabels":
            return box_value(instance.box, size)
        if instance.mask is None:
            return None
        mask = instance.mask.whole(size)
        if self.control.type == "brushlabels":
            return {"format": "rle", "rle": list(brush_rle.pack(mask.astype("uint8") * 255, 4))}
        points = outline(mask)
        return {"points": points, "closed": True} if points else None


@dataclass
class DetectorBinding(Binding):
    """What is looked at, and how each control is filled. `own_threshold`: each label may have its own."""

    classes: Sequence[str] = ()
    objects: tuple[Object, ...] = ()
    fillings: tuple[Filling, ...] = ()
    own_threshold: bool = True

    @property
    def silent(self) -> bool:
        return not self.fillings

    @property
    def filled(self) -> frozenset[str]:
        return frozenset(each.control.name for each in self.fillings)

    def lowest(self) -> list[float]:
        """For each class the score below which nothing of it becomes a region."""
        inf = float("inf")
        return [min((f.lowest(name, self.threshold) for f in self.fillings), default=inf) for name in self.classes]


def pairs_of(config: LabelConfig, name: str) -> list[tuple[Control, Object]]:
    """The controls that a detector may fill, each with its picture. Raises LabelMismatch when there is none."""
    pairs = [pair for control in CONTROLS for pair in config.pairs(control, TAGS)]
    if pairs:
        return pairs
    there = listed(map(str, config.controls.values())) or "no control at all"
    raise LabelMismatch(
        f"{name} fills <RectangleLabels>, <PolygonLabels> and <BrushLabels> about an <Image>, but the label config has "
        f"{there}.",
        "Choose a model that fills these controls: `lsml models` lists them.",
    )


def fillable(pairs: Pairs, masks: bool, who: str) -> Pairs:
    """Those of the pairs that can be filled with boxes, and with masks if there are any; no training changes that.

    who  "yolox_tiny_8xb8-300e_coco", for the sentence

    Raises LabelMismatch when there is none.
    """
    able = [(control, source) for control, source in pairs if masks or control.type not in OF_MASKS]
    if not able:
        raise LabelMismatch(
            f"{who} finds boxes, no masks, and the label config has only {listed(str(c) for c, _ in pairs)}.",
            "Choose a config with masks (mask-rcnn_r50_fpn_1x_coco, rtmdet-ins_tiny_8xb32-300e_coco), or add "
            "<RectangleLabels>.",
        )
    return able


def bind(binding: DetectorBinding, pairs: Pairs, able: Pairs, least: Mapping[str, float], who: str) -> DetectorBinding:
    """Let the model's classes meet the labels of each control.

    able   those of the pairs that the model can fill at all; see `fillable`
    least  of score, by label or by class
    who    "yolox_tiny_8xb8-300e_coco", for the sentences

    Raises LabelMismatch that shows both lists when nothing meets.
    """
    fillings, notes, meetings = [], [], []
    for control, source in able:
        label_of = met(binding.classes, control, binding.label_map)
        meetings.append(
            Meeting(control.name, [label.name for label in control.labels], list(binding.classes), label_of)
        )
        if not label_of:
            continue
        # A label stands for all of its classes that have no score of their own.
        own = {name: least[key] for name, label in label_of.items() for key in (label, name) if key in least}
        fillings.append(Filling(control, source, label_of, own))
        notes += _differences(binding.classes, control, label_of)
    _require_known(least, binding.classes, [label for filling in fillings for label in filling.label_of.values()])
    if not fillings:
        labels = "; ".join(f'"{c.name}": {listed([label.name for label in c.labels])}' for c, _ in able)
        raise LabelMismatch(
            f"The model and the label config have no label in common. {who} has {listed(binding.classes)}. "
            f"The label config has {labels}.",
            "Say which of the model's classes stands for which label: predicted_values in the label config, or "
            "--label-map FILE. `lsml fit` trains the model for these labels.",
        )
    if lost := [str(control) for control, _ in pairs if control.name not in {f.control.name for f in fillings}]:
        notes.append(f"Nothing is predicted for {listed(lost)}.")
    binding.fillings = tuple(fillings)
    binding.objects = tuple(dict.fromkeys(filling.object for filling in fillings))
    binding.meetings, binding.notes = tuple(meetings), tuple(notes)
    return binding


def box_value(box: Sequence[float], size: tuple[int, int]) -> dict[str, Any] | None:
    """A box in pixels as Label Studio's value, in percent, clipped to the picture; None where nothing is left of it."""
    left, right = (_percent(each, size[0]) for each in (box[0], box[2]))
    top, bottom = (_percent(each, size[1]) for each in (box[1], box[3]))
    width, height = round(right - left, DIGITS), round(bottom - top, DIGITS)
    if not (width >= SMALLEST and height >= SMALLEST):
        return None
    return {"x": left, "y": top, "width": width, "height": height, "rotation": 0}


def outline(mask: NDArray[np.bool_]) -> list[list[float]]:
    """The corners of a mask's largest part in percent, in order; none where it is too small to have some."""
    import cv2
    import numpy as np

    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return []
    largest = max(contours, key=cv2.contourArea)
    corners = cv2.approxPolyDP(largest, ROUGHLY, True).reshape(-1, 2)
    if len(corners) < 3:
        return []
    height, width = mask.shape
    # A contour goes through the middles of its pixels.
    return [[_percent(x + 0.5, width), _percent(y + 0.5, height)] for x, y in corners.tolist()]


def _percent(pixels: float, side: int) -> float:
    return round(min(max(100.0 * float(pixels) / side, 0.0), 100.0), DIGITS)


def _differences(classes: Sequence[str], control: Control, label_of: Mapping[str, str]) -> list[str]:
    notes = []
    if lost := [name for name in classes if name not in label_of]:
        notes.append(
            f"Dropped {len(lost)} of the model's {len(classes)} classes, for which {control} has no label: "
            f"{listed(lost)}."
        )
    if new := [label.name for label in control.labels if label.name not in label_of.values()]:
        notes.append(f"Never predicted, because the model does not know them, of {control}: {listed(new)}.")
    return notes


def _require_known(least: Mapping[str, float], classes: Sequence[str], labels: Sequence[str]) -> None:
    for name in least:
        if name not in classes and name not in labels:
            near = listed(closest_first(name, {*classes, *labels}))
            raise UsageError(f"thresholds names {name!r}, which is neither a class nor a label.", f"There is: {near}.")


def _share(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return SURE
