"""Shared by the benchmarks of MMDetection and MMOCR: models with equal weights, and the obvious loops.

python benchmarks/_toolkit.py weights CONFIG SCOPE FILE                 a checkpoint that both sides load
python benchmarks/_toolkit.py trained-weights VERSIONS FILE             the same for a text detector that lsml trained
python benchmarks/_toolkit.py detect TASKS ROOT OUT CONFIG CHECKPOINT   inference_detector, image by image
python benchmarks/_toolkit.py read TASKS ROOT OUT CONFIG CHECKPOINT CONFIG CHECKPOINT   MMOCRInferencer, the same
python benchmarks/_toolkit.py stages FOLDER CONFIG CHECKPOINT           JSON: {stage: [seconds, processor seconds]}
python benchmarks/_toolkit.py ocr-stages FOLDER CONFIG CHECKPOINT CONFIG CHECKPOINT
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
from lsml_cli.models.ocr.postprocess import extract_lines
from lsml_cli.models.openmmlab import checkpoints, configs, image_files, inference, toolkit
from lsml_cli.runtime import available_cores

MIN_SCORE = 0.3
IMAGES, PAGES = 64, 6  # with which the stages are measured
PASSES = 2  # the faster one counts

Costs = dict[str, tuple[float, float]]  # by stage, see `quickest`


def weights(config: str, scope: str, file: str) -> None:
    """Write random weights, as training would start from; biases of a detector keep its scores low."""
    torch.manual_seed(0)
    net = inference.build_model(configs.read(config, scope, "config"), scope)  # type: ignore[arg-type]
    with toolkit.default_scope(scope):  # type: ignore[arg-type]
        net.init_weights()  # type: ignore[operator]
    torch.save({"state_dict": net.state_dict(), "meta": {"dataset_meta": {"classes": coco()}}}, file)


def trained_weights(versions: str, file: str) -> None:
    """Write the weights of the text detector in a version as a checkpoint that the toolkit can load."""
    (path,) = Path(versions).glob("*/det.safetensors")
    torch.save({"state_dict": checkpoints.load(path.parent, path.name).weights}, file)


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
        instances = inference_detector(model, path_of(task, root)).pred_instances
        instances = instances[instances.scores >= MIN_SCORE]
        answers.append(
            {
                "id": task["id"],
                "boxes": instances.bboxes.tolist(),
                "labels": instances.labels.tolist(),
                "scores": instances.scores.tolist(),
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
                page = inferencer(path_of(task, root))["predictions"][0]
        except cv2.error:  # a box without area costs the toolkit the full image
            answers.append({"id": task["id"], "texts": None})
            continue
        answers.append({"id": task["id"], "texts": page["rec_texts"], "polygons": page["det_polygons"]})
    Path(out).write_text(json.dumps(answers))


def path_of(task: dict[str, Any], root: str) -> str:
    value = str(next(iter(task["data"].values())))
    return str(Path(root) / unquote(value.partition("?d=")[2]))


def stages(folder: str, config: str, checkpoint: str) -> None:
    """Measure each stage alone with all cores busy; the forward pass with the fastest of several chunk sizes."""
    model_config = configs.read(config, "mmdet", "config")
    model = inference.build_model(model_config, "mmdet")
    checkpoints.load_into(model, checkpoints.read(checkpoint), model_name=config)
    net = inference.Predictor(model, "mmdet", configs.test_pipeline(model_config), "cpu")
    with ThreadPoolExecutor(available_cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        _, prepared, costs = prepare_images(pool, net, read_images(folder, IMAGES))
    for precision in ("fp32", "bf16"):
        predictor = net.with_precision(precision)  # type: ignore[arg-type]
        costs[f"forward {precision}"] = quickest_chunk_size(
            "CPU_CHUNK_SIZE", (1, 4, 8), lambda predictor=predictor: predictor.predict(prepared)
        )
    print_costs(costs, IMAGES)


def ocr_stages(folder: str, det: str, det_weights: str, rec: str, rec_weights: str) -> None:
    """Measure the stages of OCR: the text found in the images is cropped and read."""
    components = (
        OcrComponent("det", None, det, det_weights, False),
        OcrComponent("recog", None, rec, rec_weights, False),
    )
    detector, recognizer = (
        inference.Predictor(
            component.build_model(), "mmocr", component.pipeline_steps, "cpu", fuse=component.name == "det"
        )
        for component in components
    )

    def cut(page: tuple[Any, Any]) -> list[Any]:
        image, sample = page
        text_crops = [crops.rectify(image, line.points) for line in extract_lines(sample)]
        return [recognizer.prepare(crop) for crop in text_crops if crop is not None]

    with ThreadPoolExecutor(available_cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        decoded, prepared, costs = prepare_images(pool, detector, read_images(folder, PAGES))
        pages = list(zip(decoded, detector.predict(prepared), strict=True))
        cuts = list(chain.from_iterable(pool.map(cut, pages)))
        costs["cut out"] = quickest(lambda: list(pool.map(cut, pages)))
    for precision in ("fp32", "bf16"):
        predictor = detector.with_precision(precision)  # type: ignore[arg-type]
        costs[f"find {precision}"] = quickest_chunk_size(
            "CPU_CHUNK_SIZE", (1, 3), lambda predictor=predictor: predictor.predict(prepared)
        )
    costs["read"] = quickest_chunk_size(
        "CROP_BATCH_SIZE_PER_CORE", (8, 32), lambda: recognizer.predict_same_shape(cuts)
    )
    print_costs(costs, PAGES)


def prepare_images(
    pool: ThreadPoolExecutor, net: inference.Predictor, contents: Sequence[bytes]
) -> tuple[Any, Any, Costs]:
    """Return the decoded images, the inputs of the model, and what both cost."""
    decoded = list(pool.map(image_files.decode_image, contents))
    prepared = list(pool.map(net.prepare, decoded))
    costs = {
        "decode": quickest(lambda: list(pool.map(image_files.decode_image, contents))),
        "prepare": quickest(lambda: list(pool.map(net.prepare, decoded))),
    }
    return decoded, prepared, costs


def read_images(folder: str, count: int) -> list[bytes]:
    """Return that many images of a folder, repeated if it has fewer."""
    paths = sorted(Path(folder).rglob("*.jp*g"))
    return [path.read_bytes() for path in islice(cycle(paths), count)]


def quickest_chunk_size(name: str, sizes: Sequence[int], work: Callable[[], Any]) -> tuple[float, float]:
    """Measure work with several values of a constant of `inference`; the fastest counts."""
    times, before = [], getattr(inference, name)
    for size in sizes:
        setattr(inference, name, size)
        work()
        times.append(quickest(work))
    setattr(inference, name, before)
    return min(times)


def print_costs(costs: Costs, count: int) -> None:
    print(json.dumps({stage: [seconds / count for seconds in cost] for stage, cost in costs.items()}))


def quickest(work: Callable[[], Any]) -> tuple[float, float]:
    """Return wall seconds and processor seconds of all threads, the lowest of each."""
    seconds, used = [], []
    for _ in range(PASSES):
        started_at, before = time.perf_counter(), time.process_time()
        work()
        seconds.append(time.perf_counter() - started_at)
        used.append(time.process_time() - before)
    return min(seconds), min(used)


if __name__ == "__main__":
    globals()[sys.argv[1].replace("-", "_")](*sys.argv[2:])
