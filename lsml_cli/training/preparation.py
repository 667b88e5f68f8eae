"""Check everything that can be checked before a model is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import orjson

from lsml_cli.errors import ModelError, UsageError
from lsml_cli.evaluation import gates
from lsml_cli.evaluation.evaluate import measurable_controls
from lsml_cli.evaluation.metrics.geometry import require_pycocotools
from lsml_cli.evaluation.scorers import compares_shapes
from lsml_cli.models.base import Model
from lsml_cli.models.spec import ModelSpec
from lsml_cli.registry import resolve, version_writer, versions
from lsml_cli.registry.code_digest import code_digest
from lsml_cli.registry.seen_tasks import read_seen_tasks
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.training.splits import DataSplit, SplitHistory, require_share


def prepare_training(
    spec: ModelSpec,
    config: LabelConfig,
    output: Path,
    *,
    holdout: float | Path,
    fail_under: Sequence[str],
    refit: bool,
    warm_start: bool,
) -> ModelSpec:
    """Check a fit before any task is read, and return the spec to train.

    Raises:
        UsageError: The model cannot be trained, does not fit the label config, an option makes no sense, a package
            is missing, or `output` cannot hold versions.
    """
    training_spec = build_training_spec(spec, warm_start)
    training_spec.build().bind(config, {}, None)
    validate_options(config, holdout, fail_under, refit)
    if holdout and compares_shapes(config, spec.model_class().supported_controls):
        require_pycocotools()
    version_writer.require_version_root(output)
    return training_spec


def build_training_spec(spec: ModelSpec, warm_start: bool = False) -> ModelSpec:
    """Return the spec to train: the parameters of `spec` without its weights.

    Args:
        spec: A model, or a trained version.
        warm_start: Start from the weights of `spec`, which `ModelSpec.init_from` then refers to.

    Raises:
        UsageError: The model cannot be trained, or not be continued; or it would be trained with a parameter that a
            version may not decide.
    """
    spec.require_confirmed()
    model_class = spec.model_class()
    if model_class.fit is Model.fit:
        raise UsageError(f"{spec.name} cannot be trained.", "`lsml fit` needs a model that overrides `fit`.")
    training_spec = replace(spec, version=None, path=None, state={}, init_from=spec if warm_start else None)
    if not warm_start:
        return replace(training_spec, notes=())
    if spec.path is None:
        raise UsageError(
            f"{spec.name} is not a trained version, so there is nothing to continue from.",
            "Name a folder that `lsml fit` wrote: --init-from models/news",
        )
    if not model_class.supports_warm_start:
        raise UsageError(
            f"{model_class.__name__} cannot continue from an earlier version; it always learns from scratch.",
            f"Train it on all annotations, old and new, with the parameters and the label config of the version: "
            f"--model {resolve.model_argument(spec, spec.path)}",
        )
    return training_spec


def find_split_history(spec: ModelSpec, output: Path | None, holdout: float | Path, seed: int) -> SplitHistory:
    """Find the earlier versions that the split of a fit has to respect.

    Args:
        spec: See `build_training_spec`.
        output: The folder of the model's versions; None if there is none.
        holdout: See `split_tasks`, like `seed`.

    Raises:
        ModelError: The version that training starts from is damaged.
    """
    start = spec.init_from.path if spec.init_from is not None else None
    init_from = read_seen_tasks(start) if start is not None else None
    if output is None or isinstance(holdout, Path):
        return SplitHistory(None, init_from)
    for name in reversed(versions.list_versions(output)):
        try:
            counts = versions.read(output / name).counts
            if (counts.get("holdout_share"), counts.get("seed")) != (holdout, seed):
                continue
            previous = read_seen_tasks(output / name)
        except ModelError:
            continue  # a damaged version has no say; `lsml versions` shows it
        if previous.held_out is not None:
            return SplitHistory(previous, init_from)
    return SplitHistory(None, init_from)


def find_unchanged_version(
    spec: ModelSpec, config: LabelConfig, split: DataSplit, output: Path, refit: bool
) -> versions.Version | None:
    """Return the promoted version below `output` if a fit would train on the same data in the same way.

    The data are the tasks and their annotations; the way is the model's code, its parameters, the label config, the
    split and `refit`. Gates and packages may differ. A truncated file, of which tasks are missing, is never the same.

    Args:
        spec: See `build_training_spec`.
        config: The label config to train for.
        split: What would be trained and evaluated on.
        output: The folder of the model's versions.
        refit: Whether the fit would train again on everything.

    Raises:
        ModelError: The name of the promoted version cannot be read.
    """
    name = versions.current_version(output)
    if not name or versions.version_order(name) is None or split.truncated:
        return None
    try:
        promoted = versions.read(output / name)
    except ModelError:
        return None  # a damaged version is to be replaced
    model_class = spec.model_class()
    requested = {
        "data": split.data_digest,
        "family": versions.strip_folder(resolve.family_name(spec.target)),
        "code": code_digest(model_class),
        "params": model_class.default_params() | dict(spec.params),
        "label_config": config.xml,
        "refit": refit,
        "split": dict(split.options),
    }
    stored = {
        "data": promoted.data_digest,
        "family": promoted.family,
        "code": promoted.code_digest,
        "params": promoted.params,
        "label_config": promoted.label_config,
        "refit": promoted.refit,
        "split": {name: promoted.counts.get(name) for name in split.options},
    }
    is_same = orjson.dumps(requested, option=orjson.OPT_SORT_KEYS) == orjson.dumps(stored, option=orjson.OPT_SORT_KEYS)
    return promoted if is_same else None


def validate_options(config: LabelConfig, holdout: float | Path, fail_under: Sequence[str], refit: bool) -> None:
    """Check options that depend on each other, before any task is read.

    Raises:
        UsageError: The hold-out is not a share, a gate is unknown, or an option has no effect.
    """
    require_share(holdout)
    gates.parse_gates(fail_under, *measurable_controls(config))
    if holdout == 0 and fail_under:
        raise UsageError("--fail-under has nothing to go by: with --holdout 0 nothing is measured.")
    if holdout == 0 and refit:
        raise UsageError("--refit has nothing to add: with --holdout 0 everything is trained on anyway.")
    if isinstance(holdout, Path) and refit:
        raise UsageError(
            f"--refit has nothing to add: what {holdout} has is never trained on, and everything else is anyway.",
            "Leave out --refit, or hold out a share: --holdout 0.2",
        )


def resolve_gates(config: LabelConfig, split: DataSplit, fail_under: Sequence[str]) -> list[gates.Gate]:
    """Parse the gates again, now that classes that come with the tasks are known.

    Raises:
        UsageError: A gate names a class that no task has.
    """
    classes_by_control, kinds = measurable_controls(config)
    known = {
        name: list(split.classes[name]) if classes is None else classes for name, classes in classes_by_control.items()
    }
    return gates.parse_gates(fail_under, known, kinds)
