"""`lsml predict` with OCR: against the toolkit's own loop, and against the limit of the cores.

    .venvs/openmmlab/bin/python benchmarks/bulk_ocr.py [--rounds N] [--quick] [--gpu]

The pictures are those of ../shared/data/ocr/icdar2015-toy, repeated with new ids. DBNet (ResNet-18) finds what it has
just learned to find from some rendered pages, CRNN reads it with random weights: the same files of weights on both
sides. Everything is a whole process, each on a few pictures and on many: the difference is the rate, the rest the
start-up. Before each round the stages alone, with all cores busy; the limit is 1 / their sum.
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
PICTURES = bulk.DATA / "ocr" / "icdar2015-toy"
CONFIG = bulk.DATA / "exports" / "receipts.xml"
LEARNED_FROM, EPOCHS, PAGE = 16, 6, (800, 800)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="fewer pictures")
    parser.add_argument("--gpu", action="store_true", help="on cuda:0; the ops of mmcv have to be compiled for it")
    asked = parser.parse_args()
    if not PICTURES.is_dir():
        print(f"There are no pictures in {PICTURES}, so nothing is measured.")
        return
    few, more = (4, 12) if asked.quick else (6, 24)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        det, recog = str(folder / "det.pth"), str(folder / "recog.pth")
        learn_to_find(folder, det)
        subprocess.run([*bulk.TOOLKIT, "weights", RECOG, "mmocr", recog], check=True)
        models = [DET, det, RECOG, recog]

        def lsml(tasks: str, precision: str) -> list[str]:
            names = ("det_config", "det_ckpt", "recog_config", "recog_ckpt")
            given = [part for key, value in zip(names, models, strict=True) for part in ("--with", f"{key}={value}")]
            return [
                *(*bulk.LSML, "predict", tasks, "--model", "ocr", "--label-config", str(CONFIG)),
                *("--document-root", str(bulk.DATA), "--output", f"{tasks}.{precision}", "--format", "json", "--quiet"),
                *("--device", "cuda:0" if asked.gpu else "cpu", "--precision", precision, *given),
            ]

        def loop(tasks: str) -> list[str]:
            return [*bulk.TOOLKIT, "read", tasks, str(bulk.DATA), f"{tasks}.loop", *models]

        paths = tasks_of(folder, few), tasks_of(folder, few + more)
        ways = {
            "MMOCRInferencer": loop,
            "lsml, fp32": lambda tasks: lsml(tasks, "fp32"),
            "lsml, bf16": lambda tasks: lsml(tasks, "bf16"),
        }
        stages = [*bulk.TOOLKIT, "stages-of-reading", str(PICTURES), *models]
        bulk.compare(ways, paths, more, asked.rounds, stages)
        found = [json.loads(Path(f"{paths[1]}{end}").read_bytes()) for end in (".loop", ".fp32")]
        lost = sum(each["texts"] is None for each in found[0])
        places = [sum(len(each["texts"] or ()) for each in found[0]), sum(lines_of(each) for each in found[1])]
        print(f"Texts read by the loop and by lsml: {places[0]:,} ({lost} pictures lost) and {places[1]:,}.")
        peaks = {}
        for count in (12, 12 * (4 if asked.quick else 16)):
            path = tasks_of(folder, count)
            _, peaks[count] = run(lsml(path, "bf16"))
            print(f"{count:,} tasks: at most {peaks[count]:.0f} MB", flush=True)
        small, large = peaks.values()
        print(f"{max(peaks) // min(peaks)} times the tasks need {large / small:.2f} times the memory.")


def learn_to_find(folder: Path, file: str) -> None:
    """Weights of a text detector that finds the lines of a page, from pages that are rendered here."""
    pages = folder / "pages.json"
    pages.write_text(json.dumps([rendered(folder, number) for number in range(1, LEARNED_FROM + 1)]))
    given = [f"det_config={DET}", "train=detection", "pretrained=false", f"epochs={EPOCHS}", "batch_size=2"]
    subprocess.run(
        [
            *(*bulk.LSML, "fit", str(pages), "--model", "ocr", "--label-config", str(CONFIG), "--holdout", "0"),
            *("--document-root", str(folder), "--output", str(folder / "finder")),
            *(part for each in given for part in ("--with", each)),
        ],
        check=True,
    )
    subprocess.run([*bulk.TOOLKIT, "learned", str(folder / "finder"), file], check=True)


def rendered(folder: Path, number: int) -> dict[str, Any]:
    """A page of numbers in rows, as on a receipt, with a box around each; as an annotated task."""
    rng = random.Random(number)
    page = Image.new("RGB", PAGE, (rng.randint(190, 255),) * 3)
    pen, result, top = ImageDraw.Draw(page), [], 30
    while top < PAGE[1] - 70:
        font, left = ImageFont.load_default(rng.randint(16, 40)), rng.randint(10, 60)
        while left < PAGE[0] - 200:
            text = str(rng.randint(100, 99_999_999))
            box = pen.textbbox((left, top), text, font=font)
            pen.text((left, top), text, font=font, fill=(rng.randint(0, 90),) * 3)
            result += regions(box, text, str(len(result)))
            left = box[2] + rng.randint(20, 90)
        top += int(font.size * rng.uniform(1.3, 2.0))
    page.save(folder / f"{number}.png")
    return {"id": number, "data": {"ocr": f"{number}.png"}, "annotations": [{"id": number, "result": result}]}


def regions(box: tuple[float, ...], text: str, id: str) -> list[dict[str, Any]]:
    left, top, right, bottom = box
    wide, high = PAGE
    where = {
        "x": 100 * left / wide,
        "y": 100 * top / high,
        "width": 100 * (right - left) / wide,
        "height": 100 * (bottom - top) / high,
        "rotation": 0,
    }
    shared = {"id": id, "to_name": "image", "original_width": wide, "original_height": high, "image_rotation": 0}
    return [
        shared | {"from_name": "bbox", "type": "rectangle", "value": where},
        shared | {"from_name": "label", "type": "labels", "value": where | {"labels": ["Text"]}},
        shared | {"from_name": "transcription", "type": "textarea", "value": where | {"text": [text]}},
    ]


def lines_of(task: dict) -> int:
    return sum(region["type"] == "textarea" for region in task["predictions"][0]["result"])


def tasks_of(folder: Path, count: int) -> str:
    """A file of `count` tasks about the pictures, again and again."""
    pictures = sorted(path.relative_to(bulk.DATA) for path in PICTURES.rglob("*.jp*g"))
    tasks = [
        {"id": n + 1, "data": {"ocr": f"/data/local-files/?d={pictures[n % len(pictures)].as_posix()}"}}
        for n in range(count)
    ]
    path = folder / f"{count}.json"
    path.write_text(json.dumps(tasks))
    return str(path)


if __name__ == "__main__":
    main()
