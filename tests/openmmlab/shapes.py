"""Pictures of coloured shapes with their boxes, as Label Studio exports them, and a detector that is small enough to
learn them in minutes."""

from __future__ import annotations

import json
import random
from pathlib import Path

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

# RTMDet-tiny at a quarter of its width, for pictures of 128 pixels.
SMALL_DETECTOR_CONFIG = """
_base_ = "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py"
model = dict(
    backbone=dict(widen_factor=0.25, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64),
)
"""

_SHAPES = {"bar": ((36, 56), (10, 16), (200, 40, 40)), "block": ((24, 34), (24, 34), (40, 160, 60)),
           "tower": ((10, 16), (36, 56), (50, 70, 210))}  # fmt: skip


def draw_tasks(folder: Path, count: int, seed: int = 0) -> list[dict]:
    """`count` annotated tasks whose pictures lie in `folder`, of 1 to 3 shapes each on a noisy ground."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = []
    for number in range(1, count + 1):
        picture = Image.effect_noise((IMAGE_SIZE, IMAGE_SIZE), 30).convert("RGB")
        pen = ImageDraw.Draw(picture)
        result = []
        taken: list[tuple[int, int, int, int]] = []
        for _ in range(rng.randint(1, 3)):
            name = rng.choice(LABELS)
            widths, heights, colour = _SHAPES[name]
            wide, high = rng.randint(*widths), rng.randint(*heights)
            left, top = rng.randint(0, IMAGE_SIZE - wide), rng.randint(0, IMAGE_SIZE - high)
            box = left, top, left + wide, top + high
            if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                continue
            taken.append(box)
            pen.rectangle((left, top, left + wide - 1, top + high - 1), fill=colour)
            value = {"x": left, "y": top, "width": wide, "height": high}
            result.append(
                {
                    "id": f"r{number}-{len(result)}",
                    "from_name": "label",
                    "to_name": "image",
                    "type": "rectanglelabels",
                    "original_width": IMAGE_SIZE,
                    "original_height": IMAGE_SIZE,
                    "image_rotation": 0,
                    "value": {key: 100 * each / IMAGE_SIZE for key, each in value.items()}
                    | {"rotation": 0, "rectanglelabels": [name]},
                }
            )
        picture.save(folder / f"{number}.png")
        tasks.append(
            {
                "id": number,
                "data": {"image": f"{folder.name}/{number}.png"},
                "annotations": [{"id": number, "result": result, "was_cancelled": False, "ground_truth": False}],
            }
        )
    return tasks


def write_dataset(folder: Path, count: int, seed: int = 0) -> None:
    """`shapes.json`, `shapes.xml` and `small.py` in a folder, with the pictures beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shapes.json").write_text(json.dumps(draw_tasks(folder / "shapes", count, seed)), "utf-8")
    (folder / "shapes.xml").write_text(CONFIG, "utf-8")
    (folder / "small.py").write_text(SMALL_DETECTOR_CONFIG, "utf-8")


FIT_OPTIONS = ("--with", "pretrained=false", "--with", "image_size=128", "--with", "lr=0.004")


def fit_detector(lsml, folder: Path, *options: str, output: str = "models/shapes", epochs: int = 24):
    """`lsml fit` on what `write` has written."""
    config = ("--model", "object-detector", "--with", "config_file=small.py", "--with", f"epochs={epochs}")
    where = ("--label-config", "shapes.xml", "--document-root", ".", "--output", output)
    return lsml("fit", "shapes.json", *config, *FIT_OPTIONS, *where, *options, cwd=folder, timeout=600)
