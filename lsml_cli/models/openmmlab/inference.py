"""Run batches of images through a model of a toolkit, on a device, in a precision."""

from __future__ import annotations

import copy
import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain, groupby
from operator import itemgetter
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import ModelError
from lsml_cli.models import autotune
from lsml_cli.models.openmmlab import configs, toolkit
from lsml_cli.models.openmmlab.image_files import loading_step, register_modules
from lsml_cli.models.openmmlab.toolkit import Scope
from lsml_cli.models.torch_runtime import Precision, autocast, map_batch_chunks
from lsml_cli.runtime import available_cores

if TYPE_CHECKING:
    from torch import nn

    from lsml_cli.models.openmmlab.image_files import ImageArray

Input = Mapping[str, Any]  # of the toolkit: the image as a tensor, and what was done to it

CPU_CHUNK_SIZE = 4  # images per CPU core
CROP_BATCH_SIZE, CROP_BATCH_SIZE_PER_CORE = 64, 8  # crops of one shape per forward on a GPU, and per CPU core
# Modules that compute in a lower precision; their outputs are fp32 again, for everything that counts and compares.
_LOW_PRECISION_MODULES = frozenset({"backbone", "neck", "bbox_head", "rpn_head", "mask_head", "det_head", "encoder"})
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)  # tasks per batch that are tried for --batch-size auto
MIN_SPEEDUP = 1.1  # of a lower precision
PROBE_SIZE = 8  # images by which precisions are compared


def build_model(config: configs.Config, scope: Scope) -> nn.Module:
    """Build the model of a config with random weights, the same every time. Nothing is downloaded.

    Raises:
        ModelError: The config does not describe a model of this toolkit.
    """
    import torch

    with toolkit.default_scope(scope), torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        from mmengine.config import ConfigDict
        from mmengine.model import revert_sync_batchnorm

        model_config = configs.without_pretrained(config["model"])
        try:
            registry = importlib.import_module(f"{scope}.registry").MODELS
            net: nn.Module = revert_sync_batchnorm(registry.build(ConfigDict(model_config)))
        except Exception as error:  # a config may name anything
            raise ModelError(f"The model of this config cannot be built: {type(error).__name__}: {error}.") from error
    return net


class Predictor:
    """A model on a device.

    Args:
        net: The model; it is moved to the device.
        scope: Its toolkit.
        pipeline_steps: What is done to an image before; see `configs.test_pipeline`.
        device: "cpu", "cuda:0".
        precision: Of the modules that compute most; "bf16" and "fp16" by autocast.
        fuse: Whether to fold batch normalization into convolutions.
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
        num_lanes = available_cores() if self.device.type == "cpu" else 1
        for _ in range(num_lanes):  # a model may store things on itself while it runs; the weights are shared
            self._copies.put(_with_autocast(_copy_sharing_weights(self._net), self.device.type, precision))
        register_modules()
        with toolkit.default_scope(scope):
            from mmengine.dataset import Compose

            self._pipeline = Compose(
                [loading_step(step) if configs.is_loading_step(step) else dict(step) for step in pipeline_steps]
            )
        self._thread_local = threading.local()

    def prepare(self, image: ImageArray) -> Input:
        """Turn an image (H, W, 3), blue, green, red, into an input of the model. Thread-safe."""
        if not hasattr(self._thread_local, "pipeline"):  # a step may store on itself what it did to the current image
            self._thread_local.pipeline = copy.deepcopy(self._pipeline)
        prepared: Input = self._thread_local.pipeline({"img": image, "img_path": "", "img_id": 0})
        return prepared

    def predict(self, batch: Sequence[Input], postprocess: Callable[[Any], Any] | None = None) -> list[Any]:
        """Run inputs through the model, images of one shape together: others are padded to the largest.

        On a CPU each core has a chunk of the batch.

        Args:
            batch: n inputs.
            postprocess: What to keep of a data sample, as soon as it is there: masks of a full batch, one byte per
                pixel and object, would take gigabytes.

        Returns:
            n data samples of the toolkit, in order, or what `postprocess` made of them.
        """
        if not batch:
            return []
        order = sorted(range(len(batch)), key=lambda i: tuple(batch[i]["inputs"].shape))
        ordered = [batch[i] for i in order]

        def run(chunk: Sequence[Input]) -> list[Any]:
            samples = self._run_batch(chunk)
            return samples if postprocess is None else [postprocess(sample) for sample in samples]

        chunks = [run(ordered)] if self.device.type != "cpu" else map_batch_chunks(ordered, CPU_CHUNK_SIZE, run)
        outputs: list[Any] = [None] * len(batch)
        for i, output in zip(order, chain.from_iterable(chunks), strict=True):
            outputs[i] = output
        return outputs

    def predict_same_shape(self, batch: Sequence[Input]) -> list[Any]:
        """Run inputs like `predict`, but only inputs of one shape together, so that nothing is padded.

        So no result depends on what else is in the batch. For crops, which are small and many.
        """
        on_cpu = self.device.type == "cpu"
        chunk_size = CROP_BATCH_SIZE_PER_CORE if on_cpu else CROP_BATCH_SIZE
        order = sorted(range(len(batch)), key=lambda i: tuple(batch[i]["inputs"].shape), reverse=True)
        same_shape = [list(group) for _, group in groupby(order, key=lambda i: tuple(batch[i]["inputs"].shape))]
        chunks = [
            group[first : first + chunk_size] for group in same_shape for first in range(0, len(group), chunk_size)
        ]

        def run(chunk: Sequence[int]) -> list[Any]:
            return self._run_batch([batch[i] for i in chunk])

        samples = map_batch_chunks(chunks, 1, lambda lane: run(lane[0])) if on_cpu else map(run, chunks)
        ordered = sorted(zip(chain(*chunks), chain(*samples), strict=True), key=itemgetter(0))
        return [sample for _, sample in ordered]

    def _run_batch(self, batch: Sequence[Input]) -> list[Any]:
        import torch
        from mmengine.dataset import pseudo_collate

        net: Any = self._copies.get()
        try:
            with torch.inference_mode():
                # Shallow copies, since a model writes into its inputs, and a failed batch is tried again.
                inputs = [dict(item) | {"data_samples": item["data_samples"].clone()} for item in batch]
                samples: list[Any] = net.test_step(pseudo_collate(inputs))
        finally:
            self._copies.put(net)
        return samples

    def with_precision(self, precision: Precision) -> Predictor:
        """Return a predictor of the same model in another precision; it shares the weights."""
        return Predictor(self._net, self._scope, self._pipeline_steps, str(self.device), precision, fuse=False)


class PredictorTrial(autotune.Trial):
    """A model in one precision, with up to `PROBE_SIZE` sample inputs.

    Args:
        predictor: The model.
        inputs: At least one.
        agreement: Compares two lists of data samples; returns a share (0..1), or None if both are empty.
        postprocess: What to keep of a data sample for `agreement`.
    """

    def __init__(
        self,
        predictor: Predictor,
        inputs: Sequence[Input],
        agreement: Callable[[Sequence[Any], Sequence[Any]], float | None],
        postprocess: Callable[[Any], Any] | None = None,
    ) -> None:
        self._predictor = predictor
        self._inputs = inputs[:PROBE_SIZE]
        self._agreement = agreement
        self._postprocess = postprocess
        self.device_type = predictor.device.type
        self.precision = predictor.precision

    @cached_property
    def samples(self) -> list[Any]:
        """What the model finds in the inputs."""
        return self._predictor.predict(self._inputs, self._postprocess)

    def with_precision(self, precision: Precision) -> PredictorTrial:
        predictor = self._predictor.with_precision(precision)
        return PredictorTrial(predictor, self._inputs, self._agreement, self._postprocess)

    def seconds_per_batch(self, batch_size: int) -> float:
        batch = [self._inputs[i % len(self._inputs)] for i in range(batch_size)]
        return autotune.quickest_seconds(lambda: self._predictor.predict(batch, lambda _: None))

    def agreement(self, other: PredictorTrial) -> float | None:
        return self._agreement(self.samples, other.samples)


def _fuse_conv_bn(net: nn.Module) -> None:
    """Fold each batch normalization into the convolution before it, in place.

    mmcv's own fuse_conv_bn changes the convolution itself, which heads share between their levels.
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
    """Copy a model without copying its weights."""
    shared = {id(tensor): tensor for tensor in chain(net.parameters(), net.buffers())}
    return copy.deepcopy(net, shared)


def _with_autocast(net: nn.Module, device_type: str, precision: Precision) -> nn.Module:
    """Let the heavy modules of a model compute in a lower precision, in place, and return it."""
    if precision == "fp32":
        return net
    for name, module in net.named_modules():
        if name.rpartition(".")[2] in _LOW_PRECISION_MODULES:
            module.forward = _autocast_forward(module.forward, device_type, precision)
    return net


def _autocast_forward(forward: Callable[..., Any], device_type: str, precision: Precision) -> Callable[..., Any]:
    def autocast_forward(*args: Any, **kwargs: Any) -> Any:
        with autocast(device_type, precision):
            return _to_fp32(forward(*args, **kwargs))

    return autocast_forward


def _to_fp32(output: Any) -> Any:
    """Convert every floating-point tensor in a nested output to fp32."""
    import torch

    if isinstance(output, torch.Tensor):
        return output.float() if output.is_floating_point() else output
    if isinstance(output, dict):
        return {key: _to_fp32(value) for key, value in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*map(_to_fp32, output))
    return type(output)(map(_to_fp32, output)) if isinstance(output, list | tuple) else output
