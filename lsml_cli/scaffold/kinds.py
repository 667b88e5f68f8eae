"""Define the kinds of projects that `lsml init` can write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lsml_cli.scaffold import samples
from lsml_cli.scaffold.samples import SampleData

OWN_MODEL = "own"  # the kind of a project with a model class to edit
OPENMMLAB_MODULES = ("torch", "torchvision", "mmcv", "mmengine", "mmdet", "mmocr")
BACKEND_SCRIPT = "script"  # the kind of a project that wraps a script for an older SDK


@dataclass(frozen=True)
class ProjectKind:
    """What differs between the projects of two models.

    Attributes:
        description: one sentence for the README.
        requirements: packages that the model imports.
        params: the model's parameters in `model.toml`.
        sample: the sample tasks.
        needs_openmmlab: whether the model needs MMDetection and MMOCR, which pip alone cannot install.
        metric: the metric by which `retrain` compares versions; higher is better.
        required_modules: modules that the model imports and that may not be installed.
    """

    description: str
    requirements: tuple[str, ...] = ()
    params: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    sample: SampleData = samples.TEXTS
    needs_openmmlab: bool = False
    metric: str = "macro-f1"
    required_modules: tuple[str, ...] = ()


OWN_MODEL_KIND = ProjectKind("A model of your own for Label Studio, by lsml.")
BACKEND_SCRIPT_KIND = ProjectKind("A backend that was written for an older SDK, run by lsml.")

# By the name of the built-in model.
PROJECT_KINDS: dict[str, ProjectKind] = {
    "text-classifier": ProjectKind("A text classifier (TF-IDF and logistic regression) for Label Studio, by lsml."),
    "image-classifier": ProjectKind(
        "An image classifier (transfer learning with torchvision) for Label Studio, by lsml.",
        ("torch", "torchvision"),
        {"weights": "none", "image_size": 64},
        samples.IMAGES,
        required_modules=("torch", "torchvision"),
    ),
    "object-detector": ProjectKind(
        "An object detector (MMDetection) for Label Studio, by lsml.",
        params={"config_file": "rtmdet_tiny_8xb32-300e_coco", "pretrained": False, "image_size": 128, "lr": 0.004},
        sample=samples.BOXES,
        needs_openmmlab=True,
        metric="map50",
        required_modules=OPENMMLAB_MODULES,
    ),
    "ocr": ProjectKind(
        "A text reader for images (MMOCR) for Label Studio, by lsml.",
        sample=samples.WORDS,
        needs_openmmlab=True,
        metric="exact",
        required_modules=OPENMMLAB_MODULES,
    ),
}


def get_kind(name: str) -> ProjectKind:
    """Return the kind of this name: a key of PROJECT_KINDS, OWN_MODEL or BACKEND_SCRIPT."""
    return {OWN_MODEL: OWN_MODEL_KIND, BACKEND_SCRIPT: BACKEND_SCRIPT_KIND, **PROJECT_KINDS}[name]
