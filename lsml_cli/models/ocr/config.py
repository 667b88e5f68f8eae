"""Configs of mmocr -> the one that a version stores, and the one that trains on a dataset of our own.

A recogniser learns from crops as it will see them later, so they go through the steps of its own test pipeline. A text
detector learns by the steps of its own recipe, which cuts out and turns parts of pictures.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lsml_cli.errors import ModelError
from lsml_cli.models.ocr.components import DICTIONARY_FILENAME, SCOPE, ComponentName, OcrComponent, dictionary_configs
from lsml_cli.models.openmmlab import configs
from lsml_cli.models.openmmlab.configs import Config
from lsml_cli.models.openmmlab.image_files import IMAGE_LOADER

METRICS: dict[ComponentName, tuple[str, str]] = {
    "recog": ("recog/word_acc", "hold-out word accuracy"),
    "det": ("icdar/hmean", "hold-out hmean"),
}
BASE_LR = 1e-3  # of Adam, for a model that has learned nothing yet
FINE_TUNE_LR_FACTOR = 0.25  # of the learning rate, for weights that have learned something already
UPDATES_PER_EPOCH = 50  # of an epoch, about: a recogniser needs some hundreds before it reads anything
MIN_CROP_ASPECT = (
    2  # times its height that a crop is wide at least, for a recogniser that begins with nothing: narrow letters are
)
# hard to tell apart where they have too few columns each
RECOGNIZER_BATCH_SIZES = 8, 32  # crops of a batch, at least and at most
DETECTOR_BATCH_SIZE = 8  # pictures of a batch


def read_characters(config: Config) -> str:
    """Those that a recogniser's config knows. Raises ModelError when it names no file of them."""
    for each in dictionary_configs(config):
        try:
            lines = Path(each["dict_file"]).read_text("utf-8").split("\n")
        except OSError as error:
            raise ModelError(f"The dictionary {each['dict_file']} cannot be read: {error.strerror}.") from error
        return "".join(line.strip("\r") for line in lines)
    raise ModelError("The config of the recogniser names no dictionary (dict_file).")


def write_characters(characters: str, folder: Path) -> None:
    """As the dictionary of a version: a character in each line."""
    (folder / DICTIONARY_FILENAME).write_text("".join(f"{each}\n" for each in characters), "utf-8")


def letter_case(config: Config) -> str:
    """ "lower" or "upper" where texts are learned that way, else "unchanged"."""
    found = (part.get("letter_case") for part in configs.iter_dicts(config["model"]))
    return next((str(each) for each in found if each), "unchanged")


def apply_letter_case(text: str, case: str) -> str:
    return text.lower() if case == "lower" else text.upper() if case == "upper" else text


def drop_unknown_characters(text: str, characters: str) -> str:
    """A text without the characters that are not in the dictionary."""
    return " ".join("".join(each for each in text if each in characters).split())


def unknown_characters(texts: Iterable[str], characters: str) -> list[str]:
    """The characters of the texts that are not in the dictionary."""
    return sorted({each for text in texts for each in text} - set(characters))


def build_model_config(component: OcrComponent, *, own_characters: bool) -> Config:
    """What a version holds of a part's config: the model, how pictures are prepared, and how a text detector learns.

    own_characters  whether the dictionary is that of the training: texts are then learned as they are written
    """
    model = copy.deepcopy(component.config["model"])

    def change(each: dict[str, Any]) -> None:
        if each.get("type") in ("SyncBN", "MMSyncBN"):
            each["type"] = "BN"  # the same, where one device trains
        if "dict_file" in each:
            each["dict_file"] = DICTIONARY_FILENAME
        if own_characters and "letter_case" in each:
            each["letter_case"] = "unchanged"
        if str(each.get("type", "")).endswith("CTCModuleLoss"):
            each["zero_infinity"] = True  # a text that is too long for its crop must not spoil the rest

    configs.update_dicts(model, change)
    found: Config = {
        "default_scope": SCOPE,
        "model": model,
        "test_dataloader": {"dataset": {"type": "OCRDataset", "pipeline": _test_pipeline(component)}},
        "test_evaluator": _evaluator_configs(component.name),
    }
    if component.name == "det" and (
        steps := _source_training_pipeline(component)
    ):  # to go on learning where the config itself is not
        found["train_dataloader"] = {"dataset": {"type": "OCRDataset", "pipeline": steps}}
    configs.require_registered(found, f"The config {component.model_name}")
    return found


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
    """What mmengine's Runner wants, of what `stored` gave; without its length, which `running.scheduled` gives it.

    folder      with train.json and, if `measured`, holdout.json
    dictionary  the file of characters
    warm        whether it begins with weights that have learned something
    workers     processes that load pictures
    """
    model = copy.deepcopy(model_config["model"])
    for each in dictionary_configs(model):
        each["dict_file"] = str(dictionary)
    test = [_loading_step(step) for step in model_config["test_dataloader"]["dataset"]["pipeline"]]
    annotated = [*test[:-1], _ANNOTATION_STEPS[component.name], test[-1]]
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
                "pipeline": annotated if component.name == "recog" else _training_pipeline(component),
            },
        },
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {"type": "Adam", "lr": lr or BASE_LR * (FINE_TUNE_LR_FACTOR if warm_start else 1.0)},
        },
    }
    if has_validation:
        config["val_cfg"] = {"type": "ValLoop"}
        config["val_dataloader"] = loader | {
            "drop_last": False,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": {
                "type": "OCRDataset",
                "ann_file": str(folder / "holdout.json"),
                "test_mode": True,
                "pipeline": annotated,
            },
        }
        config["val_evaluator"] = model_config["test_evaluator"]
    return config


def choose_batch_size(name: ComponentName, requested: int | None, num_samples: int) -> int:
    """Crops or pictures that are learned from together, of so many that there are."""
    if requested is None:
        least, most = RECOGNIZER_BATCH_SIZES
        requested = (
            DETECTOR_BATCH_SIZE if name == "det" else min(most, max(least, math.ceil(num_samples / UPDATES_PER_EPOCH)))
        )
    return max(1, min(requested, num_samples))


_ANNOTATION_STEPS: dict[ComponentName, dict[str, Any]] = {
    "recog": {"type": "LoadOCRAnnotations", "with_text": True},
    "det": {"type": "LoadOCRAnnotations", "with_polygon": True, "with_bbox": True, "with_label": True},
}


def _test_pipeline(component: OcrComponent) -> list[dict[str, Any]]:
    """How pictures are prepared; by a recogniser that begins with nothing, none narrower than `ROOM`."""
    steps = copy.deepcopy(component.pipeline_steps)
    for step in steps if component.is_untrained else ():
        if configs.type_name(step) == "RescaleToHeight" and step.get("max_width") is None:
            step["min_width"] = max(step.get("min_width") or 0, MIN_CROP_ASPECT * step["height"])
    return steps


def _evaluator_configs(name: ComponentName) -> list[dict[str, Any]]:
    return [{"type": "HmeanIOUMetric"}] if name == "det" else [{"type": "WordMetric", "mode": ["exact"]}]


def _loading_step(step: dict[str, Any]) -> dict[str, Any]:
    if not configs.is_loading_step(step):
        return step
    return {"type": IMAGE_LOADER} | {key: step[key] for key in ("color_type", "to_float32") if key in step}


def _training_pipeline(component: OcrComponent) -> list[dict[str, Any]]:
    """How the config itself trains, loading pictures as lsml does."""
    steps = _source_training_pipeline(component)
    if not steps:
        raise ModelError(
            f"The config {component.model_name} has no train_dataloader with a pipeline, or is no longer there: nothing says how "
            "the text detector learns.",
            f"Name the config of this {component.config['model']['type']} with its training: --with det_config=PATH",
        )
    return [_loading_step(step) for step in steps]


def _source_training_pipeline(component: OcrComponent) -> list[dict[str, Any]]:
    """What a config does to a picture in training; nothing where it does not say."""
    dataset = (component.source_config.get("train_dataloader") or {}).get("dataset") or {}
    while isinstance(dataset, dict) and not isinstance(dataset.get("pipeline"), list):
        dataset = dataset.get("dataset") or next(iter(dataset.get("datasets", ())), None)
    return copy.deepcopy(dataset["pipeline"]) if dataset else []
