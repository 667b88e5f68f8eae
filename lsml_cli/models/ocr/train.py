"""Annotated pictures -> a recogniser, or a text detector, that has learned them, in the folder of a version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsml_cli.errors import ModelError, format_list
from lsml_cli.models.base import Progress
from lsml_cli.models.ocr import config as recipe
from lsml_cli.models.ocr import dataset
from lsml_cli.models.ocr.components import (
    DICTIONARY_FILENAME,
    SCOPE,
    ComponentName,
    OcrComponent,
    config_filename,
    weights_filename,
)
from lsml_cli.models.ocr.dataset import TextCrop
from lsml_cli.models.ocr.postprocess import ControlBinding
from lsml_cli.models.openmmlab import checkpoints, configs, inference
from lsml_cli.models.openmmlab import train as running
from lsml_cli.models.openmmlab.configs import Config
from lsml_cli.models.openmmlab.image_files import TrainingImage
from lsml_cli.models.spec import Json
from lsml_cli.runtime import available_cores

TrainingPages = Sequence[tuple[TrainingImage, ControlBinding]]  # pictures with the controls about them
TrainFunction = Callable[
    [], dict[str, Json]
]  # trains a part, writes it into the version, returns what is to be known about it

MAX_LISTED_CHARACTERS = 20  # characters that are named when they cannot be learned


@dataclass(frozen=True)
class TrainConfig:
    """What is learned from, and how. See the parameters of `Ocr`.

    train, holdout  the latter only to see which epoch is best
    run             a folder for what training needs; `out` is that of the version
    """

    train: TrainingPages
    validation: TrainingPages
    run_dir: Path
    out_dir: Path
    device: str
    dictionary: str
    epochs: int
    lr: float | None
    batch_size: int | None
    patience: int
    pretrained: bool
    seed: int
    progress: Progress


def prepare_recognizer_training(component: OcrComponent, train_config: TrainConfig) -> TrainFunction:
    """Everything but the training of the recogniser itself, which may take hours: call what comes back.

    Raises ModelError when there is nothing to learn, or nothing to begin with.
    """
    train, held = (
        _extract_crops(train_config, "train", train_config.train),
        _extract_crops(train_config, "holdout", train_config.validation),
    )
    if not train:
        raise ModelError(
            "There is nothing to learn to read: no text in the annotations has a transcription.",
            "Transcribe some, or learn where text is, and not what it says: --with train=detection",
        )
    own = train_config.dictionary == "data" or (train_config.dictionary == "auto" and component.is_untrained)
    case = "unchanged" if own else recipe.letter_case(component.config)
    texts = [recipe.apply_letter_case(each.text, case) for each in train]
    known = (
        "".join(sorted({each for text in texts for each in text})) if own else recipe.read_characters(component.config)
    )
    recipe.write_characters(known, train_config.out_dir)
    _report_unknown_characters(texts, known, train_config)
    learned = [each for each, text in zip(train, texts, strict=True) if recipe.drop_unknown_characters(text, known)]
    folder = _component_dir(train_config, "recog")
    dataset.write_recognition_dataset(
        learned,
        folder / "train.json",
        lambda text: recipe.drop_unknown_characters(recipe.apply_letter_case(text, case), known),
    )
    dataset.write_recognition_dataset(held, folder / "holdout.json", lambda text: recipe.apply_letter_case(text, case))
    described = recipe.build_model_config(component, own_characters=own)
    train_part = _prepare_training(
        component, described, train_config, len(learned), has_validation=bool(held), allow_shape_mismatch=own
    )

    def learn() -> dict[str, Json]:
        train_config.progress(
            f"Learning to read {len(known)} characters from {len(learned):,} texts in {len(train_config.train):,} pictures "
            f"({component.model_name})."
        )
        return {"characters": known, "epoch": train_part().epoch}

    return learn


def prepare_detector_training(component: OcrComponent, train_config: TrainConfig) -> TrainFunction:
    """The same for the text detector."""
    folder = _component_dir(train_config, "det")
    count, texts = dataset.write_detection_dataset(train_config.train, folder / "train.json")
    held, _ = dataset.write_detection_dataset(train_config.validation, folder / "holdout.json")
    if not count:
        raise ModelError("There is nothing to learn to find: the annotations have no shape around a text.")
    described = recipe.build_model_config(component, own_characters=False)
    train_part = _prepare_training(
        component, described, train_config, count, has_validation=held > 0, allow_shape_mismatch=False
    )

    def learn() -> dict[str, Json]:
        train_config.progress(
            f"Learning to find text from {texts:,} shapes in {count:,} pictures ({component.model_name})."
        )
        trained = train_part()
        return {"epoch": trained.epoch, **{name: round(value, 4) for name, value in trained.metrics.items()}}

    return learn


def save_component(component: OcrComponent, out_dir: Path) -> None:
    """Write a part into a version that is not trained, but has learned something before."""
    checkpoint = component.load_checkpoint()
    assert checkpoint is not None
    if component.name == "recog":
        recipe.write_characters(recipe.read_characters(component.config), out_dir)
    _save_component_files(
        component.name,
        recipe.build_model_config(component, own_characters=False),
        component.build_model().state_dict(),
        out_dir,
    )


def _component_dir(train_config: TrainConfig, name: ComponentName) -> Path:
    folder = train_config.run_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _extract_crops(train_config: TrainConfig, split: str, pages: TrainingPages) -> list[TextCrop]:
    """The transcribed texts of some pictures, as files; it is told what is left out."""
    left_out: Counter[str] = Counter()
    found = list(dataset.extract_text_crops(pages, train_config.run_dir / "crops" / split, left_out))
    if left_out and split == "train":
        train_config.progress(
            f"Not learned: {format_list(f'{count:,} texts {reason}' for reason, count in left_out.items())}."
        )
    return found


def _report_unknown_characters(texts: Sequence[str], characters: str, train_config: TrainConfig) -> None:
    if lost := recipe.unknown_characters(texts, characters):
        count = sum(not set(text) <= set(characters) for text in texts)
        train_config.progress(
            f"The dictionary lacks {len(lost)} characters: {' '.join(lost[:MAX_LISTED_CHARACTERS])}{' …' * (len(lost) > MAX_LISTED_CHARACTERS)}. "
            f"{count:,} texts are learned without them; --with dictionary=data learns them all."
        )


def _prepare_training(
    component: OcrComponent,
    model_config: Config,
    train_config: TrainConfig,
    num_samples: int,
    *,
    has_validation: bool,
    allow_shape_mismatch: bool,
) -> Callable[[], running.TrainingResult]:
    """What trains a part and writes it into the version. count: of the crops or pictures to learn from.

    new_ends  whether the last layers may begin anew, since they are about other characters
    """
    folder = _component_dir(train_config, component.name).resolve()
    size = recipe.choose_batch_size(component.name, train_config.batch_size, num_samples)
    config = recipe.build_training_config(
        model_config,
        component,
        folder=folder,
        dictionary=(train_config.out_dir / DICTIONARY_FILENAME).resolve(),
        batch_size=size,
        lr=train_config.lr,
        warm_start=not component.is_untrained,
        has_validation=has_validation,
        num_workers=min(4, available_cores()) if train_config.device != "cpu" else 0,
    )
    start = None
    if (checkpoint := component.load_checkpoint()) is not None:
        start = inference.build_model(config, SCOPE)
        if anew := checkpoints.load_into(
            start, checkpoint, model_name=component.model_name, allow_shape_mismatch=allow_shape_mismatch
        ):
            train_config.progress(
                f"{len(anew)} of the model's arrays begin anew, since they belong to other characters."
            )
    elif not train_config.pretrained:
        config["model"] = configs.without_pretrained(config["model"])
    measure, shown = recipe.METRICS[component.name]
    # One that begins with nothing reads nothing for many epochs, and then everything.
    patience = train_config.epochs if component.is_untrained else train_config.patience
    plan = running.TrainingSchedule(train_config.epochs, patience, measure if has_validation else "", shown)
    running.apply_schedule(config, plan, num_samples, size)

    def train() -> running.TrainingResult:
        found = running.train(
            folder,
            config,
            SCOPE,
            plan,
            start,
            device=train_config.device,
            seed=train_config.seed,
            launcher_args=None,
            progress=train_config.progress,
        )
        _save_component_files(component.name, model_config, found.checkpoint.weights, train_config.out_dir)
        return found

    return train


def _save_component_files(name: ComponentName, model_config: Config, weights: Any, out_dir: Path) -> None:
    configs.save(model_config, out_dir, config_filename(name))
    checkpoints.save(weights, out_dir, weights_filename(name))
