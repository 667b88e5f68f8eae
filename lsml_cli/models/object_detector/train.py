"""Fine-tune a detector: annotated tasks -> a dataset in the run folder -> the best weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lsml_cli.models.base import Progress
from lsml_cli.models.media_reader import MediaReader
from lsml_cli.models.object_detector import dataset
from lsml_cli.models.object_detector.binding import ControlPairs
from lsml_cli.models.object_detector.config import build_training_config, has_masks
from lsml_cli.models.openmmlab import image_files, toolkit, train
from lsml_cli.models.openmmlab.configs import Config
from lsml_cli.models.openmmlab.image_files import TrainingImage
from lsml_cli.models.openmmlab.schedule import TrainingSchedule, apply_schedule
from lsml_cli.runtime import available_cores
from lsml_cli.schema.label_config import Object
from lsml_cli.schema.tasks import AnnotatedTask

if TYPE_CHECKING:
    from torch import nn

SCOPE: toolkit.Scope = "mmdet"
MAX_LOADER_PROCESSES = 4  # that load images while a GPU trains


@dataclass(frozen=True)
class TrainConfig:
    """Say how to train; the fields after `device` are parameters of `ObjectDetector`."""

    run_dir: Path
    model_name: str
    device: str
    epochs: int
    lr: float | None
    batch_size: int
    augment: bool
    patience: int
    seed: int
    launch: str | None


@dataclass(frozen=True)
class Dataset:
    """The splits that lie in a run folder: images, training regions, held-out regions."""

    num_images: int
    num_regions: int
    num_validation_regions: int


def write_dataset(
    train_examples: Sequence[AnnotatedTask],
    validation: Sequence[AnnotatedTask],
    pairs: ControlPairs,
    classes: Sequence[str],
    run_dir: Path,
    media_reader: MediaReader,
    progress: Progress,
) -> Dataset:
    """Write the images of both splits, train.json and holdout.json into a run folder.

    Raises:
        ModelError: No image of a split can be used.
    """
    splits = []
    for name, examples in (("train", train_examples), ("holdout", validation)):
        images: list[tuple[TrainingImage, ControlPairs]] = []
        for number, (image_object, image_pairs) in enumerate(group_by_image(pairs)):
            folder = run_dir / "pictures" / f"{name}-{number}"
            fetched = image_files.fetch_images(examples, image_object, media_reader, folder, progress)
            images += [(image, image_pairs) for image in fetched]
        coco = dataset.build_coco(images, classes)
        dataset.write(coco, run_dir / f"{name}.json")
        splits.append(coco)
    training, held_out = splits
    return Dataset(len(training["images"]), len(training["annotations"]), len(held_out["annotations"]))


def train_detector(
    initial_model: nn.Module | None,
    model_config: Config,
    source_config: Config,
    data: Dataset,
    config: TrainConfig,
    progress: Progress,
) -> train.TrainingResult:
    """Train on the dataset in the run folder.

    Args:
        initial_model: A model with the initial weights; None for those that its config names.
        model_config: What `build_model_config` returned.
        source_config: The config with the optimizer.
        data: What `write_dataset` returned.
        config: How to train.
        progress: Called with sentences.

    Raises:
        ModelError: Training failed.
    """
    batch_size = min(config.batch_size, data.num_images)
    has_validation = data.num_validation_regions > 0
    run_dir = config.run_dir.resolve()
    runner_config = build_training_config(
        model_config,
        source_config,
        run_dir=str(run_dir),
        batch_size=batch_size,
        lr=config.lr,
        augment=config.augment,
        warm_start=initial_model is not None,
        has_validation=has_validation,
        on_gpu=config.device != "cpu",
        num_workers=min(MAX_LOADER_PROCESSES, available_cores()) if config.device != "cpu" else 0,
    )
    metric = "coco/segm_mAP" if has_masks(source_config) else "coco/bbox_mAP"
    schedule = TrainingSchedule(
        config.epochs,
        config.patience,
        metric if has_validation else "",
        "hold-out mAP",
        has_fixed_lr=config.lr is not None,
    )
    apply_schedule(runner_config, schedule, image_files.images_per_epoch(data.num_images, batch_size), batch_size)
    return train.train(
        run_dir,
        runner_config,
        SCOPE,
        schedule,
        initial_model,
        device=config.device,
        seed=config.seed,
        launcher_args=config.launch,
        progress=progress,
    )


def group_by_image(pairs: ControlPairs) -> list[tuple[Object, ControlPairs]]:
    """Return each image of a task, with the pairs that are about it."""
    image_objects = dict.fromkeys(image for _, image in pairs)
    return [(image, [pair for pair in pairs if pair[1] == image]) for image in image_objects]
