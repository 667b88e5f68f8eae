"""Fit the length and the learning rate of a training into a config for mmengine's Runner."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lsml_cli.models.openmmlab.configs import Config

MAX_GRAD_NORM = 35.0  # gradients are clipped to this norm, as in the toolkits' own configs
MAX_WARMUP_STEPS = 500
WARMUP_START, FINAL_LR_SHARE = 0.01, 0.02  # of the learning rate: at the first step, and at the last
MAX_VALIDATIONS = 25  # of a training; a longer one is not validated after every epoch
FINE_TUNE_LR_FACTOR = 0.25  # of the learning rate, for weights that have been trained before


@dataclass(frozen=True)
class TrainingSchedule:
    """How long a training takes, and which epoch is kept.

    Args:
        epochs: The most epochs.
        patience: Epochs without a better validation after which it ends.
        metric: What decides, as the toolkit names it: "coco/bbox_mAP"; "" without validation: the last epoch is kept.
        metric_label: Its name in a sentence: "hold-out mAP".
        has_fixed_lr: Whether the user set the learning rate, so that it is not scaled.
    """

    epochs: int
    patience: int
    metric: str
    metric_label: str
    has_fixed_lr: bool = False


def apply_schedule(config: Config, schedule: TrainingSchedule, num_images: int, batch_size: int) -> None:
    """Add the number of epochs, and a learning rate that warms up and falls off, to a config in place.

    Args:
        config: With an `optim_wrapper`.
        schedule: The number of epochs.
        num_images: Images per epoch.
        batch_size: Images per step.
    """
    steps = max(1, math.ceil(num_images / batch_size)) * schedule.epochs
    warmup_steps = max(1, min(MAX_WARMUP_STEPS, steps // 10))
    steps = max(steps, warmup_steps + 1)  # a schedule has to end after its beginning
    config["train_cfg"] = {
        "type": "EpochBasedTrainLoop",
        "max_epochs": schedule.epochs,
        "val_interval": max(1, schedule.epochs // MAX_VALIDATIONS) if schedule.metric else schedule.epochs + 1,
    }
    lr = config["optim_wrapper"]["optimizer"]["lr"]
    config["param_scheduler"] = [
        {"type": "LinearLR", "start_factor": WARMUP_START, "by_epoch": False, "begin": 0, "end": warmup_steps},
        {
            "type": "CosineAnnealingLR",
            "eta_min": lr * FINAL_LR_SHARE,
            "begin": warmup_steps,
            "end": steps,
            "T_max": max(1, steps - warmup_steps),
            "by_epoch": False,
        },
    ]
    config["optim_wrapper"].setdefault("clip_grad", {"max_norm": MAX_GRAD_NORM, "norm_type": 2})


def scaled_lr(optimizer: Mapping[str, Any], factor: float) -> float:
    """Return the learning rate of an optimizer for batches that are `factor` times as large."""
    # Adam and its variants already divide by the size of the gradients.
    is_adam = "adam" in str(optimizer.get("type", "")).lower()
    return float(optimizer["lr"] * (math.sqrt(factor) if is_adam else factor))


def distribute_schedule(config: Config, schedule: TrainingSchedule, world_size: int) -> None:
    """Divide the steps of `apply_schedule` among processes that train together, in place.

    A step is one of all processes then, on a batch that is `world_size` times as large. The learning rate is scaled
    accordingly, unless the user set it.
    """
    for part in config["param_scheduler"]:
        part["begin"] = math.ceil(part["begin"] / world_size)
        part["end"] = max(part["begin"] + 1, math.ceil(part["end"] / world_size))
        if "T_max" in part:
            part["T_max"] = part["end"] - part["begin"]
    if schedule.has_fixed_lr:
        return
    optimizer = config["optim_wrapper"]["optimizer"]
    lr = scaled_lr(optimizer, world_size)
    for part in config["param_scheduler"]:
        if "eta_min" in part:
            part["eta_min"] *= lr / optimizer["lr"]
    optimizer["lr"] = lr
