"""Measure each stage of predicting an image alone, with all cores busy and without lsml's pipeline.

python benchmarks/_image_stages.py FOLDER ARCH DEVICE     prints JSON:
{stage: [wall seconds, processor seconds] per image}

These set the limit of a run, so the fastest forward pass counts: one batch of 32 that all cores share, or a batch of 4,
8 or 32 per core.
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

NUM_DECODED = 192  # images
NUM_FORWARD = 64  # images for each way to run the network
BATCH = 32  # images; GPU_BATCH on a GPU
GPU_BATCH = 256
PASSES = 2  # the faster one counts

Cost = tuple[float, float]  # wall seconds, processor seconds


def main(folder: str, arch: str, device: str) -> None:
    paths = sorted(path for path in Path(folder).rglob("*.jpg"))
    contents = [path.read_bytes() for path in islice(cycle(paths), NUM_DECODED)]
    preset = torchvision.models.get_model_weights(arch).DEFAULT.transforms()

    def decode(content: bytes) -> Image.Image:
        return Image.open(io.BytesIO(content)).convert("RGB")

    def resize_and_crop(image: Image.Image) -> Any:
        small = functional.resize(image, preset.resize_size, preset.interpolation, antialias=True)
        return functional.pil_to_tensor(functional.center_crop(small, preset.crop_size))

    def normalize(pixels: torch.Tensor) -> torch.Tensor:
        return functional.normalize(functional.to_dtype(pixels, torch.float32, scale=True), preset.mean, preset.std)

    costs: dict[str, Cost] = {}
    with ThreadPoolExecutor(available_cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:

        def timed(stage: str, work: Callable[[Any], Any], items: list[Any]) -> list[Any]:
            results = list(pool.map(work, items))  # warm up
            costs[stage] = quickest([cost(lambda: list(pool.map(work, items))) for _ in range(PASSES)], len(items))
            return results

        images = timed("decode", decode, contents)
        pixels = timed("resize and crop", resize_and_crop, images)
        inputs = timed("normalize", normalize, pixels)
        costs |= on_gpu(arch, device, inputs) if device.startswith("cuda") else on_cpu(arch, inputs, pool)
    print(json.dumps(costs))


def on_cpu(arch: str, inputs: list[torch.Tensor], pool: ThreadPoolExecutor) -> dict[str, Cost]:
    net = torchvision.models.get_model(arch, weights=None, num_classes=2).eval()
    net.to(memory_format=torch.channels_last)
    images = torch.stack(inputs[:NUM_FORWARD]).contiguous(memory_format=torch.channels_last)
    torch.set_num_threads(available_cores())  # of the calling thread

    def forward(batches: Iterable[torch.Tensor], own_cores: bool, bf16: bool) -> None:
        def run(batch: torch.Tensor) -> None:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                net(batch)

        list(pool.map(run, batches) if own_cores else map(run, batches))

    costs = {}
    for precision in ("fp32", "bf16"):
        times = []
        for size, own_cores in ((BATCH, False), (4, True), (8, True), (BATCH, True)):
            work = lambda size=size, own=own_cores: forward(images.split(size), own, precision == "bf16")  # noqa: B023, E731
            work()
            times += [cost(work) for _ in range(PASSES)]
        costs[f"forward {precision}"] = quickest(times, NUM_FORWARD)
    return costs


def on_gpu(arch: str, device: str, inputs: list[torch.Tensor]) -> dict[str, Cost]:
    """Measure with the images on the device already, which no pipeline can reach."""
    net = torchvision.models.get_model(arch, weights=None, num_classes=2).eval().to(device)
    net.to(memory_format=torch.channels_last)
    batch = torch.stack(list(islice(cycle(inputs), GPU_BATCH))).to(device, memory_format=torch.channels_last)

    def run() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16):
            for _ in range(10):
                net(batch)
        torch.cuda.synchronize()

    run()
    return {"forward fp16": quickest([cost(run) for _ in range(3)], 10 * GPU_BATCH)}


def cost(work: Callable[[], Any]) -> Cost:
    """Return wall seconds and processor seconds of all threads."""
    started_at, used_before = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started_at, time.process_time() - used_before


def quickest(costs: list[Cost], num_images: int) -> Cost:
    """Return the lowest of each, per image."""
    return min(wall for wall, _ in costs) / num_images, min(processor for _, processor in costs) / num_images


if __name__ == "__main__":
    main(*sys.argv[1:])
