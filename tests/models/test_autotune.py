"""Test how the precision and the batch size of a run are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

from lsml_cli.models import autotune
from lsml_cli.models.autotune import PrecisionPolicy, choose_batch_size, choose_precision
from lsml_cli.models.base import Model
from lsml_cli.models.spec import ModelSpec
from lsml_cli.models.torch_runtime import Precision

POLICY = PrecisionPolicy(min_agreement=0.99, result_noun="answers", timed_batch_size=8)


@dataclass(frozen=True)
class FakeTrial(autotune.Trial):
    """A trial with given timings, by precision, and agreements with fp32."""

    seconds: Mapping[str, float]
    agreements: Mapping[str, float | None]
    precision: Precision = "fp32"
    device_type: str = "cuda"
    memory: int = 10_000  # inputs of the largest batch

    def with_precision(self, precision: Precision) -> FakeTrial:
        if precision not in self.seconds:
            raise RuntimeError("not implemented for this device")
        return replace(self, precision=precision)

    def seconds_per_batch(self, batch_size: int) -> float:
        if batch_size > self.memory:
            raise RuntimeError("out of memory")
        return self.seconds[self.precision] * max(1.0, batch_size / 16)  # 16 inputs are as fast as one

    def agreement(self, other: FakeTrial) -> float | None:
        return self.agreements[other.precision]


class FakeModel(Model):
    params: ClassVar[Mapping[str, Any]] = {"precision": "auto"}
    batch_size: ClassVar[int] = 5

    def forward(self, inputs: Sequence[Any], binding: Any) -> Sequence[Any]:
        return inputs

    def decode(self, output: Any, task: Any, binding: Any) -> Any:
        return output


def make_model(precision: str) -> FakeModel:
    return FakeModel(ModelSpec("fake", "fake", "0", params={"precision": precision}))


@pytest.mark.parametrize(
    ("seconds", "agreements", "expected"),
    [
        ({"fp32": 4.0, "fp16": 1.0, "bf16": 2.0}, {"fp16": 1.0, "bf16": 1.0}, "fp16"),
        ({"fp32": 4.0, "fp16": 1.0, "bf16": 2.0}, {"fp16": 0.9, "bf16": 0.99}, "bf16"),
        ({"fp32": 4.0, "fp16": 4.5, "bf16": 5.0}, {"fp16": 1.0, "bf16": 1.0}, "fp32"),
        ({"fp32": 4.0, "bf16": 2.0}, {"bf16": 1.0}, "bf16"),
        ({"fp32": 4.0}, {}, "fp32"),
    ],
)
def test_fastest_precision_that_agrees_is_chosen(
    seconds: dict[str, float], agreements: dict[str, float | None], expected: str
) -> None:
    trial, note = choose_precision(FakeTrial(seconds, agreements), POLICY)
    assert trial.precision == expected
    assert note.startswith(f"Precision {expected}: ")


def test_precision_needs_min_speedup() -> None:
    trial = FakeTrial({"fp32": 1.05, "bf16": 1.0}, {"bf16": 1.0})
    assert choose_precision(trial, POLICY)[0].precision == "bf16"
    assert choose_precision(trial, replace(POLICY, min_speedup=1.1))[0].precision == "fp32"


def test_precision_stays_fp32_without_results_to_compare() -> None:
    trial, note = choose_precision(FakeTrial({"fp32": 4.0, "bf16": 1.0}, {"bf16": None}), POLICY)
    assert (trial.precision, note) == ("fp32", "Precision fp32: there are no answers here by which to judge others.")


@pytest.mark.parametrize(("memory", "expected"), [(10_000, 16), (8, 8), (0, 1)])
def test_smallest_fast_batch_is_chosen(memory: int, expected: int) -> None:
    assert choose_batch_size(FakeTrial({"fp32": 1.0}, {}, memory=memory)) == expected


def test_autotune_settles_only_what_is_left_open() -> None:
    trial = FakeTrial({"fp32": 4.0, "bf16": 1.0}, {"bf16": 1.0})
    assert autotune.autotune(make_model("fp32"), trial, 3, POLICY) is None
    both = autotune.autotune(make_model("auto"), trial, None, POLICY)
    assert both is not None
    assert (both.params, both.batch_size) == ({"precision": "bf16"}, 16)
    assert both.note == "Precision bf16: bf16 is 4.0 times as quick with 100.0% equal answers. 16 images at a time."
    only_size = autotune.autotune(make_model("fp32"), trial, None, POLICY)
    assert only_size is not None
    assert (only_size.params, only_size.batch_size) == ({}, 16)


def test_autotune_without_inputs_keeps_defaults() -> None:
    result = autotune.autotune(make_model("auto"), None, None, POLICY)
    assert result is not None
    assert (result.params, result.batch_size, result.note) == ({"precision": "fp32"}, 5, "")
