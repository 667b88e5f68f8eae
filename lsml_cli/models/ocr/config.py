"""Turn a config of mmocr into one that a version stores, and one that trains on our dataset.

A recognizer trains on crops as it will see them later, so they go through its own test pipeline. A text detector trains
with the training pipeline of its own config, which crops and rotates images.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lsml_cli.errors import ModelError
from lsml_cli.models.ocr.components import DICTIONARY_FILENAME, SCOPE, ComponentName, OcrComponent, dictionary_configs
from lsml_cli.models.openmmlab import configs
from lsml_cli.models.openmmlab.configs import Config
from lsml_cli.models.openmmlab.image_files import loading_step
from lsml_cli.models.openmmlab.schedule import FINE_TUNE_LR_FACTOR

METRICS: Mapping[ComponentName, tuple[str, str]] = {  # as the toolkit names it, and as a sentence does
    "recog": ("recog/word_acc", "hold-out word accuracy"),
    "det": ("icdar/hmean", "hold-out hmean"),
}
BASE_LR = 1e-3  # of Adam, for random weights
UPDATES_PER_EPOCH = 50  # aimed at: a recognizer needs some hundreds of steps before it reads anything
# Smallest width of a crop, in heights, for a recognizer with random weights: narrow letters are hard to tell apart with
# few columns each.
MIN_CROP_ASPECT = 2
RECOGNIZER_BATCH_SIZES = 8, 32  # crops per step, at least and at most
DETECTOR_BATCH_SIZE = 8  # images per step


def read_characters(config: Config) -> str:
    """Return the characters that a recognizer's config knows. Raises ModelError if it names no file of them."""
    for part in dictionary_configs(config):
        try:
            lines = Path(part["dict_file"]).read_text("utf-8").split("\n")
        except OSError as error:
            raise ModelError(f"The dictionary {part['dict_file']} cannot be read: {error.strerror}.") from error
        return "".join(line.strip("\r") for line in lines)
    raise ModelError("The config of the recognizer names no dictionary (dict_file).")


def write_characters(characters: str, folder: Path) -> None:
    """Write the dictionary of a version: one character per line."""
    (folder / DICTIONARY_FILENAME).write_text("".join(f"{character}\n" for character in characters), "utf-8")


def letter_case(config: Config) -> str:
    """Return how texts are learned: "lower", "upper" or "unchanged"."""
    cases = (part.get("letter_case") for part in configs.iter_dicts(config["model"]))
    return next((str(case) for case in cases if case), "unchanged")


def apply_letter_case(text: str, case: str) -> str:
    """Return a text in the case that `letter_case` returned."""
    return text.lower() if case == "lower" else text.upper() if case == "upper" else text


def drop_unknown_characters(text: str, characters: str) -> str:
    """Return a text without the characters that are not in the dictionary."""
    return " ".join("".join(character for character in text if character in characters).split())


def unknown_characters(texts: Iterable[str], characters: str) -> list[str]:
    """Return the characters of some texts that are not in the dictionary, sorted."""
    return sorted({character for text in texts for character in text} - set(characters))


def build_model_config(component: OcrComponent, *, own_characters: bool) -> Config:
    """Build the config that a version stores: model, preparation of images, and how a text detector is trained.

    Args:
        component: The model.
        own_characters: Whether the dictionary is that of the training data; texts keep their case then.
    """
    model = copy.deepcopy(component.config["model"])

    def adapt(part: dict[str, Any]) -> None:
        configs.replace_sync_batch_norm(part)
        if "dict_file" in part:
            part["dict_file"] = DICTIONARY_FILENAME
        if own_characters and "letter_case" in part:
            part["letter_case"] = "unchanged"
        if str(part.get("type", "")).endswith("CTCModuleLoss"):
            part["zero_infinity"] = True  # else a text that is too long for its crop makes the loss infinite

    configs.update_dicts(model, adapt)
    config: Config = {
        "default_scope": SCOPE,
        "model": model,
        "test_dataloader": {"dataset": {"type": "OCRDataset", "pipeline": _test_pipeline(component)}},
        "test_evaluator": _evaluator_configs(component.name),
    }
    # So that training can continue where the config itself is missing.
    if component.name == "det" and (steps := _source_training_pipeline(component)):
        config["train_dataloader"] = {"dataset": {"type": "OCRDataset", "pipeline": steps}}
    configs.require_storable(config, f"The config {component.model_name}")
    return config


def build_training_config(
    model_config: Config,
    component: OcrComponent,
    *,
    folder: Path,
    dictionary: Path,
    batch_size: int,
    lr: float | None,
    warm_start: bool,
    has_validation: bool,
    num_workers: int,
) -> Config:
    """Build the config for mmengine's Runner, except for its length, which `schedule.apply_schedule` adds.

    Args:
        model_config: What `build_model_config` returned.
        component: The model.
        folder: With train.json and, if there is validation, holdout.json.
        dictionary: The file of characters.
        batch_size: Crops or images per step.
        lr: Learning rate; None for the default.
        warm_start: Whether training starts from trained weights.
        has_validation: Whether to measure the model after an epoch.
        num_workers: Processes that load images.
    """
    model = copy.deepcopy(model_config["model"])
    for part in dictionary_configs(model):
        part["dict_file"] = str(dictionary)
    test_steps = [_with_own_loader(step) for step in model_config["test_dataloader"]["dataset"]["pipeline"]]
    annotated_steps = [*test_steps[:-1], _ANNOTATION_STEPS[component.name], test_steps[-1]]
    loader = {"batch_size": batch_size, "num_workers": num_workers, "persistent_workers": num_workers > 0}
    config: Config = {
        "default_scope": SCOPE,
        "model": model,
        "train_dataloader": loader
        | {
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "dataset": {
                "type": "OCRDataset",
                "ann_file": str(folder / "train.json"),
                "pipeline": annotated_steps if component.name == "recog" else _training_pipeline(component),
            },
        },
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {"type": "Adam", "lr": lr or BASE_LR * (FINE_TUNE_LR_FACTOR if warm_start else 1.0)},
        },
    }
    if has_validation:
        files = {"ann_file": str(folder / "holdout.json"), "test_mode": True}
        dataset = {"type": "OCRDataset", **files, "pipeline": annotated_steps}
        config |= configs.validation_part(loader, dataset, model_config["test_evaluator"])
    return config


def choose_batch_size(name: ComponentName, requested: int | None, num_samples: int) -> int:
    """Return the crops or images per training step.

    Args:
        name: The component.
        requested: By the user; None to choose.
        num_samples: How many there are.
    """
    if requested is None:
        smallest, largest = RECOGNIZER_BATCH_SIZES
        for_updates = math.ceil(num_samples / UPDATES_PER_EPOCH)
        requested = DETECTOR_BATCH_SIZE if name == "det" else min(largest, max(smallest, for_updates))
    return max(1, min(requested, num_samples))


_ANNOTATION_STEPS: dict[ComponentName, dict[str, Any]] = {
    "recog": {"type": "LoadOCRAnnotations", "with_text": True},
    "det": {"type": "LoadOCRAnnotations", "with_polygon": True, "with_bbox": True, "with_label": True},
}


def _test_pipeline(component: OcrComponent) -> list[dict[str, Any]]:
    """Return how images are prepared; for a recognizer with random weights, none narrower than `MIN_CROP_ASPECT`."""
    steps = copy.deepcopy(component.pipeline_steps)
    for step in steps if component.is_untrained else ():
        if configs.type_name(step) == "RescaleToHeight" and step.get("max_width") is None:
            step["min_width"] = max(step.get("min_width") or 0, MIN_CROP_ASPECT * step["height"])
    return steps


def _evaluator_configs(name: ComponentName) -> list[dict[str, Any]]:
    return [{"type": "HmeanIOUMetric"}] if name == "det" else [{"type": "WordMetric", "mode": ["exact"]}]


def _with_own_loader(step: dict[str, Any]) -> dict[str, Any]:
    return loading_step(step) if configs.is_loading_step(step) else step


def _training_pipeline(component: OcrComponent) -> list[dict[str, Any]]:
    """Return the training pipeline of the component's own config, loading images as lsml does."""
    steps = _source_training_pipeline(component)
    if not steps:
        raise ModelError(
            f"The config {component.model_name} has no train_dataloader with a pipeline, or is no longer there: "
            "nothing says how the text detector learns.",
            f"Name the config of this {component.config['model']['type']} with its training: --with det_config=PATH",
        )
    return [_with_own_loader(step) for step in steps]


def _source_training_pipeline(component: OcrComponent) -> list[dict[str, Any]]:
    """Return the training pipeline of the component's own config; empty if it has none."""
    dataset = (component.source_config.get("train_dataloader") or {}).get("dataset") or {}
    while isinstance(dataset, dict) and not isinstance(dataset.get("pipeline"), list):
        dataset = dataset.get("dataset") or next(iter(dataset.get("datasets", ())), None)
    return copy.deepcopy(dataset["pipeline"]) if dataset else []
