"""Turn a config of mmdet into one that trains on our dataset, and one that predicts afterwards.

The toolkit's own recipes are for hundreds of epochs on eight GPUs and a hundred thousand images, with mosaics and
changes half-way. Fine-tuning is about some hundred images and a few dozen epochs, so the pipeline here is a plain one:
images in the size of the config's test pipeline, scaled a little, mirrored, and changed in color.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from lsml_cli.errors import ModelError, UsageError
from lsml_cli.models.openmmlab import configs, toolkit
from lsml_cli.models.openmmlab.configs import Config
from lsml_cli.models.openmmlab.image_files import BATCH_SAMPLER, IMAGE_LOADER
from lsml_cli.models.openmmlab.schedule import FINE_TUNE_LR_FACTOR, scaled_lr

SCALE_RANGE = (0.75, 1.25)  # factors by which a training image is scaled
DEFAULT_BASE_BATCH_SIZE = 16  # images for which a config's learning rate is meant, if it does not say
STRIDE = 32  # pixels per cell of a model's coarsest features


def build_model_config(config: Config, classes: Sequence[str], image_size: int | None) -> Config:
    """Build the config that a version stores: of a model for these classes, without its old dataset.

    Args:
        config: The config of the model.
        classes: In the order of its outputs.
        image_size: Longer side of the images that it sees, in pixels; None for that of the config.

    Raises:
        ModelError: The config does not say how many classes its model has.
        UsageError: `image_size` is given, and the config does not resize images.
    """
    model = copy.deepcopy(config["model"])
    classifiers = _classifier_configs(model)
    if not classifiers:
        raise ModelError("The config does not say how many classes its model tells apart (num_classes).")
    for part in classifiers:
        part["num_classes"] = len(classes)
    configs.update_dicts(model, configs.replace_sync_batch_norm)
    if isinstance(model.get("data_preprocessor"), dict):
        model["data_preprocessor"]["batch_augments"] = None
    steps = configs.test_pipeline(config)
    if image_size is not None:
        _resize(steps, round_to_stride(image_size))
    return {
        "default_scope": "mmdet",
        "model": model,
        "test_dataloader": {
            "dataset": {"type": "CocoDataset", "metainfo": {"classes": tuple(classes)}, "pipeline": steps}
        },
        "test_evaluator": {"type": "CocoMetric", "metric": ["bbox", "segm"] if has_masks(config) else ["bbox"]},
    }


def build_training_config(
    model_config: Config,
    source_config: Config,
    *,
    run_dir: str,
    batch_size: int,
    lr: float | None,
    augment: bool,
    warm_start: bool,
    has_validation: bool,
    on_gpu: bool,
    num_workers: int,
) -> Config:
    """Build the config for mmengine's Runner, except for its length, which `schedule.apply_schedule` adds.

    Args:
        model_config: What `build_model_config` returned.
        source_config: The config with the optimizer.
        run_dir: Folder with `pictures`, train.json and, if there is validation, holdout.json.
        batch_size: Images per step.
        lr: Learning rate; None for that of the config, scaled to the batch size.
        augment: Whether to vary the training images.
        warm_start: Whether training starts from trained weights.
        has_validation: Whether to measure the model after an epoch.
        on_gpu: Whether the config's mixed precision can be used.
        num_workers: Processes that load images.
    """
    test_dataset = model_config["test_dataloader"]["dataset"]
    with_masks = has_masks(source_config)
    loader = {"batch_size": batch_size, "num_workers": num_workers, "persistent_workers": num_workers > 0}
    base_dataset = {
        "type": "CocoDataset",
        "metainfo": test_dataset["metainfo"],
        "data_root": run_dir,
        "data_prefix": {"img": "pictures/"},
    }
    config = dict(model_config) | {
        "train_dataloader": loader
        | {
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "batch_sampler": {"type": BATCH_SAMPLER},
            "dataset": base_dataset
            | {
                "ann_file": "train.json",
                "filter_cfg": {"filter_empty_gt": False, "min_size": 1},
                "pipeline": _training_steps(test_dataset["pipeline"], with_masks, augment),
            },
        },
        "optim_wrapper": _optimizer(source_config, batch_size, lr, warm_start, on_gpu),
    }
    config.pop("test_dataloader")
    config.pop("test_evaluator")
    if has_validation:
        steps = _validation_steps(test_dataset["pipeline"], with_masks)
        dataset = base_dataset | {"ann_file": "holdout.json", "test_mode": True, "pipeline": steps}
        evaluator = {"type": "CocoMetric", "ann_file": f"{run_dir}/holdout.json"}
        config |= configs.validation_part(
            loader, dataset, evaluator | {"metric": model_config["test_evaluator"]["metric"]}
        )
    return config


def num_classes(config: Config) -> int | None:
    """Return the number of classes of a config's model; None if it does not say."""
    classifiers = _classifier_configs(config["model"])
    return classifiers[0]["num_classes"] if classifiers else None


def dataset_classes(config: Config) -> tuple[str, ...]:
    """Return the classes that a config names for its own dataset, or those of a dataset that the toolkit knows."""
    dataset = (config.get("test_dataloader") or {}).get("dataset") or {}
    while isinstance(dataset, dict):
        classes = (dataset.get("metainfo") or {}).get("classes")
        if classes:
            return (classes,) if isinstance(classes, str) else tuple(classes)
        if "dataset" not in dataset:
            break
        dataset = dataset["dataset"]
    classes = (config.get("metainfo") or {}).get("classes")
    if classes:
        return tuple(classes)
    toolkit.import_mmdet()
    from mmdet.registry import DATASETS

    dataset_class = DATASETS.get(str(dataset.get("type", "CocoDataset")))
    return tuple(getattr(dataset_class, "METAINFO", {}).get("classes", ()))


def has_masks(config: Config) -> bool:
    """Tell whether a model finds masks: it has a head for them, or is measured by them."""
    if any("mask_head" in part for part in configs.iter_dicts(config["model"])):
        return True
    evaluator = config.get("test_evaluator") or {}
    evaluators = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    return any("segm" in str(part.get("metric", "")) for part in evaluators if isinstance(part, dict))


def round_to_stride(image_size: int) -> int:
    """Return the closest size that a model can halve often enough: in others, features differ in size by a pixel."""
    return max(1, round(image_size / STRIDE)) * STRIDE


def _classifier_configs(model: Config) -> list[dict[str, Any]]:
    """Return the parts that tell the classes apart, those of the boxes first.

    Without those of an RPN, which only tells objects from background.
    """
    proposal_parts = {id(part) for part in configs.iter_dicts(model.get("rpn_head"))}
    roi_head = model.get("roi_head")
    box_heads = [model.get("bbox_head"), roi_head.get("bbox_head") if isinstance(roi_head, dict) else roi_head]
    parts = [part for root in (*box_heads, model) for part in configs.iter_dicts(root)]
    distinct = {id(part): part for part in parts if isinstance(part.get("num_classes"), int)}
    return [part for key, part in distinct.items() if key not in proposal_parts]


def _resize(steps: list[dict[str, Any]], size: int) -> None:
    """Change a pipeline in place, so that the longer side of its images has `size` pixels."""
    if not any(configs.type_name(step) == "Resize" for step in steps):
        raise UsageError(
            "This config takes images as large as they are: it has no step Resize that image_size could change.",
            "Leave out image_size, or choose a config that has one, such as rtmdet_tiny_8xb32-300e_coco.",
        )
    for step in steps:
        if configs.type_name(step) == "Resize":
            step["scale"] = (size, size)
        if configs.type_name(step) == "Pad" and step.get("size") is not None:
            step["size"] = (size, size)


def _annotation_step(with_masks: bool) -> dict[str, Any]:
    return {"type": "LoadAnnotations", "with_bbox": True, "with_mask": with_masks}


def _validation_steps(test_steps: Sequence[dict[str, Any]], with_masks: bool) -> list[dict[str, Any]]:
    """Return the test pipeline with annotations loaded before its last step."""
    steps = [{"type": IMAGE_LOADER} if configs.is_loading_step(step) else step for step in test_steps]
    return [*steps[:-1], _annotation_step(with_masks), steps[-1]]


def _training_steps(test_steps: Sequence[dict[str, Any]], with_masks: bool, augment: bool) -> list[dict[str, Any]]:
    """Return the test pipeline with annotations and, if asked for, augmentation."""
    steps: list[dict[str, Any]] = []
    for step in test_steps:
        step_type = configs.type_name(step)
        if configs.is_loading_step(step):
            steps += [{"type": IMAGE_LOADER}, _annotation_step(with_masks)]
        elif step_type == "Resize" and augment:
            scale = step["scale"]
            size = scale if isinstance(scale, tuple | list) else (scale, scale)
            steps += [
                {"type": "RandomResize", "scale": tuple(size), "ratio_range": SCALE_RANGE, "keep_ratio": True},
                {"type": "RandomCrop", "crop_size": (max(size), max(size)), "allow_negative_crop": True},
                {"type": "PhotoMetricDistortion"},
                {"type": "RandomFlip", "prob": 0.5},
            ]
        elif step_type == "PackDetInputs":
            steps += [{"type": "FilterAnnotations", "min_gt_bbox_wh": (1, 1), "keep_empty": False}, {"type": step_type}]
        else:
            steps.append(step)
    return steps


def _optimizer(config: Config, batch_size: int, lr: float | None, warm_start: bool, on_gpu: bool) -> dict[str, Any]:
    """Return the config's own optimizer, its learning rate scaled to the batch size; AdamW if it names none."""
    wrapper = copy.deepcopy(config.get("optim_wrapper") or {})
    optimizer = wrapper.get("optimizer")
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("lr"), int | float):
        wrapper = {"optimizer": {"type": "AdamW", "lr": 0.001, "weight_decay": 0.05}}
        optimizer = wrapper["optimizer"]
    if wrapper.get("type") != "AmpOptimWrapper" or not on_gpu:
        wrapper = {key: value for key, value in wrapper.items() if key not in ("loss_scale", "dtype")}
        wrapper["type"] = "OptimWrapper"
    if lr is not None:
        optimizer["lr"] = float(lr)
        return wrapper
    base_batch_size = (config.get("auto_scale_lr") or {}).get("base_batch_size") or DEFAULT_BASE_BATCH_SIZE
    optimizer["lr"] = scaled_lr(optimizer, batch_size / base_batch_size) * (FINE_TUNE_LR_FACTOR if warm_start else 1.0)
    return wrapper
