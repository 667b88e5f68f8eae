"""A config of mmdet -> one that trains on a dataset of our own, and the one that predicts afterwards.

The toolkit's recipes are for hundreds of epochs on eight GPUs and a hundred thousand pictures, with mosaics of four of
them and switches half-way. What people fine-tune on are some hundred pictures and a few dozen epochs, so the pipeline
is a plain one: the sizes of the config's own test pipeline, pictures scaled a little, mirrored, their colours varied.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from lsml_cli.errors import ModelError, UsageError
from lsml_cli.models.openmmlab import configs, train
from lsml_cli.models.openmmlab.configs import Config
from lsml_cli.models.openmmlab.image_files import BATCH_SAMPLER, IMAGE_LOADER

SCALE_RANGE = (0.75, 1.25)  # how much smaller or larger a picture is made
DEFAULT_BASE_BATCH_SIZE = 16  # pictures for which a config's learning rate is, where it does not say
FINE_TUNE_LR_FACTOR = 0.25  # of the config's learning rate, for weights that have learned something already
STRIDE = 32  # pixels that the coarsest of a model's features stand for


def build_model_config(config: Config, classes: Sequence[str], image_size: int | None) -> Config:
    """The config of a model for these classes: what a version stores, with nothing of its old dataset.

    image_size  pixels of the longer side of what it looks at; None for those of the config

    Raises UsageError when it is given and the config leaves pictures as large as they are.
    """
    model = copy.deepcopy(config["model"])
    counting = _classifier_configs(model)
    if not counting:
        raise ModelError("The config does not say how many classes its model tells apart (num_classes).")
    for part in counting:
        part["num_classes"] = len(classes)

    def change(part: dict[str, Any]) -> None:
        if part.get("type") in ("SyncBN", "MMSyncBN"):
            part["type"] = "BN"  # the same, where one device trains

    configs.update_dicts(model, change)
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
    """What mmengine's Runner wants, of what `for_labels` gave; without its length, which `running.scheduled` gives it.

    folder    with `pictures`, train.json and, if `measured`, holdout.json
    warm      whether it begins with weights that have learned something
    workers   processes that load pictures
    """
    masks = has_masks(source_config)
    test = model_config["test_dataloader"]["dataset"]
    loading = {"type": IMAGE_LOADER}
    annotations = {"type": "LoadAnnotations", "with_bbox": True, "with_mask": masks}
    test_steps = [loading if configs.is_loading_step(step) else step for step in test["pipeline"]]
    test_steps = [*test_steps[:-1], annotations, test_steps[-1]]
    base = {
        "type": "CocoDataset",
        "metainfo": test["metainfo"],
        "data_root": run_dir,
        "data_prefix": {"img": "pictures/"},
    }
    loader = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
    config = dict(model_config) | {
        "train_dataloader": loader
        | {
            "batch_size": batch_size,
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "batch_sampler": {"type": BATCH_SAMPLER},
            "dataset": base
            | {
                "ann_file": "train.json",
                "filter_cfg": {"filter_empty_gt": False, "min_size": 1},
                "pipeline": _training_steps(test["pipeline"], masks, augment),
            },
        },
        "optim_wrapper": _optimizer(source_config, batch_size, lr, warm_start, on_gpu),
    }
    config.pop("test_dataloader")
    config.pop("test_evaluator")
    if has_validation:
        config["val_cfg"] = {"type": "ValLoop"}
        config["val_dataloader"] = loader | {
            "batch_size": batch_size,
            "drop_last": False,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": base | {"ann_file": "holdout.json", "test_mode": True, "pipeline": test_steps},
        }
        config["val_evaluator"] = {
            "type": "CocoMetric",
            "ann_file": f"{run_dir}/holdout.json",
            "metric": model_config["test_evaluator"]["metric"],
        }
    return config


def num_classes(config: Config) -> int | None:
    """How many classes the model of a config tells apart; None where it does not say."""
    counting = _classifier_configs(config["model"])
    return counting[0]["num_classes"] if counting else None


def _classifier_configs(model: Config) -> list[dict[str, Any]]:
    """The parts that tell the classes apart, those of the boxes first; an RPN only tells something from nothing."""
    proposing = {id(part) for part in configs.iter_dicts(model.get("rpn_head"))}
    of_regions = model.get("roi_head")
    boxes = [model.get("bbox_head"), of_regions.get("bbox_head") if isinstance(of_regions, dict) else of_regions]
    every = [part for each in (*boxes, model) for part in configs.iter_dicts(each)]
    distinct = {id(part): part for part in every if isinstance(part.get("num_classes"), int)}
    return [part for key, part in distinct.items() if key not in proposing]


def has_masks(config: Config) -> bool:
    """Whether the model finds masks: it has a head for them, or is measured by them."""
    if any("mask_head" in part for part in configs.iter_dicts(config["model"])):
        return True
    measured = config.get("test_evaluator") or {}
    every = measured if isinstance(measured, list | tuple) else [measured]
    return any("segm" in str(each.get("metric", "")) for each in every)


def round_to_stride(image_size: int) -> int:
    """The size closest to it that a model can halve as often as they do: others meet parts that differ by a pixel."""
    return max(1, round(image_size / STRIDE)) * STRIDE


def _resize(steps: list[dict[str, Any]], size: int) -> None:
    """Let a pipeline look at pictures of another size, in place: their longer side has `size` pixels."""
    if not any(configs.type_name(step) == "Resize" for step in steps):
        raise UsageError(
            "This config takes pictures as large as they are: it has no step Resize that image_size could change.",
            "Leave out image_size, or choose a config that has one, such as rtmdet_tiny_8xb32-300e_coco.",
        )
    for step in steps:
        if configs.type_name(step) == "Resize":
            step["scale"] = (size, size)
        if configs.type_name(step) == "Pad" and step.get("size") is not None:
            step["size"] = (size, size)


def _training_steps(test_steps: Sequence[dict[str, Any]], with_masks: bool, augment: bool) -> list[dict[str, Any]]:
    """The steps of the test pipeline, with the boxes along, and some variation."""
    steps: list[dict[str, Any]] = []
    for step in test_steps:
        kind = configs.type_name(step)
        if configs.is_loading_step(step):
            steps.append({"type": IMAGE_LOADER})
            steps.append({"type": "LoadAnnotations", "with_bbox": True, "with_mask": with_masks})
        elif kind == "Resize" and augment:
            scale = step["scale"]
            wide = scale if isinstance(scale, tuple | list) else (scale, scale)
            steps += [
                {"type": "RandomResize", "scale": tuple(wide), "ratio_range": SCALE_RANGE, "keep_ratio": True},
                {"type": "RandomCrop", "crop_size": (max(wide), max(wide)), "allow_negative_crop": True},
                {"type": "PhotoMetricDistortion"},
                {"type": "RandomFlip", "prob": 0.5},
            ]
        elif kind == "PackDetInputs":
            steps += [{"type": "FilterAnnotations", "min_gt_bbox_wh": (1, 1), "keep_empty": False}, {"type": kind}]
        else:
            steps.append(step)
    return steps


def _optimizer(config: Config, batch_size: int, lr: float | None, warm_start: bool, on_gpu: bool) -> dict[str, Any]:
    """The config's own optimiser. Its learning rate is for its own batches: that of others is scaled."""
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
    usual = (config.get("auto_scale_lr") or {}).get("base_batch_size") or DEFAULT_BASE_BATCH_SIZE
    optimizer["lr"] = train.scaled_lr(optimizer, batch_size / usual) * (FINE_TUNE_LR_FACTOR if warm_start else 1.0)
    return wrapper
