"""Choose the precision and the batch size of a run by measuring a model on a few of its inputs."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from lsml_cli.models import torch_runtime
from lsml_cli.models.base import AutotuneResult, Model
from lsml_cli.models.spec import Json
from lsml_cli.models.torch_runtime import Precision

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # tasks per batch that are tried for --batch-size auto
MIN_RELATIVE_RATE = 0.97  # share of the best rate that the smallest acceptable batch reaches
TIMED_RUNS = 3  # the fastest counts: other work on the machine can only slow a run down
TIMING_BUDGET_SECONDS = 0.5  # no further run is timed after this


class Trial(ABC):
    """A loaded model in one precision, together with sample inputs.

    Methods that run the model raise RuntimeError if the device cannot do that, for example for lack of memory.
    """

    precision: Precision
    device_type: str

    @abstractmethod
    def with_precision(self, precision: Precision) -> Self:
        """Return the same model in another precision, on the same inputs."""

    @abstractmethod
    def seconds_per_batch(self, batch_size: int) -> float:
        """Measure how long one batch takes; the inputs are repeated where there are too few."""

    @abstractmethod
    def agreement(self, other: Self) -> float | None:
        """Return the share (0..1) of results that are the same in `other`; None if there are no results to compare."""


@dataclass(frozen=True)
class PrecisionPolicy:
    """When a lower precision replaces fp32.

    Args:
        min_agreement: Share of equal results (0..1) that it needs.
        result_noun: What is compared, in the plural, for the report: "answers".
        timed_batch_size: Inputs per batch when precisions are timed.
        min_speedup: How many times as fast as the best precision so far it has to be.
    """

    min_agreement: float
    result_noun: str
    timed_batch_size: int
    min_speedup: float = 1.0


def autotune(
    model: Model[Any],
    trial: Trial | None,
    batch_size: int | None,
    policy: PrecisionPolicy,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> AutotuneResult | None:
    """Settle the parameter `precision` where it is "auto", and the batch size where none is given.

    Args:
        model: The loaded model, which has a parameter `precision`.
        trial: The model as it was loaded; None if there are no inputs to measure.
        batch_size: Tasks per batch; None to search for a good number.
        policy: When a lower precision is accepted.
        batch_sizes: The batch sizes to try, ascending.

    Returns:
        None if both were given and nothing is left to settle.
    """
    is_precision_auto = model.param("precision") == "auto"
    if not is_precision_auto and batch_size is not None:
        return None
    params: dict[str, Json] = {"precision": "fp32"} if is_precision_auto else {}
    if trial is None:
        return AutotuneResult(params, batch_size or model.batch_size, "")
    notes = []
    if is_precision_auto:
        trial, note = choose_precision(trial, policy)
        params["precision"] = trial.precision
        notes.append(note)
    if batch_size is None:
        batch_size = choose_batch_size(trial, batch_sizes)
        notes.append(f"{batch_size} images at a time.")
    torch_runtime.free_memory()  # the replicas need it
    return AutotuneResult(params, batch_size, " ".join(notes))


def choose_precision(trial: Trial, policy: PrecisionPolicy) -> tuple[Trial, str]:
    """Return the fastest trial that agrees with fp32, and a sentence that says why."""
    baseline = trial.with_precision("fp32")
    baseline_seconds = baseline.seconds_per_batch(policy.timed_batch_size)
    best, best_seconds = baseline, baseline_seconds
    comparisons = []
    for precision in torch_runtime.lower_precisions(trial.device_type):
        try:
            candidate = trial.with_precision(precision)
            agreement = baseline.agreement(candidate)
            seconds = candidate.seconds_per_batch(policy.timed_batch_size)
        except RuntimeError:  # the device, or this PyTorch on it, does not support the precision
            continue
        if agreement is None:
            return baseline, f"Precision fp32: there are no {policy.result_noun} here by which to judge others."
        comparisons.append(
            f"{precision} is {baseline_seconds / seconds:.1f} times as quick with {agreement:.1%} equal "
            f"{policy.result_noun}"
        )
        if agreement >= policy.min_agreement and seconds * policy.min_speedup < best_seconds:
            best, best_seconds = candidate, seconds
    return best, f"Precision {best.precision}: {'; '.join(comparisons) or 'nothing else works here'}."


def choose_batch_size(trial: Trial, batch_sizes: Sequence[int] = BATCH_SIZES) -> int:
    """Return the smallest batch size that is about as fast as any; the search ends where memory does."""
    rates: dict[int, float] = {}
    for size in batch_sizes:
        try:
            rates[size] = size / trial.seconds_per_batch(size)
        except RuntimeError:
            break
        if size >= 4 * _smallest_fast_batch(rates):  # neither twice nor four times as many inputs helped
            break
    return _smallest_fast_batch(rates) if rates else 1


def quickest_seconds(run: Callable[[], object]) -> float:
    """Measure how long a call takes at its fastest, after one call to warm up."""
    run()
    times: list[float] = []
    while len(times) < TIMED_RUNS and sum(times) < TIMING_BUDGET_SECONDS:
        started_at = time.perf_counter()
        run()
        times.append(time.perf_counter() - started_at)
    return min(times)


def _smallest_fast_batch(rates: Mapping[int, float]) -> int:
    return min(size for size, rate in rates.items() if rate >= MIN_RELATIVE_RATE * max(rates.values()))
