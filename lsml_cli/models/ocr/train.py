"""Train the recognizer or the text detector on annotated images, and write it into a version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lsml_cli.errors import ModelError, format_list
from lsml_cli.models.base import Progress
from lsml_cli.models.ocr import config as configuration
from lsml_cli.models.ocr import dataset
from lsml_cli.models.ocr.binding import ControlBinding
from lsml_cli.models.ocr.components import (
    DICTIONARY_FILENAME,
    SCOPE,
    ComponentName,
    OcrComponent,
    config_filename,
    weights_filename,
)
from lsml_cli.models.ocr.dataset import TextCrop
from lsml_cli.models.openmmlab import checkpoints, configs, inference, train
from lsml_cli.models.openmmlab.configs import Config
from lsml_cli.models.openmmlab.image_files import TrainingImage
from lsml_cli.models.openmmlab.schedule import TrainingSchedule, apply_schedule
from lsml_cli.models.spec import Json
from lsml_cli.runtime import available_cores

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

TrainingPages = Sequence[tuple[TrainingImage, ControlBinding]]  # images with the controls about them
TrainFunction = Callable[[], dict[str, Json]]  # trains a component and writes it; returns its part of the state

MAX_LISTED_CHARACTERS = 20  # characters that are named when they cannot be learned
MAX_LOADER_PROCESSES = 4  # that load images while a GPU trains


@dataclass(frozen=True)
class TrainConfig:
    """Say what to train on, and how; the fields after `device` are parameters of `Ocr`.

    Args:
        train: The training images.
        validation: Images for early stopping only.
        run_dir: Folder for what training needs.
        out_dir: Folder of the version.
        progress: Called with sentences.
        device: "cpu", "cuda:0".
    """

    train: TrainingPages
    validation: TrainingPages
    run_dir: Path
    out_dir: Path
    progress: Progress
    device: str
    dictionary: str
    epochs: int
    lr: float | None
    batch_size: int | None
    patience: int
    pretrained: bool
    seed: int

    def component_dir(self, name: ComponentName) -> Path:
        """Return the run folder of a component; it is created."""
        folder = (self.run_dir / name).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def prepare_recognizer_training(component: OcrComponent, config: TrainConfig) -> TrainFunction:
    """Do everything but the training of the recognizer, which may take hours, and return a function that does that.

    Raises:
        ModelError: There is nothing to learn, or the initial weights cannot be read.
    """
    train_crops = _extract_crops(config, "train", config.train)
    validation_crops = _extract_crops(config, "holdout", config.validation)
    if not train_crops:
        raise ModelError(
            "There is nothing to learn to read: no text in the annotations has a transcription.",
            "Transcribe some, or learn where text is, and not what it says: --with train=detection",
        )
    own_characters = config.dictionary == "data" or (config.dictionary == "auto" and component.is_untrained)
    case = "unchanged" if own_characters else configuration.letter_case(component.config)
    texts = [configuration.apply_letter_case(crop.text, case) for crop in train_crops]
    characters = (
        "".join(sorted(set("".join(texts)))) if own_characters else configuration.read_characters(component.config)
    )
    configuration.write_characters(characters, config.out_dir)
    _report_unknown_characters(texts, characters, config.progress)
    folder = config.component_dir("recog")
    known_texts = [configuration.drop_unknown_characters(text, characters) for text in texts]
    learned = [TextCrop(crop.path, text) for crop, text in zip(train_crops, known_texts, strict=True) if text]
    dataset.write_recognition_dataset(learned, folder / "train.json")
    dataset.write_recognition_dataset(
        [TextCrop(crop.path, configuration.apply_letter_case(crop.text, case)) for crop in validation_crops],
        folder / "holdout.json",
    )
    train_component = _prepare_training(
        component,
        configuration.build_model_config(component, own_characters=own_characters),
        config,
        len(learned),
        has_validation=bool(validation_crops),
        allow_shape_mismatch=own_characters,
    )

    def train_recognizer() -> dict[str, Json]:
        config.progress(
            f"Learning to read {len(characters)} characters from {len(learned):,} texts in {len(config.train):,} "
            f"images ({component.model_name})."
        )
        return {"characters": characters, "epoch": train_component().epoch}

    return train_recognizer


def prepare_detector_training(component: OcrComponent, config: TrainConfig) -> TrainFunction:
    """Do everything but the training of the text detector, and return a function that does that.

    Raises:
        ModelError: There is nothing to learn, or the initial weights cannot be read.
    """
    folder = config.component_dir("det")
    num_images, num_texts = dataset.write_detection_dataset(config.train, folder / "train.json")
    num_validation_images, _ = dataset.write_detection_dataset(config.validation, folder / "holdout.json")
    if not num_images:
        raise ModelError("There is nothing to learn to find: the annotations have no shape around a text.")
    train_component = _prepare_training(
        component,
        configuration.build_model_config(component, own_characters=False),
        config,
        num_images,
        has_validation=num_validation_images > 0,
        allow_shape_mismatch=False,
    )

    def train_detector() -> dict[str, Json]:
        config.progress(
            f"Learning to find text from {num_texts:,} shapes in {num_images:,} images ({component.model_name})."
        )
        result = train_component()
        return {"epoch": result.epoch, **{name: round(value, 4) for name, value in result.metrics.items()}}

    return train_detector


def save_component(component: OcrComponent, out_dir: Path) -> None:
    """Write a component with trained weights into a version that does not train it."""
    if component.name == "recog":
        configuration.write_characters(configuration.read_characters(component.config), out_dir)
    model_config = configuration.build_model_config(component, own_characters=False)
    _save_component_files(component.name, model_config, component.build_model().state_dict(), out_dir)


def _extract_crops(config: TrainConfig, split: str, pages: TrainingPages) -> list[TextCrop]:
    """Write the transcribed texts of some images into files; report those that are left out of training."""
    skipped: Counter[str] = Counter()
    text_crops = list(dataset.extract_text_crops(pages, config.run_dir / "crops" / split, skipped))
    if skipped and split == "train":
        reasons = format_list(f"{count:,} texts {reason}" for reason, count in skipped.items())
        config.progress(f"Not learned: {reasons}.")
    return text_crops


def _report_unknown_characters(texts: Sequence[str], characters: str, progress: Progress) -> None:
    if unknown := configuration.unknown_characters(texts, characters):
        num_texts = sum(not set(text) <= set(characters) for text in texts)
        listed = " ".join(unknown[:MAX_LISTED_CHARACTERS]) + " …" * (len(unknown) > MAX_LISTED_CHARACTERS)
        progress(
            f"The dictionary lacks {len(unknown)} characters: {listed}. {num_texts:,} texts are learned without them; "
            "--with dictionary=data learns them all."
        )


def _prepare_training(
    component: OcrComponent,
    model_config: Config,
    config: TrainConfig,
    num_samples: int,
    *,
    has_validation: bool,
    allow_shape_mismatch: bool,
) -> Callable[[], train.TrainingResult]:
    """Return a function that trains a component and writes it into the version.

    Args:
        component: The component.
        model_config: What `config.build_model_config` returned.
        config: How to train.
        num_samples: Crops or images to train on.
        has_validation: Whether there are any to stop by.
        allow_shape_mismatch: Whether the last layers may be reinitialized, since they are for other characters.
    """
    folder = config.component_dir(component.name)
    batch_size = configuration.choose_batch_size(component.name, config.batch_size, num_samples)
    runner_config = configuration.build_training_config(
        model_config,
        component,
        folder=folder,
        dictionary=(config.out_dir / DICTIONARY_FILENAME).resolve(),
        batch_size=batch_size,
        lr=config.lr,
        warm_start=not component.is_untrained,
        has_validation=has_validation,
        num_workers=min(MAX_LOADER_PROCESSES, available_cores()) if config.device != "cpu" else 0,
    )
    initial_model = _initial_model(component, runner_config, allow_shape_mismatch, config.progress)
    if initial_model is None and not config.pretrained:
        runner_config["model"] = configs.without_pretrained(runner_config["model"])
    metric, metric_label = configuration.METRICS[component.name]
    # From random weights it reads nothing for many epochs, and then everything.
    patience = config.epochs if component.is_untrained else config.patience
    schedule = TrainingSchedule(config.epochs, patience, metric if has_validation else "", metric_label)
    apply_schedule(runner_config, schedule, num_samples, batch_size)

    def train_component() -> train.TrainingResult:
        result = train.train(
            folder,
            runner_config,
            SCOPE,
            schedule,
            initial_model,
            device=config.device,
            seed=config.seed,
            launcher_args=None,
            progress=config.progress,
        )
        _save_component_files(component.name, model_config, result.checkpoint.weights, config.out_dir)
        return result

    return train_component


def _initial_model(
    component: OcrComponent, runner_config: Config, allow_shape_mismatch: bool, progress: Progress
) -> nn.Module | None:
    """Build a model with the component's weights; None if it has none."""
    checkpoint = component.load_checkpoint()
    if checkpoint is None:
        return None
    model = inference.build_model(runner_config, SCOPE)
    reinitialized = checkpoints.load_into(
        model, checkpoint, model_name=component.model_name, allow_shape_mismatch=allow_shape_mismatch
    )
    if reinitialized:
        progress(
            f"{len(reinitialized)} of the model's arrays are reinitialized, since they belong to other characters."
        )
    return model


def _save_component_files(
    name: ComponentName, model_config: Config, weights: Mapping[str, torch.Tensor], out_dir: Path
) -> None:
    configs.save(model_config, out_dir, config_filename(name))
    checkpoints.save(weights, out_dir, weights_filename(name))
