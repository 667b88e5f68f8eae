"""Compare the answers of networks in lower precisions with those in fp32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from lsml_cli.models import autotune
from lsml_cli.models.choices.heads import ChoicesBinding
from lsml_cli.models.choices.logistic import HeadTargets
from lsml_cli.models.image_classifier.config import TrainConfig
from lsml_cli.models.image_classifier.dataset import ImageDataset, split_usable
from lsml_cli.models.image_classifier.inference import HeadColumns, Predictor, agreement, head_columns
from lsml_cli.models.torch_runtime import Precision, lower_precisions

if TYPE_CHECKING:
    from torch import nn

    from lsml_cli.models.image_classifier.inference import Scores
    from lsml_cli.models.image_classifier.preprocessing import Pixels

POLICY = autotune.PrecisionPolicy(min_agreement=0.99, result_noun="answers", timed_batch_size=16)
AGREEMENT_SAMPLE_SIZE = 500  # training images by which precisions are compared


class NetTrial(autotune.Trial):
    """The networks of a binding in one precision.

    Args:
        predictors: One for each scorer.
        binding: Says which network sees which image.
        inputs: The images of some tasks.
        recorded_agreement: What `measure_agreement` found in training, which knew more images than these.
    """

    def __init__(
        self,
        predictors: Sequence[Predictor],
        binding: ChoicesBinding,
        inputs: Sequence[Sequence[Pixels]],
        recorded_agreement: Mapping[str, float],
    ) -> None:
        self._all_predictors = predictors
        self._binding = binding
        self._inputs = inputs
        self._recorded_agreement = recorded_agreement
        self._predictors = [predictors[scorer_input.scorer] for scorer_input in binding.scorer_inputs]
        self.device_type = predictors[0].device.type
        self.precision = predictors[0].precision

    def with_precision(self, precision: Precision) -> NetTrial:
        predictors = [predictor.with_precision(precision) for predictor in self._all_predictors]
        return NetTrial(predictors, self._binding, self._inputs, self._recorded_agreement)

    def seconds_per_batch(self, batch_size: int) -> float:
        tasks = [self._inputs[i % len(self._inputs)] for i in range(batch_size)]
        batches = [[images[i] for images in tasks] for i in range(len(self._predictors))]
        return sum(
            autotune.quickest_seconds(partial(predictor.scores, batch))
            for predictor, batch in zip(self._predictors, batches, strict=True)
        )

    def agreement(self, other: NetTrial) -> float:
        """Return the share of tasks with equal answers, of the control where it is lowest."""
        if other.precision in self._recorded_agreement:
            return float(self._recorded_agreement[other.precision])
        shares: list[float] = []
        for i, (predictor, other_predictor) in enumerate(zip(self._predictors, other._predictors, strict=True)):
            heads = [binding.head for binding in self._binding.head_bindings if binding.input_index == i]
            columns = [HeadColumns(head.first, len(head.classes), head.multi) for head in heads]
            images = [task_images[i] for task_images in self._inputs]
            shares.append(agreement(predictor.scores(images), other_predictor.scores(images), columns))
        return min(shares)


def measure_agreement(
    net: nn.Module, dataset: ImageDataset, targets: Sequence[HeadTargets], config: TrainConfig
) -> dict[str, float]:
    """Return {"bf16": share of images with the same answers as in fp32}, of up to `AGREEMENT_SAMPLE_SIZE` images.

    Empty if none of the images can be used.
    """
    import numpy as np

    baseline = Predictor(net, config.device, dataset.preprocessing, "fp32")
    candidates = {name: baseline.with_precision(name) for name in lower_precisions(baseline.device.type)}
    positions = range(0, len(dataset.images), max(1, -(-len(dataset.images) // AGREEMENT_SAMPLE_SIZE)))
    baseline_scores: list[Scores] = []
    candidate_scores: dict[str, list[Scores]] = {name: [] for name in candidates}
    with closing(dataset.batches(positions, config.batch_size)) as batches:
        for batch in batches:
            if images := [pixels for _, pixels in split_usable(batch)[0]]:
                baseline_scores.append(baseline.scores(images))
                for name, candidate in candidates.items():
                    candidate_scores[name].append(candidate.scores(images))
    if not baseline_scores:
        return {}
    expected: Any = np.concatenate(baseline_scores)
    columns = head_columns(targets)
    return {name: agreement(expected, np.concatenate(scores), columns) for name, scores in candidate_scores.items()}
