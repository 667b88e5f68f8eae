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
from lsml_cli.models.ocr.components import DICTIONARY, SCOPE, Name, Part, dictionaries
from lsml_cli.models.openmmlab import configs
from lsml_cli.models.openmmlab.configs import Config
from lsml_cli.models.openmmlab.image_files import LOADER

MEASURES: dict[Name, tuple[str, str]] = {
    "recog": ("recog/word_acc", "hold-out word accuracy"),
    "det": ("icdar/hmean", "hold-out hmean"),
}
RATE = 1e-3  # of Adam, for a model that has learned nothing yet
FINE = 0.25  # of the learning rate, for weights that have learned something already
UPDATES = 50  # of an epoch, about: a recogniser needs some hundreds before it reads anything
ROOM = 2  # times its height that a crop is wide at least, for a recogniser that begins with nothing: narrow letters are
# hard to tell apart where they have too few columns each
BATCHES = 8, 32  # crops of a batch, at least and at most
PAGES = 8  # pictures of a batch


def characters(config: Config) -> str:
    """Those that a recogniser's config knows. Raises ModelError when it names no file of them."""
    for each in dictionaries(config):
        try:
            lines = Path(each["dict_file"]).read_text("utf-8").split("\n")
        except OSError as error:
            raise ModelError(f"The dictionary {each['dict_file']} cannot be read: {error.strerror}.") from error
        return "".join(line.strip("\r") for line in lines)
    raise ModelError("The config of the recogniser names no dictionary (dict_file).")


def write_characters(known: str, folder: Path) -> None:
    """As the dictionary of a version: a character in each line."""
    (folder / DICTIONARY).write_text("".join(f"{each}\n" for each in known), "utf-8")


def letter_case(config: Config) -> str:
    """ "lower" or "upper" where texts are learned that way, else "unchanged"."""
    found = (part.get("letter_case") for part in configs.parts(config["model"]))
    return next((str(each) for each in found if each), "unchanged")


def spelled(text: str, case: str) -> str:
    return text.lower() if case == "lower" else text.upper() if case == "upper" else text


def known_only(text: str, known: str) -> str:
    """A text without the characters that are not in the dictionary."""
    return " ".join("".join(each for each in text if each in known).split())


def outside(texts: Iterable[str], known: str) -> list[str]:
    """The characters of the texts that are not in the dictionary."""
    return sorted({each for text in texts for each in text} - set(known))


def stored(part: Part, *, own_characters: bool) -> Config:
    """What a version holds of a part's config: the model, how pictures are prepared, and how a text detector learns.

    own_characters  whether the dictionary is that of the training: texts are then learned as they are written
    """
    model = copy.deepcopy(part.config["model"])

    def change(each: dict[str, Any]) -> None:
        if each.get("type") in ("SyncBN", "MMSyncBN"):
            each["type"] = "BN"  # the same, where one device trains
        if "dict_file" in each:
            each["dict_file"] = DICTIONARY
        if own_characters and "letter_case" in each:
            each["letter_case"] = "unchanged"
        if str(each.get("type", "")).endswith("CTCModuleLoss"):
            each["zero_infinity"] = True  # a text that is too long for its crop must not spoil the rest

    configs.adapt(model, change)
    found: Config = {
        "default_scope": SCOPE,
        "model": model,
        "test_dataloader": {"dataset": {"type": "OCRDataset", "pipeline": _roomy(part)}},
        "test_evaluator": _metrics(part.name),
    }
    if part.name == "det" and (steps := _own_steps(part)):  # to go on learning where the config itself is not
        found["train_dataloader"] = {"dataset": {"type": "OCRDataset", "pipeline": steps}}
    configs.require_registered(found, f"The config {part.who}")
    return found


def for_training(
    described: Config,
    part: Part,
    *,
    folder: Path,
    dictionary: Path,
    batch_size: int,
    lr: float | None,
    warm: bool,
    measured: bool,
    workers: int,
) -> Config:
    """What mmengine's Runner wants, of what `stored` gave; without its length, which `running.scheduled` gives it.

    folder      with train.json and, if `measured`, holdout.json
    dictionary  the file of characters
    warm        whether it begins with weights that have learned something
    workers     processes that load pictures
    """
    model = copy.deepcopy(described["model"])
    for each in dictionaries(model):
        each["dict_file"] = str(dictionary)
    test = [_loading(step) for step in described["test_dataloader"]["dataset"]["pipeline"]]
    annotated = [*test[:-1], _ANNOTATIONS[part.name], test[-1]]
    loader = {"batch_size": batch_size, "num_workers": workers, "persistent_workers": workers > 0}
    config: Config = {
        "default_scope": SCOPE,
        "model": model,
        "train_dataloader": loader
        | {
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "dataset": {
                "type": "OCRDataset",
                "ann_file": str(folder / "train.json"),
                "pipeline": annotated if part.name == "recog" else _learning(part),
            },
        },
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {"type": "Adam", "lr": lr or RATE * (FINE if warm else 1.0)},
        },
    }
    if measured:
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
        config["val_evaluator"] = described["test_evaluator"]
    return config


def batch_of(name: Name, asked: int | None, count: int) -> int:
    """Crops or pictures that are learned from together, of so many that there are."""
    if asked is None:
        least, most = BATCHES
        asked = PAGES if name == "det" else min(most, max(least, math.ceil(count / UPDATES)))
    return max(1, min(asked, count))


_ANNOTATIONS: dict[Name, dict[str, Any]] = {
    "recog": {"type": "LoadOCRAnnotations", "with_text": True},
    "det": {"type": "LoadOCRAnnotations", "with_polygon": True, "with_bbox": True, "with_label": True},
}


def _roomy(part: Part) -> list[dict[str, Any]]:
    """How pictures are prepared; by a recogniser that begins with nothing, none narrower than `ROOM`."""
    steps = copy.deepcopy(part.steps)
    for step in steps if part.begins_random else ():
        if configs.name_of(step) == "RescaleToHeight" and step.get("max_width") is None:
            step["min_width"] = max(step.get("min_width") or 0, ROOM * step["height"])
    return steps


def _metrics(name: Name) -> list[dict[str, Any]]:
    return [{"type": "HmeanIOUMetric"}] if name == "det" else [{"type": "WordMetric", "mode": ["exact"]}]


def _loading(step: dict[str, Any]) -> dict[str, Any]:
    if not configs.loads(step):
        return step
    return {"type": LOADER} | {key: step[key] for key in ("color_type", "to_float32") if key in step}


def _learning(part: Part) -> list[dict[str, Any]]:
    """How the config itself trains, loading pictures as lsml does."""
    steps = _own_steps(part)
    if not steps:
        raise ModelError(
            f"The config {part.who} has no train_dataloader with a pipeline, or is no longer there: nothing says how "
            "the text detector learns.",
            f"Name the config of this {part.config['model']['type']} with its training: --with det_config=PATH",
        )
    return [_loading(step) for step in steps]


def _own_steps(part: Part) -> list[dict[str, Any]]:
    """What a config does to a picture in training; nothing where it does not say."""
    dataset = (part.training.get("train_dataloader") or {}).get("dataset") or {}
    while isinstance(dataset, dict) and not isinstance(dataset.get("pipeline"), list):
        dataset = dataset.get("dataset") or next(iter(dataset.get("datasets", ())), None)
    return copy.deepcopy(dataset["pipeline"]) if dataset else []
