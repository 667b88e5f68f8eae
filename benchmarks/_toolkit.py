"""What the benchmarks of MMDetection and MMOCR share: models with equal weights, and the loops that everybody writes.

python benchmarks/_toolkit.py weights CONFIG SCOPE FILE                  a checkpoint that both sides load
python benchmarks/_toolkit.py detect TASKS ROOT OUT CONFIG CHECKPOINT    inference_detector, picture by picture
python benchmarks/_toolkit.py read TASKS ROOT OUT CONFIG CHECKPOINT CONFIG CHECKPOINT     MMOCRInferencer, the same
python benchmarks/_toolkit.py stages FOLDER CONFIG CHECKPOINT            JSON: {stage: [seconds, processor seconds]}
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import torch

from lsml_cli.models.openmmlab import checkpoints, configs, looking, pictures, toolkit
from lsml_cli.replica import cores

SURE = 0.3
FOUND = 0.05  # of the pixels
PICTURES = 64
PASSES = 2  # of which the quicker counts


def weights(config: str, scope: str, file: str, folder: str = "") -> None:
    """As the config's own training would begin: random ones, with the biases that keep a detector silent.

    folder  of pictures: DBNet's bias is moved until it takes `FOUND` of their pixels for text
    """
    torch.manual_seed(0)
    described = configs.read(config, scope, "config")  # type: ignore[arg-type]
    net = looking.build(described, scope)  # type: ignore[arg-type]
    with toolkit.scope_of(scope):  # type: ignore[arg-type]
        net.init_weights()  # type: ignore[operator]
    if folder:
        logits = []
        end = [each for each in net.det_head.binarize if isinstance(each, torch.nn.ConvTranspose2d)][-1]  # type: ignore
        end.register_forward_hook(lambda module, given, found: logits.append(found.flatten()))
        eye = looking.Net(net, scope, configs.test_pipeline(described), "cpu", fuse=False)  # type: ignore[arg-type]
        for path in sorted(Path(folder).rglob("*.jp*g"))[:4]:
            eye.found([eye.prepare(pictures.pixels(path.read_bytes()))])
        level = torch.cat([each[::16] for each in logits]).quantile(1 - FOUND)
        with torch.no_grad():
            end.bias -= level - torch.logit(torch.tensor(SURE))
    torch.save({"state_dict": net.state_dict(), "meta": {"dataset_meta": {"classes": coco()}}}, file)


def coco() -> tuple[str, ...]:
    toolkit.mmdet()
    from mmdet.evaluation import get_classes

    return tuple(get_classes("coco"))


def detect(tasks: str, root: str, out: str, config: str, checkpoint: str) -> None:
    toolkit.mmdet()
    from mmdet.apis import inference_detector, init_detector
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    with toolkit.quiet():
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
    toolkit.mmocr()
    from mmocr.apis import MMOCRInferencer

    det, det_weights, rec, rec_weights = models
    with toolkit.quiet():
        inferencer = MMOCRInferencer(
            det=str(configs.find(det, "mmocr", "det")),
            det_weights=det_weights,
            rec=str(configs.find(rec, "mmocr", "rec")),
            rec_weights=rec_weights,
            device="cpu",
        )
    answers = []
    for task in json.loads(Path(tasks).read_bytes()):
        with toolkit.quiet():
            found = inferencer(path_of(task, root))["predictions"][0]
        answers.append({"id": task["id"], "texts": found["rec_texts"], "polygons": found["det_polygons"]})
    Path(out).write_text(json.dumps(answers))


def path_of(task: dict[str, Any], root: str) -> str:
    value = str(next(iter(task["data"].values())))
    return str(Path(root) / unquote(value.partition("?d=")[2]))


def stages(folder: str, config: str, checkpoint: str) -> None:
    """Each stage alone with all cores busy; the forward pass at its quickest, of parts of 1, 4 or 8 for each core."""
    found = sorted(path for path in Path(folder).rglob("*.jp*g"))
    contents = [path.read_bytes() for path in islice(cycle(found), PICTURES)]
    described = configs.read(config, "mmdet", "config")
    bare = looking.build(described, "mmdet")
    checkpoints.fill(bare, checkpoints.read(checkpoint), what=config)
    net = looking.Net(bare, "mmdet", configs.test_pipeline(described), "cpu")
    costs = {}
    with ThreadPoolExecutor(cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        decoded = list(pool.map(pictures.pixels, contents))
        costs["decode"] = quickest(lambda: list(pool.map(pictures.pixels, contents)))
        prepared = list(pool.map(net.prepare, decoded))
        costs["prepare"] = quickest(lambda: list(pool.map(net.prepare, decoded)))
    for precision in ("fp32", "bf16"):
        own = net.with_precision(precision)  # type: ignore[arg-type]
        times = []
        for part in (1, 4, 8):
            looking.PART = part
            own.found(prepared)
            times.append(quickest(lambda own=own: own.found(prepared)))
        costs[f"forward {precision}"] = min(times)
    print(json.dumps({stage: [each / PICTURES for each in cost] for stage, cost in costs.items()}))


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
    dict(weights=weights, detect=detect, read=read, stages=stages)[sys.argv[1]](*sys.argv[2:])  # type: ignore[operator]
