"""Batches of pictures through a toolkit's model on a device, as quickly as the device can."""

from __future__ import annotations

import copy
import importlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, groupby
from operator import itemgetter
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import ModelError
from lsml_cli.models.openmmlab import configs, toolkit
from lsml_cli.models.openmmlab.image_files import IMAGE_LOADER, register_modules
from lsml_cli.models.openmmlab.toolkit import Scope
from lsml_cli.models.torch_runtime import Precision, autocast, lower_precisions, map_batch_chunks
from lsml_cli.runtime import available_cores

if TYPE_CHECKING:
    from torch import nn

    from lsml_cli.models.openmmlab.image_files import ImageArray

Input = Mapping[str, Any]  # of the toolkit: the picture as a tensor, and what was done to it

CPU_CHUNK_SIZE = 4  # pictures that a core of a CPU looks at together
CROP_BATCH_SIZE, CROP_BATCH_SIZE_PER_CORE = (
    64,
    8,
)  # small pictures of one shape that a device, and a core of a CPU, looks at together
# What computes in a lower precision; what comes out of it is fp32 again, for everything that counts and compares.
_LOW_PRECISION_MODULES = frozenset({"backbone", "neck", "bbox_head", "rpn_head", "mask_head", "det_head", "encoder"})
_MAX_TIMED_RUNS = 3  # timed batches; the quickest counts, since anything else on the machine only slows them down
_TIMING_BUDGET = 1.0  # seconds after which no further batch is timed
MIN_SPEEDUP = 1.1  # times as quick as fp32 that a lower precision has to be
MIN_RELATIVE_RATE = 0.97  # of the best rate: the smallest batch that reaches it is taken
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


def build_model(config: configs.Config, scope: Scope) -> nn.Module:
    """The model of a config with random weights, the same every time; nothing is fetched."""
    import torch

    with toolkit.default_scope(scope), torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        from mmengine.config import ConfigDict
        from mmengine.model import revert_sync_batchnorm

        described = configs.without_pretrained(config["model"])
        try:
            registry = importlib.import_module(f"{scope}.registry").MODELS
            net: nn.Module = revert_sync_batchnorm(registry.build(ConfigDict(described)))
        except Exception as error:  # a config may ask for anything
            raise ModelError(f"The model of this config cannot be built: {type(error).__name__}: {error}.") from error
    return net


class Predictor:
    """A model on a device, ready to look at pictures.

    scope      the toolkit that it is of
    steps      what is done to a picture before, without loading it; see `configs.test_pipeline`
    device     "cpu", "cuda:0"
    precision  of what computes most: "bf16" and "fp16" by autocast, which keeps in fp32 what needs it
    """

    def __init__(
        self,
        net: nn.Module,
        scope: Scope,
        pipeline_steps: Sequence[Mapping[str, Any]],
        device: str,
        precision: Precision = "fp32",
        *,
        fuse: bool = True,
    ) -> None:
        import torch

        self.device = torch.device(device)
        self.precision = precision
        self._scope, self._pipeline_steps = scope, pipeline_steps
        self._net = net.to(self.device).eval()
        if fuse:
            _fuse_conv_bn(self._net)
        self._copies: SimpleQueue[nn.Module] = SimpleQueue()
        lanes = available_cores() if self.device.type == "cpu" else 1
        for _ in range(lanes):  # a model may keep notes while it works; the weights are shared
            self._copies.put(_with_autocast(_copy_sharing_weights(self._net), self.device.type, precision))
        register_modules()
        with toolkit.default_scope(scope):
            from mmengine.dataset import Compose

            self._pipeline = Compose(
                [_loading_step(step) if configs.is_loading_step(step) else dict(step) for step in pipeline_steps]
            )
        self._thread_local = threading.local()

    def prepare(self, image: ImageArray) -> Input:
        """(H, W, 3), blue, green, red -> what the model takes. Called in many threads at a time."""
        if not hasattr(
            self._thread_local, "pipeline"
        ):  # a step may write down what it does to this picture, and go by that
            self._thread_local.pipeline = copy.deepcopy(self._pipeline)
        prepared: Input = self._thread_local.pipeline({"img": image, "img_path": "", "img_id": 0})
        return prepared

    def predict(self, batch: Sequence[Input], postprocess: Callable[[Any], Any] | None = None) -> list[Any]:
        """n inputs -> n data samples of the toolkit, in order; or what `keep` makes of each, as soon as it is there.

        A sample's masks are a byte for each pixel of the picture, a hundred of them: gigabytes for a batch.

        Pictures of one shape go together, since others are filled up to the largest. On a CPU each part of a batch has
        a core of its own; see `pytorch.in_lanes`.
        """
        if not batch:
            return []
        order = sorted(range(len(batch)), key=lambda i: tuple(batch[i]["inputs"].shape))
        ordered = [batch[i] for i in order]

        def look(part: Sequence[Input]) -> list[Any]:
            samples = self._run_batch(part)
            return samples if postprocess is None else [postprocess(each) for each in samples]

        parts = [look(ordered)] if self.device.type != "cpu" else map_batch_chunks(ordered, CPU_CHUNK_SIZE, look)
        found: list[Any] = [None] * len(batch)
        for i, sample in zip(order, chain.from_iterable(parts), strict=True):
            found[i] = sample
        return found

    def predict_same_shape(self, batch: Sequence[Input]) -> list[Any]:
        """Like `found`, but nothing is filled up: only what has one shape goes together, so that no result depends on
        what else there is. For crops, which are small and many."""
        on_cpu = self.device.type == "cpu"
        order = sorted(range(len(batch)), key=lambda i: tuple(batch[i]["inputs"].shape), reverse=True)
        parts = [
            alike[first : first + (CROP_BATCH_SIZE_PER_CORE if on_cpu else CROP_BATCH_SIZE)]
            for alike in (list(each) for _, each in groupby(order, key=lambda i: tuple(batch[i]["inputs"].shape)))
            for first in range(0, len(alike), CROP_BATCH_SIZE_PER_CORE if on_cpu else CROP_BATCH_SIZE)
        ]

        def look(part: Sequence[int]) -> list[Any]:
            return self._run_batch([batch[i] for i in part])

        seen = map_batch_chunks(parts, 1, lambda each: look(each[0])) if on_cpu else map(look, parts)
        return [sample for _, sample in sorted(zip(chain(*parts), chain(*seen), strict=True), key=itemgetter(0))]

    def _run_batch(self, batch: Sequence[Input]) -> list[Any]:
        import torch
        from mmengine.dataset import pseudo_collate

        net: Any = self._copies.get()
        try:
            with torch.inference_mode():
                # A shallow copy: what a model writes down on the way belongs to this try.
                samples = [dict(each) | {"data_samples": each["data_samples"].clone()} for each in batch]
                found: list[Any] = net.test_step(pseudo_collate(samples))
        finally:
            self._copies.put(net)
        return found

    def with_precision(self, precision: Precision) -> Predictor:
        return Predictor(self._net, self._scope, self._pipeline_steps, str(self.device), precision, fuse=False)

    def time_batch(self, batch: Sequence[Input]) -> float:
        """How long one batch takes, at its quickest."""
        times: list[float] = []
        while len(times) < _MAX_TIMED_RUNS and sum(times) < _TIMING_BUDGET:
            begun = time.perf_counter()
            self.predict(batch, lambda _: None)
            times.append(time.perf_counter() - begun)
        return min(times)


def best_precision(
    predictor: Predictor,
    inputs: Sequence[Input],
    agreement: Callable[[Sequence[Any], Sequence[Any]], float | None],
    min_agreement: float,
    postprocess: Callable[[Any], Any] | None = None,
) -> tuple[Precision, str]:
    """The quickest precision that finds the same as fp32 in some pictures, and a sentence about it.

    agreement  how far two lists of data samples agree, 0..1; None where there is nothing to go by
    least      of agreement
    keep       what is kept of each data sample, for `agreement`
    """
    plain, seconds = predictor.predict(inputs, postprocess), predictor.time_batch(inputs)
    best, quickest, said = "fp32", seconds, []
    for precision in lower_precisions(predictor.device.type):
        other = predictor.with_precision(precision)
        try:
            share = agreement(plain, other.predict(inputs, postprocess))
            took = other.time_batch(inputs)
        except RuntimeError:  # the device, or this PyTorch on it, does not know it
            continue
        if share is None:
            return "fp32", "Precision fp32: the model finds nothing here by which others could be judged."
        said.append(f"{precision} is {seconds / took:.1f} times as quick and finds the same to {share:.1%}")
        if share >= min_agreement and took * MIN_SPEEDUP < quickest:
            best, quickest = precision, took
    return best, f"Precision {best}: {'; '.join(said) or 'nothing else works here'}."  # type: ignore[return-value]


def best_batch_size(predictor: Predictor, inputs: Sequence[Input]) -> int:
    """The smallest batch that is about as quick as any; where memory ends, so does the search."""
    rates: dict[int, float] = {}
    for size in BATCH_SIZES:
        batch = [inputs[i % len(inputs)] for i in range(size)]
        try:
            rates[size] = size / predictor.time_batch(batch)
        except RuntimeError:
            break
        good = min(each for each, rate in rates.items() if rate >= MIN_RELATIVE_RATE * max(rates.values()))
        if size >= 4 * good:  # twice as many did not help, nor did four times as many
            break
    return min((each for each, rate in rates.items() if rate >= MIN_RELATIVE_RATE * max(rates.values())), default=1)


def _loading_step(step: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in step.items() if key in ("color_type", "to_float32")}
    return {"type": f"mmengine.{IMAGE_LOADER}", **kept}


def _fuse_conv_bn(net: nn.Module) -> None:
    """Make one convolution of each convolution and the normalisation behind it, in place.

    mmcv's own fuse_conv_bn changes the convolution that is there, which heads share between their levels.
    """
    from mmcv.cnn import ConvModule
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for module in net.modules():
        if not (isinstance(module, ConvModule) and module.order == ("conv", "norm", "act") and module.with_norm):
            continue
        if isinstance(module.norm, nn.BatchNorm2d) and type(module.conv) is nn.Conv2d:
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            setattr(module, module.norm_name, nn.Identity())


def _copy_sharing_weights(net: nn.Module) -> nn.Module:
    """A copy with the same weights, not with copies of them."""
    shared = {id(each): each for each in chain(net.parameters(), net.buffers())}
    return copy.deepcopy(net, shared)


def _with_autocast(net: nn.Module, device_type: str, precision: Precision) -> nn.Module:
    """The model with its heavy parts in a lower precision, in place."""
    if precision == "fp32":
        return net
    for name, module in net.named_modules():
        if name.rpartition(".")[2] in _LOW_PRECISION_MODULES:
            module.forward = _autocast_forward(module.forward, device_type, precision)
    return net


def _autocast_forward(forward: Callable[..., Any], device_type: str, precision: Precision) -> Callable[..., Any]:
    def lowered(*args: Any, **kwargs: Any) -> Any:
        with autocast(device_type, precision):
            return _to_fp32(forward(*args, **kwargs))

    return lowered


def _to_fp32(output: Any) -> Any:
    """Every tensor of floating-point numbers in fp32."""
    import torch

    if isinstance(output, torch.Tensor):
        return output.float() if output.is_floating_point() else output
    if isinstance(output, dict):
        return {key: _to_fp32(each) for key, each in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*map(_to_fp32, output))
    return type(output)(map(_to_fp32, output)) if isinstance(output, list | tuple) else output
