"""What each stage of predicting a picture costs alone, with all cores busy and nothing of lsml's pipeline around it.

python benchmarks/_picture_stages.py FOLDER ARCH DEVICE     prints JSON:
{stage: [seconds of the machine, processor seconds] per picture}

The limit of a run is made of these. So the forward pass counts at its quickest: of one batch of 32 that all cores
share, and of a batch of 4, 8 or 32 for each core.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torchvision.transforms.v2 import functional

from lsml_cli.runtime import available_cores

PICTURES = 192  # that are decoded
LOOKED_AT = 64  # that go through the net, for each way to do that
BATCH = 32  # pictures; a GPU gets GPU_BATCH
GPU_BATCH = 256
PASSES = 2  # of which the quicker counts

Cost = tuple[float, float]  # seconds of the machine, processor seconds


def main(folder: str, arch: str, device: str) -> None:
    found = sorted(path for path in Path(folder).rglob("*.jpg"))
    contents = [path.read_bytes() for path in islice(cycle(found), PICTURES)]
    preset = torchvision.models.get_model_weights(arch).DEFAULT.transforms()

    def decode(content: bytes) -> Image.Image:
        return Image.open(io.BytesIO(content)).convert("RGB")

    def cut(picture: Image.Image) -> Any:
        small = functional.resize(picture, preset.resize_size, preset.interpolation, antialias=True)
        return functional.pil_to_tensor(functional.center_crop(small, preset.crop_size))

    def normalise(pixels: torch.Tensor) -> torch.Tensor:
        return functional.normalize(functional.to_dtype(pixels, torch.float32, scale=True), preset.mean, preset.std)

    costs: dict[str, Cost] = {}
    with ThreadPoolExecutor(available_cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:

        def timed(stage: str, work: Callable[[Any], Any], items: list[Any]) -> list[Any]:
            done = list(pool.map(work, items))  # once unmeasured
            costs[stage] = quickest([cost(lambda: list(pool.map(work, items))) for _ in range(PASSES)], len(items))
            return done

        pictures = timed("decode", decode, contents)
        pixels = timed("resize and crop", cut, pictures)
        ready = timed("normalise", normalise, pixels)
        costs |= on_gpu(arch, device, ready) if device.startswith("cuda") else on_cpu(arch, ready, pool)
    print(json.dumps(costs))


def on_cpu(arch: str, ready: list[torch.Tensor], pool: ThreadPoolExecutor) -> dict[str, Cost]:
    net = torchvision.models.get_model(arch, weights=None, num_classes=2).eval()
    net.to(memory_format=torch.channels_last)
    looked_at = torch.stack(ready[:LOOKED_AT]).contiguous(memory_format=torch.channels_last)
    torch.set_num_threads(available_cores())  # of this thread

    def forward(batches: Iterable[torch.Tensor], own_cores: bool, bf16: bool) -> None:
        def look(batch: torch.Tensor) -> None:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                net(batch)

        list(pool.map(look, batches) if own_cores else map(look, batches))

    costs = {}
    for precision in ("fp32", "bf16"):
        times = []
        for size, own_cores in ((BATCH, False), (4, True), (8, True), (BATCH, True)):
            work = lambda size=size, own=own_cores: forward(looked_at.split(size), own, precision == "bf16")  # noqa: B023, E731
            work()
            times += [cost(work) for _ in range(PASSES)]
        costs[f"forward {precision}"] = quickest(times, LOOKED_AT)
    return costs


def on_gpu(arch: str, device: str, ready: list[torch.Tensor]) -> dict[str, Cost]:
    """With the pictures on the device already, which is more than any pipeline can hope for."""
    net = torchvision.models.get_model(arch, weights=None, num_classes=2).eval().to(device)
    net.to(memory_format=torch.channels_last)
    batch = torch.stack(list(islice(cycle(ready), GPU_BATCH))).to(device, memory_format=torch.channels_last)

    def look() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16):
            for _ in range(10):
                net(batch)
        torch.cuda.synchronize()

    look()
    return {"forward fp16": quickest([cost(look) for _ in range(3)], 10 * GPU_BATCH)}


def cost(work: Callable[[], Any]) -> Cost:
    """Seconds of the machine, and processor seconds of all threads."""
    begun, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun, time.process_time() - used


def quickest(costs: list[Cost], pictures: int) -> Cost:
    """The least of each, per picture."""
    return min(each[0] for each in costs) / pictures, min(each[1] for each in costs) / pictures


if __name__ == "__main__":
    main(*sys.argv[1:])
