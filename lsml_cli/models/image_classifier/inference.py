"""Run batches of images through a network on a device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import ModelError
from lsml_cli.models.choices.logistic import HeadTargets
from lsml_cli.models.torch_runtime import Precision, autocast, map_batch_chunks

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from lsml_cli.models.image_classifier.preprocessing import Pixels, Preprocessing

    Scores = NDArray[np.float32]

CPU_CHUNK_SIZE = 4  # images per CPU core: more of them only fill its cache


class Predictor:
    """A network on a device.

    Args:
        net: (n, 3, crop, crop) -> (n, K); it is moved to the device.
        device: "cpu", "cuda:0", "mps".
        preprocessing: Says how pixels are normalized.
        precision: Of the forward pass; "bf16" and "fp16" by autocast, which keeps in fp32 what needs it.
        is_compiled: Whether to run torch.compile on the network: minutes at the start, faster from then on.
    """

    def __init__(
        self, net: nn.Module, device: str, preprocessing: Preprocessing, precision: Precision, is_compiled: bool = False
    ) -> None:
        import torch

        self.device = torch.device(device)
        self.precision = precision
        self._net = net.to(self.device).eval()
        self._net.to(memory_format=torch.channels_last)
        self._preprocessing = preprocessing
        std = torch.tensor(preprocessing.std, device=self.device).view(1, 3, 1, 1)
        mean = torch.tensor(preprocessing.mean, device=self.device).view(1, 3, 1, 1)
        self._mean, self._std = mean, std
        self._callable: Any = torch.compile(self._net) if is_compiled else self._net
        self._compiled_batch_size = 0  # images of the largest batch so far; smaller ones are padded to it
        self._is_compiled = is_compiled

    def scores(self, batch: Sequence[Pixels]) -> Scores:
        """Return (n, K) scores in fp32 of n images (crop, crop, 3). On a CPU each core has a chunk of the batch."""
        if self.device.type != "cpu" or self._is_compiled:
            return self._forward(batch)
        import numpy as np

        return np.concatenate(map_batch_chunks(batch, CPU_CHUNK_SIZE, self._forward))

    def _forward(self, batch: Sequence[Pixels]) -> Scores:
        import torch

        with torch.inference_mode(), self._autocast():
            if self._is_compiled:
                return self._forward_compiled(batch)
            scores: Scores = self._callable(self.to_tensor(batch)).float().cpu().numpy()
        return scores

    def _forward_compiled(self, batch: Sequence[Pixels]) -> Scores:
        """Pad a ragged last batch to the size of the others: another size would be compiled again."""
        size = max(self._compiled_batch_size, len(batch))
        try:
            outputs = self._callable(self.to_tensor([*batch, *[batch[-1]] * (size - len(batch))]))
        except Exception:
            self._compiled_batch_size = 0  # it may have been too large, and smaller ones must not be padded to it
            raise
        self._compiled_batch_size = size
        scores: Scores = outputs[: len(batch)].float().cpu().numpy()
        return scores

    def to_tensor(self, batch: Sequence[Pixels]) -> torch.Tensor:
        """Return (n, 3, crop, crop) on the device, normalized; channels last in memory, as the pixels come."""
        import numpy as np
        import torch

        pinned = self.device.type == "cuda"  # so that the copy to the device needs no intermediate one
        stacked = torch.empty((len(batch), *batch[0].shape), dtype=torch.uint8, pin_memory=pinned)
        np.stack(batch, out=stacked.numpy())
        pixels = stacked.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        return (pixels.float().div_(255).sub_(self._mean)).div_(self._std)  # bit for bit as torchvision does

    def with_precision(self, precision: Precision) -> Predictor:
        """Return a predictor of the same network in another precision; it shares the weights."""
        return Predictor(self._net, str(self.device), self._preprocessing, precision)

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.device.type, self.precision)


@dataclass(frozen=True)
class HeadColumns:
    """The columns of a network's scores, `first` to `first + count`, that belong to one head."""

    first: int
    count: int
    is_multi_label: bool

    def predicted_classes(self, scores: Scores) -> NDArray[Any]:
        """Return for scores (n, K) the best class (n,), or for a multi-label head whether each applies (n, count)."""
        head_scores = scores[:, self.first : self.first + self.count]
        return head_scores > 0 if self.is_multi_label else head_scores.argmax(axis=1)


def head_columns(targets: Sequence[HeadTargets]) -> list[HeadColumns]:
    """Return the columns of heads whose classes lie side by side in a network's outputs."""
    columns, first = [], 0
    for head in targets:
        columns.append(HeadColumns(first, len(head.classes), head.is_multi_label))
        first += len(head.classes)
    return columns


def agreement(first: Scores, second: Scores, heads: Sequence[HeadColumns]) -> float:
    """Return the share (0..1) of rows with the same answer, of the head where it is lowest; 1.0 without rows.

    Rows with scores that are not finite, as fp16 gives where it overflows, count as different.
    """
    import numpy as np

    if not len(first) or not heads:
        return 1.0
    is_finite = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
    equal = [head.predicted_classes(first) == head.predicted_classes(second) for head in heads]
    return min(float((is_finite & (rows.all(axis=1) if rows.ndim == 2 else rows)).mean()) for rows in equal)


def require_compiler(device: str) -> None:
    """Check that torch.compile works here. Takes seconds the first time on a machine.

    Raises:
        ModelError: There is no compiler, or it does not work.
    """
    import torch

    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:  # PyTorch passes on whatever the compiler raises
        raise ModelError(
            f"compile=true needs a compiler that works with PyTorch here: {' '.join(str(error).split())[:200]}.",
            "Install one (g++ for a CPU), or leave compile out.",
        ) from error
