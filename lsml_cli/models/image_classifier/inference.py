"""Batches of pixels through a net on a device, as quickly as the device can."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import ModelError
from lsml_cli.models.torch_runtime import Precision, autocast, map_batch_chunks

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from lsml_cli.models.image_classifier.preprocessing import Pixels, Preprocessing

    Scores = NDArray[np.float32]

MIN_AGREEMENT = 0.99  # share of equal first choices from which a lower precision is as good as fp32

CPU_CHUNK_SIZE = 4  # pictures that a core of a CPU looks at together: more of them only fill its cache
_TIMED_BATCHES = 3  # timed batches; the quickest counts, since anything else on the machine only slows them down
_TIMING_SECONDS = 0.5  # seconds after which no further batch is timed


class Predictor:
    """A net on a device, ready to look at pixels.

    device     "cpu", "cuda:0", "mps"
    precision  of the forward pass: "bf16" and "fp16" by autocast, which keeps in fp32 what needs it
    compiled   whether torch.compile makes one program of the net: minutes at the start, quicker from then on
    """

    def __init__(
        self, net: nn.Module, device: str, preprocessing: Preprocessing, precision: Precision, compiled: bool = False
    ) -> None:
        import torch

        self.device = torch.device(device)
        self.precision = precision
        self._net = net.to(self.device).eval()
        self._net.to(memory_format=torch.channels_last)
        std = torch.tensor(preprocessing.std, device=self.device).view(1, 3, 1, 1)
        mean = torch.tensor(preprocessing.mean, device=self.device).view(1, 3, 1, 1)
        self._mean, self._std = mean, std
        self._callable: Any = torch.compile(self._net) if compiled else self._net
        self._compiled_batch_size = (
            0  # pictures of the largest batch so far, to which a compiled net's others are filled up
        )
        self._compiled = compiled

    def scores(self, batch: Sequence[Pixels]) -> Scores:
        """n arrays (crop, crop, 3) -> (n, outputs of the net), fp32.

        On a CPU each part of a batch has a core of its own; see `pytorch.in_lanes`.
        """
        if self.device.type != "cpu" or self._compiled:
            return self._forward(batch)
        import numpy as np

        return np.concatenate(map_batch_chunks(batch, CPU_CHUNK_SIZE, self._forward))

    def _forward(self, batch: Sequence[Pixels]) -> Scores:
        import torch

        with torch.inference_mode(), self._autocast():
            if self._compiled:
                return self._forward_compiled(batch)
            scores: Scores = self._callable(self.to_tensor(batch)).float().cpu().numpy()
        return scores

    def _forward_compiled(self, batch: Sequence[Pixels]) -> Scores:
        """A ragged last batch is filled up to the size of the others: another size would be compiled anew."""
        full = max(self._compiled_batch_size, len(batch))
        try:
            found = self._callable(self.to_tensor([*batch, *[batch[-1]] * (full - len(batch))]))
        except Exception:
            self._compiled_batch_size = 0  # it may have been too large, and smaller ones must not be filled up to it
            raise
        self._compiled_batch_size = full
        scores: Scores = found[: len(batch)].float().cpu().numpy()
        return scores

    def to_tensor(self, batch: Sequence[Pixels]) -> torch.Tensor:
        """(n, 3, crop, crop) on the device, normalised; channels last in memory, as the pixels come."""
        import numpy as np
        import torch

        pinned = self.device.type == "cuda"  # so that the copy to the device needs no other before it
        stacked = torch.empty((len(batch), *batch[0].shape), dtype=torch.uint8, pin_memory=pinned)
        np.stack(batch, out=stacked.numpy())
        pixels = stacked.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        return (pixels.float().div_(255).sub_(self._mean)).div_(self._std)  # as torchvision does, to the bit

    def time_batch(self, batch: Sequence[Pixels]) -> float:
        """How long one batch takes, at its quickest."""
        self.scores(batch)
        times: list[float] = []
        while len(times) < _TIMED_BATCHES and sum(times) < _TIMING_SECONDS:
            begun = time.perf_counter()
            self.scores(batch)
            times.append(time.perf_counter() - begun)
        return min(times)

    def with_precision(self, precision: Precision, preprocessing: Preprocessing) -> Predictor:
        return Predictor(self._net, str(self.device), preprocessing, precision)

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.device.type, self.precision)


@dataclass(frozen=True)
class HeadColumns:
    """The columns of a net's scores, `first` to `first + count`, that answer one question."""

    first: int
    count: int
    is_multi_label: bool

    def predicted_classes(self, scores: Scores) -> NDArray[Any]:
        """What each row of scores (n, K) says: the best class (n,), or (n, count) whether each one applies."""
        mine = scores[:, self.first : self.first + self.count]
        return mine > 0 if self.is_multi_label else mine.argmax(axis=1)


def agreement(first: Scores, second: Scores, head_columns: Sequence[HeadColumns]) -> float:
    """Share of rows with the same answer, of the question where it is least; 1.0 where there are no rows.

    Scores that are no numbers, as fp16 gives where it overflows, answer nothing.
    """
    import numpy as np

    if not len(first) or not head_columns:
        return 1.0
    said = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
    equal = [each.predicted_classes(first) == each.predicted_classes(second) for each in head_columns]
    return min(float((said & (each.all(axis=1) if each.ndim == 2 else each)).mean()) for each in equal)


def require_compiler(device: str) -> None:
    """Raises ModelError where torch.compile has nothing to compile with. Takes seconds the first time on a machine."""
    import torch

    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:  # of a compiler that is missing, or does not work; PyTorch raises what it likes
        raise ModelError(
            f"compile=true needs a compiler that works with PyTorch here: {' '.join(str(error).split())[:200]}.",
            "Install one (g++ for a CPU), or leave compile out.",
        ) from error
