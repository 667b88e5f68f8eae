"""Draw images of colored shapes, and annotate them; a detector that is small enough to learn them quickly."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

LABELS = ("bar", "block", "tower")
IMAGE_SIZE = 128

CONFIG = f"""<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="label" toName="image">
    {"".join(f'<Label value="{name}"/>' for name in LABELS)}
  </RectangleLabels>
</View>
"""

# RTMDet-tiny at a quarter of its width, for images of 128 pixels.
SMALL_DETECTOR_CONFIG = """
_base_ = "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py"
model = dict(
    backbone=dict(widen_factor=0.25, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64),
)
"""

_SHAPES = {
    "bar": ((36, 56), (10, 16), (200, 40, 40)),
    "block": ((24, 34), (24, 34), (40, 160, 60)),
    "tower": ((10, 16), (36, 56), (50, 70, 210)),
}


def draw_tasks(folder: Path, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Draw images of 1 to 3 shapes on a noisy background into a folder; return annotated tasks."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = []
    for number in range(1, count + 1):
        image = Image.effect_noise((IMAGE_SIZE, IMAGE_SIZE), 30).convert("RGB")
        canvas = ImageDraw.Draw(image)
        result: list[dict[str, Any]] = []
        boxes: list[tuple[int, int, int, int]] = []
        for _ in range(rng.randint(1, 3)):
            name = rng.choice(LABELS)
            widths, heights, color = _SHAPES[name]
            width, height = rng.randint(*widths), rng.randint(*heights)
            left, top = rng.randint(0, IMAGE_SIZE - width), rng.randint(0, IMAGE_SIZE - height)
            box = left, top, left + width, top + height
            if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes):
                continue
            boxes.append(box)
            canvas.rectangle((left, top, left + width - 1, top + height - 1), fill=color)
            value = {"x": left, "y": top, "width": width, "height": height}
            result.append(
                {
                    "id": f"r{number}-{len(result)}",
                    "from_name": "label",
                    "to_name": "image",
                    "type": "rectanglelabels",
                    "original_width": IMAGE_SIZE,
                    "original_height": IMAGE_SIZE,
                    "image_rotation": 0,
                    "value": {key: 100 * pixels / IMAGE_SIZE for key, pixels in value.items()}
                    | {"rotation": 0, "rectanglelabels": [name]},
                }
            )
        image.save(folder / f"{number}.png")
        tasks.append(
            {
                "id": number,
                "data": {"image": f"{folder.name}/{number}.png"},
                "annotations": [{"id": number, "result": result, "was_cancelled": False, "ground_truth": False}],
            }
        )
    return tasks


def write_dataset(folder: Path, count: int, seed: int = 0) -> None:
    """Write `shapes.json`, `shapes.xml`, `small.py` and the images into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shapes.json").write_text(json.dumps(draw_tasks(folder / "shapes", count, seed)), "utf-8")
    (folder / "shapes.xml").write_text(CONFIG, "utf-8")
    (folder / "small.py").write_text(SMALL_DETECTOR_CONFIG, "utf-8")


FIT_OPTIONS = ("--with", "pretrained=false", "--with", "image_size=128", "--with", "lr=0.004")


def fit_detector(lsml, folder: Path, *options: str, output: str = "models/shapes", epochs: int = 24):
    """Run `lsml fit` on what `write_dataset` wrote."""
    model = ("--model", "object-detector", "--with", "config_file=small.py", "--with", f"epochs={epochs}")
    paths = ("--label-config", "shapes.xml", "--document-root", ".", "--output", output)
    return lsml("fit", "shapes.json", *model, *FIT_OPTIONS, *paths, *options, cwd=folder, timeout=600)
