"""Train a network on annotated images: a new head on frozen features, or every layer."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import isfinite
from random import Random
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import ModelError
from lsml_cli.models.base import Progress
from lsml_cli.models.choices.logistic import HeadTargets, fit_heads
from lsml_cli.models.image_classifier import backbones
from lsml_cli.models.image_classifier.config import TrainConfig
from lsml_cli.models.image_classifier.dataset import (
    Batches,
    ImageDataset,
    drop_unusable,
    restrict_to_head,
    split_usable,
)
from lsml_cli.models.image_classifier.inference import Predictor, head_columns
from lsml_cli.models.image_classifier.loss import MultiHeadLoss
from lsml_cli.models.torch_runtime import Precision, autocast
from lsml_cli.progress import Steps, start_phase

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

MIN_RELATIVE_STD = 1e-4  # of its mean: a feature that varies less counts as constant
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4  # of SGD
LR_DECAY = 0.1  # factor of the learning rate after each third of the epochs


@dataclass(frozen=True)
class Validation:
    """Images that a training is stopped by, and what each head should answer about them."""

    dataset: ImageDataset
    targets: Sequence[HeadTargets]


def train_net(
    net: nn.Module,
    dataset: ImageDataset,
    targets: Sequence[HeadTargets],
    validation: Validation,
    config: TrainConfig,
    progress: Progress,
) -> list[HeadTargets]:
    """Train a network in place.

    Args:
        net: Its outputs are the classes of the heads side by side.
        dataset: The training images.
        targets: What each head should learn about them.
        validation: For early stopping only.
        config: How to train.
        progress: Called with sentences.

    Returns:
        The heads as they were learned: without images that cannot be used, and without classes that only those had.

    Raises:
        ModelError: Too few images can be used, or training diverged.
    """
    if config.strategy == "head":
        return _train_head(net, dataset, targets, config, progress)
    return _FullTraining(net, dataset, targets, validation, config, progress).run()


def _train_head(
    net: nn.Module, dataset: ImageDataset, targets: Sequence[HeadTargets], config: TrainConfig, progress: Progress
) -> list[HeadTargets]:
    """Compute the features below the last layer once, and fit that layer by logistic regression."""
    import numpy as np
    import torch

    headless = backbones.remove_last_layer(net, config.arch)
    predictor = Predictor(headless, config.device, dataset.preprocessing, "fp32")
    features, unusable = extract_features(predictor, dataset, config.batch_size, progress)
    targets = drop_unusable(targets, unusable)
    usable = np.delete(features, list(unusable), axis=0) if unusable else features
    mean = usable.mean(axis=0, dtype=np.float64)
    std = usable.std(axis=0, dtype=np.float64)
    del usable
    if not np.isfinite(mean).all():
        raise ModelError(
            f"{config.arch} gives no numbers with these weights.", "Begin with others: --with weights=none"
        )
    # The scale of features means nothing: with random weights those of some networks are of the order of 1e-14.
    std[std <= MIN_RELATIVE_STD * np.abs(mean)] = np.inf
    standardized = features - mean
    standardized /= std
    del features
    start_phase(progress, "training")
    fitted, notes = fit_heads(standardized, targets, config.C, config.class_weight)
    for note in notes:
        progress(note)
    # Fold the standardization into the layer: weights of (row - mean) / std become weights of the row itself.
    coef = np.concatenate([coef for coef, _ in fitted], axis=1) / std[:, None]
    intercept = np.concatenate([intercept for _, intercept in fitted]) - mean @ coef
    last_layer = backbones.resize_last_layer(net, config.arch, len(intercept))
    with torch.no_grad():
        last_layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(coef.T)))
        last_layer.bias.copy_(torch.from_numpy(intercept))
    return targets


def extract_features(
    predictor: Predictor, dataset: ImageDataset, batch_size: int, progress: Progress
) -> tuple[NDArray[np.float32], Mapping[int, str]]:
    """Run every image through a network.

    Returns:
        (n, F), zeros for images that cannot be used; and the positions of those, with the reason.

    Raises:
        ModelError: No image can be used.
    """
    import numpy as np

    total = len(dataset.images)
    features: NDArray[np.float32] | None = None
    unusable: dict[int, str] = {}
    steps = Steps(progress, "extracting features", "images", total)
    with closing(dataset.batches(range(total), batch_size)) as batches:
        for batch in batches:
            usable, errors = split_usable(batch)
            unusable |= errors
            if usable:
                outputs = predictor.scores([pixels for _, pixels in usable])
                if features is None:
                    features = np.zeros((total, outputs.shape[1]), dtype=np.float32)
                features[[position for position, _ in usable]] = outputs
            steps.update(batch[-1][0] + 1, len(unusable))
    dataset.report_unusable(unusable, progress)
    assert features is not None  # else no image could be used, which report_unusable raises
    return features, unusable


class _FullTraining:
    """Fine-tune every layer by SGD with momentum; the learning rate falls after each third, the best epoch is kept."""

    def __init__(
        self,
        net: nn.Module,
        dataset: ImageDataset,
        targets: Sequence[HeadTargets],
        validation: Validation,
        config: TrainConfig,
        progress: Progress,
    ) -> None:
        import torch

        torch.manual_seed(config.seed)
        self.device = torch.device(config.device)
        if self.device.type == "cuda":
            torch.backends.cudnn.deterministic = True  # else it chooses by how fast its kernels just were
        unusable = dataset.find_unusable(config.batch_size, progress)
        dataset.report_unusable(unusable, progress)
        self.net, self.dataset, self.config, self.progress = net, dataset, config, progress
        self.targets = drop_unusable(targets, unusable)
        self.positions = [position for position in range(len(dataset.images)) if position not in unusable]
        self.validation = Validation(
            validation.dataset,
            [restrict_to_head(target, head) for target, head in zip(validation.targets, self.targets, strict=True)],
        )
        backbones.resize_last_layer(net, config.arch, sum(len(head.classes) for head in self.targets))
        self.criterion = MultiHeadLoss(self.targets, self.device, config.class_weight)
        self.predictor = Predictor(net, config.device, dataset.preprocessing, "fp32")
        self.precision = _training_precision(self.device)
        # Scaled, since small gradients would become zero in fp16.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.optimizer = torch.optim.SGD(net.parameters(), lr=config.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def run(self) -> list[HeadTargets]:
        """Train until the epochs or the patience are used up; return the heads as they were learned."""
        import torch

        config = self.config
        schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, max(1, -(-config.epochs // 3)), gamma=LR_DECAY)
        best_quality, best_epoch, best_weights = float("-inf"), 0, copy.deepcopy(self.net.state_dict())
        for epoch in range(1, config.epochs + 1):
            started_at = time.monotonic()
            loss, num_unread = self._train_epoch(epoch)
            schedule.step()
            quality = self._measure(loss, epoch)
            accuracy = f", hold-out accuracy {quality:.4f}" if self.validation.dataset.images else ""
            unread = f", {num_unread:,} images could not be read" if num_unread else ""
            seconds = time.monotonic() - started_at
            self.progress(f"Epoch {epoch} of {config.epochs}: loss {loss:.4f}{accuracy}{unread} ({seconds:.1f} s)")
            if quality > best_quality:
                best_quality, best_epoch, best_weights = quality, epoch, copy.deepcopy(self.net.state_dict())
            elif epoch - best_epoch >= config.patience:
                self.progress(f"No better for {config.patience} epochs.")
                break
        self.net.load_state_dict(best_weights)
        self.progress(f"Epoch {best_epoch} is kept.")
        return self.targets

    def _train_epoch(self, epoch: int) -> tuple[float, int]:
        """Return the mean loss, and the number of images that could not be read this time."""
        import torch

        self.net.train()
        losses = []
        num_unread = 0
        size = self.config.batch_size
        steps = Steps(
            self.progress, f"epoch {epoch} of {self.config.epochs}", "batches", -(-len(self.positions) // size)
        )
        with closing(self._batches(epoch)) as batches:
            for number, batch in enumerate(batches):
                steps.update(number)
                usable, errors = split_usable(batch)
                num_unread += len(errors)
                if len(usable) < 2:  # batch normalization needs more than one image
                    continue
                with autocast(self.device.type, self.precision):
                    outputs = self.net(self.predictor.to_tensor([pixels for _, pixels in usable]))
                loss = self.criterion.loss(outputs.float(), [position for position, _ in usable])
                if loss is None:
                    continue
                self.optimizer.zero_grad(set_to_none=True)
                self.scaler.scale(loss).backward()
                self.scaler.step(self.optimizer)
                self.scaler.update()
                losses.append(loss.detach())
        if not losses:
            raise ModelError(f"No image could be read in epoch {epoch}.", "Try again when they are there.")
        self.net.eval()
        return float(torch.stack(losses).mean()), num_unread

    def _batches(self, epoch: int) -> Batches:
        seed = f"{self.config.seed} {epoch}"
        order = list(self.positions)
        Random(seed).shuffle(order)
        if self.config.augment:
            return self.dataset.augmented_batches(order, self.config.batch_size, seed)
        return self.dataset.batches(order, self.config.batch_size)

    def _measure(self, loss: float, epoch: int) -> float:
        """Return the validation accuracy, or the negated loss without validation images: larger is better."""
        count = len(self.validation.dataset.images)
        quality = -loss
        if count and isfinite(loss):
            steps = Steps(self.progress, f"measuring epoch {epoch}", "images", count)
            quality = validation_accuracy(self.predictor, self.validation, self.config.batch_size, steps)
        if not isfinite(loss) or not isfinite(quality):
            raise ModelError(
                f"Training has diverged in epoch {epoch}.", f"A smaller step helps: --with lr={self.config.lr / 10:g}"
            )
        return quality


def validation_accuracy(
    predictor: Predictor, validation: Validation, batch_size: int, steps: Steps | None = None
) -> float:
    """Return the share of right answers, averaged over the heads; images that cannot be used do not count.

    NaN if the network gives scores that are not finite.
    """
    import numpy as np

    num_right: Counter[int] = Counter()
    num_answers: Counter[int] = Counter()
    heads = list(zip(validation.targets, head_columns(validation.targets), strict=True))
    truths = [dict(zip(head.rows, head.row_classes, strict=True)) for head in validation.targets]
    with closing(validation.dataset.batches(range(len(validation.dataset.images)), batch_size)) as batches:
        for batch in batches:
            usable, _ = split_usable(batch)
            if not usable:
                continue
            scores = predictor.scores([pixels for _, pixels in usable])
            if steps is not None:
                steps.update(batch[-1][0] + 1)
            if not np.isfinite(scores).all():
                return float("nan")
            for number, (head, columns) in enumerate(heads):
                truth = truths[number]
                for (position, _), answer in zip(usable, columns.predicted_classes(scores), strict=True):
                    if position in truth:
                        num_answers[number] += 1
                        num_right[number] += set(truth[position]) == _class_names(head, answer)
    accuracies = [num_right[number] / num_answers[number] for number in num_answers]
    return sum(accuracies) / len(accuracies) if accuracies else 0.0


def _class_names(head: HeadTargets, answer: Any) -> set[str]:
    """Return the names in one row of `HeadColumns.predicted_classes`."""
    if head.is_multi_label:
        return {name for name, applies in zip(head.classes, answer, strict=True) if applies}
    return {head.classes[int(answer)]}


def _training_precision(device: torch.device) -> Precision:
    """Return bf16 where the device has it, fp16 on older GPUs, fp32 elsewhere."""
    import torch

    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
