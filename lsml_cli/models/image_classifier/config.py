"""Declare the parameters of the image classifier, and what a training takes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lsml_cli.models.parameters import Parameter
from lsml_cli.models.torch_runtime import PRECISIONS

MIN_IMAGE_SIZE = 32  # pixels of a side
DEFAULT_WEIGHTS, RANDOM_WEIGHTS = "default", "none"  # of `--with weights=`; anything else is a file

PARAMS: Mapping[str, Parameter] = {
    "arch": Parameter(
        "resnet18",
        "torchvision architecture; an unknown name lists the closest",
        check=bool,
        expected="the name of a torchvision architecture",
    ),
    "weights": Parameter(
        DEFAULT_WEIGHTS,
        "initial weights: torchvision's own, random ones, or those in a file",
        check=bool,
        expected='"default", "none", or a file',
    ),
    "image_size": Parameter(
        None,
        "side of the square that the network sees, in pixels; null for that of the architecture",
        kind="int",
        minimum=MIN_IMAGE_SIZE,
        expected=f"at least {MIN_IMAGE_SIZE} pixels",
    ),
    "precision": Parameter(
        "auto",
        "precision of the forward pass; auto measures which is fastest and equally good",
        choices=("auto", *PRECISIONS),
        expected="auto, fp32, bf16 or fp16",
    ),
    "compile": Parameter(False, "compile the network with torch.compile: worth its minutes on a GPU and a long run"),
    "fast_decode": Parameter(False, "decode JPEG files in reduced size: faster, slightly different pixels"),
    "strategy": Parameter(
        "head",
        "what is trained: a new last layer, or the full network",
        choices=("head", "full"),
        expected="head or full",
    ),
    "C": Parameter(1.0, "inverse strength of regularization (strategy=head)", above=0),
    "class_weight": Parameter(
        None,
        "balanced to count rare classes as much as frequent ones",
        choices=("balanced",),
        expected='"balanced" or null',
    ),
    "epochs": Parameter(25, "most passes over the training images (strategy=full)", minimum=1),
    "lr": Parameter(0.005, "initial learning rate (strategy=full)", above=0),
    "batch_size": Parameter(32, "images per training step", minimum=2),
    "augment": Parameter(True, "train on random crops and mirrored images (strategy=full)"),
    "patience": Parameter(10, "epochs without improvement after which training stops (strategy=full)", minimum=1),
    "seed": Parameter(0, "seed of everything random in training"),
}


@dataclass(frozen=True)
class TrainConfig:
    """Say how to train; the fields after `device` are parameters of `ImageClassifier`."""

    arch: str
    device: str
    strategy: str
    batch_size: int
    epochs: int
    lr: float
    augment: bool
    patience: int
    seed: int
    C: float
    class_weight: str | None
