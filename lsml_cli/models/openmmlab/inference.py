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
from lsml_cli.inference.replica import cores
from lsml_cli.models.openmmlab import configs, toolkit
from lsml_cli.models.openmmlab.image_files import LOADER, register
from lsml_cli.models.openmmlab.toolkit import Scope
from lsml_cli.models.torch_runtime import Precision, cast, in_lanes, lower_precisions

if TYPE_CHECKING:
    from torch import nn

    from lsml_cli.models.openmmlab.image_files import Pixels

Input = Mapping[str, Any]  # of the toolkit: the picture as a tensor, and what was done to it

PART = 4  # pictures that a core of a CPU looks at together
CROPS, CROPS_OF_CORE = 64, 8  # small pictures of one shape that a device, and a core of a CPU, looks at together
# What computes in a lower precision; what comes out of it is fp32 again, for everything that counts and compares.
_HEAVY = frozenset({"backbone", "neck", "bbox_head", "rpn_head", "mask_head", "det_head", "encoder"})
_PROBES = 3  # timed batches; the quickest counts, since anything else on the machine only slows them down
_PROBING = 1.0  # seconds after which no further batch is timed
WORTH = 1.1  # times as quick as fp32 that a lower precision has to be
GOOD_ENOUGH = 0.97  # of the best rate: the smallest batch that reaches it is taken
SIZES = (1, 2, 4, 8, 16, 32, 64)


def build(config: configs.Config, scope: Scope) -> nn.Module:
    """The model of a config with random weights, the same every time; nothing is fetched."""
    import torch

    with toolkit.scope_of(scope), torch.random.fork_rng(devices=()):
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


class Net:
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
        steps: Sequence[Mapping[str, Any]],
        device: str,
        precision: Precision = "fp32",
        *,
        fuse: bool = True,
    ) -> None:
        import torch

        self.device = torch.device(device)
        self.precision = precision
        self._scope, self._steps = scope, steps
        self._net = net.to(self.device).eval()
        if fuse:
            _fuse(self._net)
        self._copies: SimpleQueue[nn.Module] = SimpleQueue()
        lanes = cores() if self.device.type == "cpu" else 1
        for _ in range(lanes):  # a model may keep notes while it works; the weights are shared
            self._copies.put(_lowered(_twin(self._net), self.device.type, precision))
        register()
        with toolkit.scope_of(scope):
            from mmengine.dataset import Compose

            self._pipeline = Compose([_loading(step) if configs.loads(step) else dict(step) for step in steps])
        self._own = threading.local()

    def prepare(self, picture: Pixels) -> Input:
        """(H, W, 3), blue, green, red -> what the model takes. Called in many threads at a time."""
        if not hasattr(self._own, "pipeline"):  # a step may write down what it does to this picture, and go by that
            self._own.pipeline = copy.deepcopy(self._pipeline)
        prepared: Input = self._own.pipeline({"img": picture, "img_path": "", "img_id": 0})
        return prepared

    def found(self, batch: Sequence[Input], keep: Callable[[Any], Any] | None = None) -> list[Any]:
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
            samples = self._look(part)
            return samples if keep is None else [keep(each) for each in samples]

        parts = [look(ordered)] if self.device.type != "cpu" else in_lanes(ordered, PART, look)
        found: list[Any] = [None] * len(batch)
        for i, sample in zip(order, chain.from_iterable(parts), strict=True):
            found[i] = sample
        return found

    def found_alike(self, batch: Sequence[Input]) -> list[Any]:
        """Like `found`, but nothing is filled up: only what has one shape goes together, so that no result depends on
        what else there is. For crops, which are small and many."""
        on_cpu = self.device.type == "cpu"
        order = sorted(range(len(batch)), key=lambda i: tuple(batch[i]["inputs"].shape), reverse=True)
        parts = [
            alike[first : first + (CROPS_OF_CORE if on_cpu else CROPS)]
            for alike in (list(each) for _, each in groupby(order, key=lambda i: tuple(batch[i]["inputs"].shape)))
            for first in range(0, len(alike), CROPS_OF_CORE if on_cpu else CROPS)
        ]

        def look(part: Sequence[int]) -> list[Any]:
            return self._look([batch[i] for i in part])

        seen = in_lanes(parts, 1, lambda each: look(each[0])) if on_cpu else map(look, parts)
        return [sample for _, sample in sorted(zip(chain(*parts), chain(*seen), strict=True), key=itemgetter(0))]

    def _look(self, batch: Sequence[Input]) -> list[Any]:
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

    def with_precision(self, precision: Precision) -> Net:
        return Net(self._net, self._scope, self._steps, str(self.device), precision, fuse=False)

    def seconds(self, batch: Sequence[Input]) -> float:
        """How long one batch takes, at its quickest."""
        times: list[float] = []
        while len(times) < _PROBES and sum(times) < _PROBING:
            begun = time.perf_counter()
            self.found(batch, lambda _: None)
            times.append(time.perf_counter() - begun)
        return min(times)


def best_precision(
    net: Net,
    inputs: Sequence[Input],
    agreement: Callable[[Sequence[Any], Sequence[Any]], float | None],
    least: float,
    keep: Callable[[Any], Any] | None = None,
) -> tuple[Precision, str]:
    """The quickest precision that finds the same as fp32 in some pictures, and a sentence about it.

    agreement  how far two lists of data samples agree, 0..1; None where there is nothing to go by
    least      of agreement
    keep       what is kept of each data sample, for `agreement`
    """
    plain, seconds = net.found(inputs, keep), net.seconds(inputs)
    best, quickest, said = "fp32", seconds, []
    for precision in lower_precisions(net.device.type):
        other = net.with_precision(precision)
        try:
            share = agreement(plain, other.found(inputs, keep))
            took = other.seconds(inputs)
        except RuntimeError:  # the device, or this PyTorch on it, does not know it
            continue
        if share is None:
            return "fp32", "Precision fp32: the model finds nothing here by which others could be judged."
        said.append(f"{precision} is {seconds / took:.1f} times as quick and finds the same to {share:.1%}")
        if share >= least and took * WORTH < quickest:
            best, quickest = precision, took
    return best, f"Precision {best}: {'; '.join(said) or 'nothing else works here'}."  # type: ignore[return-value]


def best_size(net: Net, inputs: Sequence[Input]) -> int:
    """The smallest batch that is about as quick as any; where memory ends, so does the search."""
    rates: dict[int, float] = {}
    for size in SIZES:
        batch = [inputs[i % len(inputs)] for i in range(size)]
        try:
            rates[size] = size / net.seconds(batch)
        except RuntimeError:
            break
        good = min(each for each, rate in rates.items() if rate >= GOOD_ENOUGH * max(rates.values()))
        if size >= 4 * good:  # twice as many did not help, nor did four times as many
            break
    return min((each for each, rate in rates.items() if rate >= GOOD_ENOUGH * max(rates.values())), default=1)


def _loading(step: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in step.items() if key in ("color_type", "to_float32")}
    return {"type": f"mmengine.{LOADER}", **kept}


def _fuse(net: nn.Module) -> None:
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


def _twin(net: nn.Module) -> nn.Module:
    """A copy with the same weights, not with copies of them."""
    shared = {id(each): each for each in chain(net.parameters(), net.buffers())}
    return copy.deepcopy(net, shared)


def _lowered(net: nn.Module, kind: str, precision: Precision) -> nn.Module:
    """The model with its heavy parts in a lower precision, in place."""
    if precision == "fp32":
        return net
    for name, module in net.named_modules():
        if name.rpartition(".")[2] in _HEAVY:
            module.forward = _in_precision(module.forward, kind, precision)
    return net


def _in_precision(forward: Callable[..., Any], kind: str, precision: Precision) -> Callable[..., Any]:
    def lowered(*args: Any, **kwargs: Any) -> Any:
        with cast(kind, precision):
            return _raised(forward(*args, **kwargs))

    return lowered


def _raised(found: Any) -> Any:
    """Every tensor of floating-point numbers in fp32."""
    import torch

    if isinstance(found, torch.Tensor):
        return found.float() if found.is_floating_point() else found
    if isinstance(found, dict):
        return {key: _raised(each) for key, each in found.items()}
    if isinstance(found, tuple) and hasattr(found, "_fields"):
        return type(found)(*map(_raised, found))
    return type(found)(map(_raised, found)) if isinstance(found, list | tuple) else found
