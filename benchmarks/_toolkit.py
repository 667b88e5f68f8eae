"""What the benchmarks of MMDetection and MMOCR share: models with equal weights, and the loops that everybody writes.

python benchmarks/_toolkit.py weights CONFIG SCOPE FILE                 a checkpoint that both sides load
python benchmarks/_toolkit.py learned VERSIONS FILE                     the same, of a text detector that lsml trained
python benchmarks/_toolkit.py detect TASKS ROOT OUT CONFIG CHECKPOINT   inference_detector, picture by picture
python benchmarks/_toolkit.py read TASKS ROOT OUT CONFIG CHECKPOINT CONFIG CHECKPOINT     MMOCRInferencer, the same
python benchmarks/_toolkit.py stages FOLDER CONFIG CHECKPOINT           JSON: {stage: [seconds, processor seconds]}
python benchmarks/_toolkit.py stages-of-reading FOLDER CONFIG CHECKPOINT CONFIG CHECKPOINT
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import torch

from lsml_cli.models.ocr import crops
from lsml_cli.models.ocr.components import OcrComponent
from lsml_cli.models.ocr.model import extract_lines
from lsml_cli.models.openmmlab import checkpoints, configs, image_files, inference, toolkit
from lsml_cli.runtime import available_cores

SURE = 0.3
PICTURES, PAGES = 64, 6  # that the stages are measured with
PASSES = 2  # of which the quicker counts

Costs = dict[str, tuple[float, float]]  # of each stage, see `quickest`


def weights(config: str, scope: str, file: str) -> None:
    """Random ones, as the config's own training would begin; for a detector, with biases that keep it silent."""
    torch.manual_seed(0)
    net = inference.build_model(configs.read(config, scope, "config"), scope)  # type: ignore[arg-type]
    with toolkit.default_scope(scope):  # type: ignore[arg-type]
        net.init_weights()  # type: ignore[operator]
    torch.save({"state_dict": net.state_dict(), "meta": {"dataset_meta": {"classes": coco()}}}, file)


def learned(versions: str, file: str) -> None:
    """Those of the text detector in a version, as a checkpoint that the toolkit loads, too."""
    (found,) = Path(versions).glob("*/det.safetensors")
    torch.save({"state_dict": checkpoints.load(found.parent, found.name).weights}, file)


def coco() -> tuple[str, ...]:
    toolkit.import_mmdet()
    from mmdet.evaluation import get_classes

    return tuple(get_classes("coco"))


def detect(tasks: str, root: str, out: str, config: str, checkpoint: str) -> None:
    toolkit.import_mmdet()
    from mmdet.apis import inference_detector, init_detector
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    with toolkit.suppress_output():
        model = init_detector(str(configs.find(config, "mmdet", "config")), checkpoint, device="cpu")
    answers = []
    for task in json.loads(Path(tasks).read_bytes()):
        found = inference_detector(model, path_of(task, root)).pred_instances
        found = found[found.scores >= SURE]
        answers.append(
            {
                "id": task["id"],
                "boxes": found.bboxes.tolist(),
                "labels": found.labels.tolist(),
                "scores": found.scores.tolist(),
            }
        )
    Path(out).write_text(json.dumps(answers))


def read(tasks: str, root: str, out: str, *models: str) -> None:
    toolkit.import_mmocr()
    from mmocr.apis import MMOCRInferencer

    det, det_weights, rec, rec_weights = models
    with toolkit.suppress_output():
        inferencer = MMOCRInferencer(
            det=str(configs.find(det, "mmocr", "det")),
            det_weights=det_weights,
            rec=str(configs.find(rec, "mmocr", "rec")),
            rec_weights=rec_weights,
            device="cpu",
        )
    answers = []
    for task in json.loads(Path(tasks).read_bytes()):
        try:
            with toolkit.suppress_output():
                found = inferencer(path_of(task, root))["predictions"][0]
        except cv2.error:  # of a box without an area, which costs the toolkit the whole picture
            answers.append({"id": task["id"], "texts": None})
            continue
        answers.append({"id": task["id"], "texts": found["rec_texts"], "polygons": found["det_polygons"]})
    Path(out).write_text(json.dumps(answers))


def path_of(task: dict[str, Any], root: str) -> str:
    value = str(next(iter(task["data"].values())))
    return str(Path(root) / unquote(value.partition("?d=")[2]))


def stages(folder: str, config: str, checkpoint: str) -> None:
    """Each stage alone with all cores busy; the forward pass at its quickest, of parts of 1, 4 or 8 for each core."""
    described = configs.read(config, "mmdet", "config")
    bare = inference.build_model(described, "mmdet")
    checkpoints.load_into(bare, checkpoints.read(checkpoint), model_name=config)
    net = inference.Predictor(bare, "mmdet", configs.test_pipeline(described), "cpu")
    with ThreadPoolExecutor(available_cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        _, prepared, costs = before_the_net(pool, net, some(folder, PICTURES))
    for precision in ("fp32", "bf16"):
        own = net.with_precision(precision)  # type: ignore[arg-type]
        costs[f"forward {precision}"] = quickest_part("PART", (1, 4, 8), lambda own=own: own.predict(prepared))
    tell(costs, PICTURES)


def stages_of_reading(folder: str, det: str, det_weights: str, rec: str, rec_weights: str) -> None:
    """The same for OCR: what is found in the pictures is cut out and read."""
    parts = OcrComponent("det", None, det, det_weights, False), OcrComponent("recog", None, rec, rec_weights, False)
    finder, reader = (
        inference.Predictor(part.build_model(), "mmocr", part.pipeline_steps, "cpu", fuse=part.name == "det")
        for part in parts
    )

    def cut(page: tuple[Any, Any]) -> list[Any]:
        picture, sample = page
        found = [crops.rectify(picture, line.points) for line in extract_lines(sample)]
        return [reader.prepare(crop) for crop in found if crop is not None]

    with ThreadPoolExecutor(available_cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        decoded, prepared, costs = before_the_net(pool, finder, some(folder, PAGES))
        pages = list(zip(decoded, finder.predict(prepared), strict=True))
        cuts = list(chain.from_iterable(pool.map(cut, pages)))
        costs["cut out"] = quickest(lambda: list(pool.map(cut, pages)))
    for precision in ("fp32", "bf16"):
        own = finder.with_precision(precision)  # type: ignore[arg-type]
        costs[f"find {precision}"] = quickest_part("PART", (1, 3), lambda own=own: own.predict(prepared))
    costs["read"] = quickest_part("CROPS_OF_CORE", (8, 32), lambda: reader.predict_same_shape(cuts))
    tell(costs, PAGES)


def before_the_net(
    pool: ThreadPoolExecutor, net: inference.Predictor, contents: Sequence[bytes]
) -> tuple[Any, Any, Costs]:
    """The pictures of some files, what the net takes of each, and what both cost."""
    decoded = list(pool.map(image_files.decode_image, contents))
    prepared = list(pool.map(net.prepare, decoded))
    costs = {
        "decode": quickest(lambda: list(pool.map(image_files.decode_image, contents))),
        "prepare": quickest(lambda: list(pool.map(net.prepare, decoded))),
    }
    return decoded, prepared, costs


def some(folder: str, count: int) -> list[bytes]:
    """That many pictures of a folder, from the beginning again where it has fewer."""
    found = sorted(Path(folder).rglob("*.jp*g"))
    return [path.read_bytes() for path in islice(cycle(found), count)]


def quickest_part(name: str, sizes: Sequence[int], work: Callable[[], Any]) -> tuple[float, float]:
    """Of several sizes of what a core looks at together."""
    times, before = [], getattr(inference, name)
    for size in sizes:
        setattr(inference, name, size)
        work()
        times.append(quickest(work))
    setattr(inference, name, before)
    return min(times)


def tell(costs: Costs, count: int) -> None:
    print(json.dumps({stage: [each / count for each in cost] for stage, cost in costs.items()}))


def quickest(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the machine, and processor seconds of all threads: the least of each."""
    seconds, used = [], []
    for _ in range(PASSES):
        begun, before = time.perf_counter(), time.process_time()
        work()
        seconds.append(time.perf_counter() - begun)
        used.append(time.process_time() - before)
    return min(seconds), min(used)


if __name__ == "__main__":
    globals()[sys.argv[1].replace("-", "_")](*sys.argv[2:])
