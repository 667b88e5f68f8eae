"""Compare `lsml predict` with OCR with the toolkit's own loop and with the limit of the cores.

    .venvs/openmmlab/bin/python benchmarks/bulk_ocr.py [--rounds N] [--quick] [--gpu]

The images are those of ../shared/data/ocr/icdar2015-toy, repeated with new ids. DBNet (ResNet-18) is trained first on
some rendered pages, CRNN has random weights; both sides use the same weights. Each run is a process of its own, on a
few images and on many: their difference gives the rate without the start-up. Before each round the stages are measured
alone, with all cores busy; the limit is 1 / their sum.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import bulk_detection as bulk
from _measure import run
from PIL import Image, ImageDraw, ImageFont

DET, RECOG = "dbnet_resnet18_fpnc_1200e_icdar2015", "crnn_mini-vgg_5e_mj"
IMAGES = bulk.DATA / "ocr" / "icdar2015-toy"
CONFIG = bulk.DATA / "exports" / "receipts.xml"
TRAINING_PAGES, EPOCHS, PAGE_SIZE = 16, 6, (800, 800)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="fewer images")
    parser.add_argument("--gpu", action="store_true", help="on cuda:0; the ops of mmcv have to be compiled for it")
    options = parser.parse_args()
    if not IMAGES.is_dir():
        print(f"There are no images in {IMAGES}, so nothing is measured.")
        return
    few, more = (4, 12) if options.quick else (6, 24)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        det, recog = str(folder / "det.pth"), str(folder / "recog.pth")
        train_detector(folder, det)
        subprocess.run([*bulk.TOOLKIT, "weights", RECOG, "mmocr", recog], check=True)
        models = [DET, det, RECOG, recog]

        def lsml(tasks: str, precision: str) -> list[str]:
            names = ("det_config", "det_ckpt", "recog_config", "recog_ckpt")
            params = [part for key, value in zip(names, models, strict=True) for part in ("--with", f"{key}={value}")]
            return [
                *(*bulk.LSML, "predict", tasks, "--model", "ocr", "--label-config", str(CONFIG)),
                *("--document-root", str(bulk.DATA), "--output", f"{tasks}.{precision}", "--format", "json", "--quiet"),
                *("--device", "cuda:0" if options.gpu else "cpu", "--precision", precision, *params),
            ]

        def loop(tasks: str) -> list[str]:
            return [*bulk.TOOLKIT, "read", tasks, str(bulk.DATA), f"{tasks}.loop", *models]

        paths = tasks_of(folder, few), tasks_of(folder, few + more)
        ways = {
            "MMOCRInferencer": loop,
            "lsml, fp32": lambda tasks: lsml(tasks, "fp32"),
            "lsml, bf16": lambda tasks: lsml(tasks, "bf16"),
        }
        stages = [*bulk.TOOLKIT, "ocr-stages", str(IMAGES), *models]
        bulk.compare(ways, paths, more, options.rounds, stages)
        loop_pages, lsml_tasks = (json.loads(Path(f"{paths[1]}{end}").read_bytes()) for end in (".loop", ".fp32"))
        num_failed = sum(page["texts"] is None for page in loop_pages)
        loop_texts = sum(len(page["texts"] or ()) for page in loop_pages)
        lsml_texts = sum(count_texts(task) for task in lsml_tasks)
        print(f"Texts read by the loop and by lsml: {loop_texts:,} ({num_failed} images failed) and {lsml_texts:,}.")
        peaks = {}
        for count in (12, 12 * (4 if options.quick else 16)):
            path = tasks_of(folder, count)
            _, peaks[count] = run(lsml(path, "bf16"))
            print(f"{count:,} tasks: at most {peaks[count]:.0f} MB", flush=True)
        small, large = peaks.values()
        print(f"{max(peaks) // min(peaks)} times the tasks need {large / small:.2f} times the memory.")


def train_detector(folder: Path, file: str) -> None:
    """Train a text detector on rendered pages, and write its weights."""
    pages = folder / "pages.json"
    pages.write_text(json.dumps([render_page(folder, number) for number in range(1, TRAINING_PAGES + 1)]))
    params = [f"det_config={DET}", "train=detection", "pretrained=false", f"epochs={EPOCHS}", "batch_size=2"]
    subprocess.run(
        [
            *(*bulk.LSML, "fit", str(pages), "--model", "ocr", "--label-config", str(CONFIG), "--holdout", "0"),
            *("--document-root", str(folder), "--output", str(folder / "detector")),
            *(part for param in params for part in ("--with", param)),
        ],
        check=True,
    )
    subprocess.run([*bulk.TOOLKIT, "trained-weights", str(folder / "detector"), file], check=True)


def render_page(folder: Path, number: int) -> dict[str, Any]:
    """Render a page of numbers in rows, as on a receipt; return an annotated task with a box around each."""
    rng = random.Random(number)
    page = Image.new("RGB", PAGE_SIZE, (rng.randint(190, 255),) * 3)
    canvas, result, top = ImageDraw.Draw(page), [], 30
    while top < PAGE_SIZE[1] - 70:
        font, left = ImageFont.load_default(rng.randint(16, 40)), rng.randint(10, 60)
        while left < PAGE_SIZE[0] - 200:
            text = str(rng.randint(100, 99_999_999))
            box = canvas.textbbox((left, top), text, font=font)
            canvas.text((left, top), text, font=font, fill=(rng.randint(0, 90),) * 3)
            result += regions(box, text, str(len(result)))
            left = box[2] + rng.randint(20, 90)
        top += int(font.size * rng.uniform(1.3, 2.0))
    page.save(folder / f"{number}.png")
    return {"id": number, "data": {"ocr": f"{number}.png"}, "annotations": [{"id": number, "result": result}]}


def regions(box: tuple[float, ...], text: str, id: str) -> list[dict[str, Any]]:
    left, top, right, bottom = box
    page_width, page_height = PAGE_SIZE
    box_percent = {
        "x": 100 * left / page_width,
        "y": 100 * top / page_height,
        "width": 100 * (right - left) / page_width,
        "height": 100 * (bottom - top) / page_height,
        "rotation": 0,
    }
    shared = {
        "id": id,
        "to_name": "image",
        "original_width": page_width,
        "original_height": page_height,
        "image_rotation": 0,
    }
    return [
        shared | {"from_name": "bbox", "type": "rectangle", "value": box_percent},
        shared | {"from_name": "label", "type": "labels", "value": box_percent | {"labels": ["Text"]}},
        shared | {"from_name": "transcription", "type": "textarea", "value": box_percent | {"text": [text]}},
    ]


def count_texts(task: dict[str, Any]) -> int:
    return sum(region["type"] == "textarea" for region in task["predictions"][0]["result"])


def tasks_of(folder: Path, count: int) -> str:
    """Write a file of `count` tasks about the images, repeated."""
    images = sorted(path.relative_to(bulk.DATA) for path in IMAGES.rglob("*.jp*g"))
    tasks = [
        {"id": n + 1, "data": {"ocr": f"/data/local-files/?d={images[n % len(images)].as_posix()}"}}
        for n in range(count)
    ]
    path = folder / f"{count}.json"
    path.write_text(json.dumps(tasks))
    return str(path)


if __name__ == "__main__":
    main()
