"""Batches of pixels through a net on a device, as quickly as the device can."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from lsml_cli.models.image_classifier.preprocessing import Pixels, Preprocessing

    Scores = NDArray[np.float32]

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
AGREEMENT = 0.99  # share of equal first choices from which a lower precision is as good as fp32

_PROBES = 3  # timed batches; the quickest counts, since anything else on the machine only slows them down


class Eye:
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
        # (pixels / 255 - mean) / std, as one multiplication and one addition
        std = torch.tensor(preprocessing.std, device=self.device).view(1, 3, 1, 1)
        mean = torch.tensor(preprocessing.mean, device=self.device).view(1, 3, 1, 1)
        self._mean, self._std = mean, std
        self._run: Any = torch.compile(self._net) if compiled else self._net
        self._full = 0  # tasks of the largest batch so far, to which a compiled net's others are filled up
        self._compiled = compiled

    def scores(self, batch: Sequence[Pixels]) -> Scores:
        """n arrays (crop, crop, 3) -> (n, outputs of the net), fp32."""
        import torch

        with torch.inference_mode(), self._cast():
            found = self._run(self.prepared(batch))
            scores: Scores = found[: len(batch)].float().cpu().numpy()
        return scores

    def prepared(self, batch: Sequence[Pixels]) -> torch.Tensor:
        """(n, 3, crop, crop) on the device, normalised; channels last in memory, as the pixels come."""
        import numpy as np
        import torch

        stacked = torch.from_numpy(np.stack(batch))
        if self._compiled:
            stacked = self._filled(stacked)
        if self.device.type == "cuda":
            stacked = stacked.pin_memory()
        pixels = stacked.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        return (pixels.float().div_(255).sub_(self._mean)).div_(self._std)

    def seconds(self, batch: Sequence[Pixels]) -> float:
        """How long one batch takes, at its quickest."""
        self.scores(batch)
        times = []
        for _ in range(_PROBES):
            begun = time.perf_counter()
            self.scores(batch)
            times.append(time.perf_counter() - begun)
        return min(times)

    def with_precision(self, precision: Precision, preprocessing: Preprocessing) -> Eye:
        return Eye(self._net, str(self.device), preprocessing, precision)

    def _cast(self) -> AbstractContextManager[Any]:
        return cast(self.device.type, self.precision)

    def _filled(self, stacked: torch.Tensor) -> torch.Tensor:
        """A ragged last batch, filled up to the size of the others: another size would be compiled anew."""
        self._full = max(self._full, len(stacked))
        if len(stacked) == self._full:
            return stacked
        filler = stacked[-1:].expand(self._full - len(stacked), -1, -1, -1)
        import torch

        return torch.cat([stacked, filler])


def cast(kind: str, precision: Precision) -> AbstractContextManager[Any]:
    """Autocast for a kind of device, nothing for fp32."""
    import torch

    if precision == "fp32":
        return nullcontext()
    found: AbstractContextManager[Any] = torch.autocast(kind, torch.bfloat16 if precision == "bf16" else torch.float16)
    return found


def lower_precisions(kind: str) -> tuple[Precision, ...]:
    """Those that may be quicker than fp32 on a kind of device."""
    return ("fp16", "bf16") if kind == "cuda" else ("fp16",) if kind == "mps" else ("bf16",)


def agreement(first: Scores, second: Scores) -> float:
    """Share of rows with the same first choice; 1.0 where there are no rows."""
    if not len(first):
        return 1.0
    return float((first.argmax(axis=1) == second.argmax(axis=1)).mean())


def devices_here() -> tuple[str, ...]:
    """The devices of this machine, the quickest kind first: ("cuda:0", "cuda:1", "cpu")."""
    import torch

    found = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return (*found, "cpu")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
