"""Measure time and memory of `lsml convert` to COCO, against the converter of label-studio-sdk.

    python benchmarks/convert.py [--tasks 200000] [--rounds 1]

Predictions are written as results, which pycocotools then loads, for a tenth of the tasks and for all. The converter of
label-studio-sdk writes annotations only, and holds them all: it gets a tenth of the tasks, with the same boxes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import shutil
import sys
import tempfile
from pathlib import Path

import orjson
from _measure import rounds, run
from pycocotools.coco import COCO

FEWER = 10  # times fewer tasks
BOXES = 3  # of an image
CLASSES = ("person", "car", "bus")
CONFIG = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">'
    + "".join(f'<Label value="{name}"/>' for name in CLASSES)
    + "</RectangleLabels></View>"
)
SDK = """
import sys
from label_studio_sdk.converter.converter import Converter
config, tasks, folder = sys.argv[1:]
Converter(config, folder, download_resources=False).convert_to_coco(tasks, folder, is_dir=False)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.xml").write_text(CONFIG)
        few = write_tasks(folder / "few.json", options.tasks // FEWER)
        many = write_tasks(folder / "many.json", options.tasks)
        measurements = rounds(
            {
                f"lsml, results, {options.tasks // FEWER:,}": lambda: convert(few, "predictions"),
                f"lsml, results, {options.tasks:,}": lambda: convert(many, "predictions"),
                f"lsml, annotations, {options.tasks // FEWER:,}": lambda: convert(few, "annotations"),
                f"label-studio-sdk, annotations, {options.tasks // FEWER:,}": lambda: convert_with_sdk(few),
            },
            options.rounds,
        )
        convert(many, "predictions")
        with contextlib.redirect_stdout(io.StringIO()):
            results = COCO(str(folder / "out/annotations.json")).loadRes(str(folder / "out/results.json"))
    print()
    for measurement in measurements.values():
        print(f"{measurement.name:44}{measurement.spread()}, at most {measurement.peak:.0f} MB")
    first, second, lsml, sdk = measurements.values()
    print(f"{FEWER} times the tasks need {second.peak / first.peak:.2f} times the memory.")
    print(
        f"Annotations take {lsml.mean / sdk.mean:.2f} of the SDK's time and {lsml.peak / sdk.peak:.2f} of its memory."
    )
    print(f"pycocotools loads {len(results.anns):,} results of {len(results.imgs):,} images.")


def write_tasks(path: Path, count: int) -> Path:
    """Write tasks with a prediction and an annotation of the same boxes."""
    rng = random.Random(0)
    with path.open("wb") as file:
        file.write(b"[")
        for number in range(count):
            regions = [make_box(rng, f"{number}-{i}") for i in range(BOXES)]
            task = {
                "id": number + 1,
                "data": {"image": f"/data/local-files/?d=images/{number // 1000}/{number}.jpg"},
                "annotations": [{"id": number + 1, "completed_by": 1, "result": regions}],
                "predictions": [{"model_version": "benchmark", "score": 0.5, "result": regions}],
            }
            file.write((b",\n" if number else b"\n") + orjson.dumps(task))
        file.write(b"\n]\n")
    return path


def make_box(rng: random.Random, id: str) -> dict[str, object]:
    value = {"x": rng.uniform(0, 60), "y": rng.uniform(0, 60), "width": 20.0, "height": 30.0, "rotation": 0}
    return {
        "id": id,
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": 640,
        "original_height": 480,
        "image_rotation": 0,
        "score": round(rng.random(), 4),
        "value": {**value, "rectanglelabels": [rng.choice(CLASSES)]},
    }


def convert(tasks: Path, what: str) -> tuple[float, float]:
    folder = tasks.with_name("out")
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "lsml_cli", "convert", str(tasks), "--to", "coco", "--what", what]
    return run([*command, "-c", str(tasks.with_name("config.xml")), "-o", str(folder), "--quiet"])


def convert_with_sdk(tasks: Path) -> tuple[float, float]:
    folder = tasks.with_name("sdk")
    shutil.rmtree(folder, ignore_errors=True)
    return run([sys.executable, "-c", SDK, str(tasks.with_name("config.xml")), str(tasks), str(folder)])


if __name__ == "__main__":
    main()
