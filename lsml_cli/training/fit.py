"""Train a model on annotated tasks, and keep the result as a new version: `fit_version`."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lsml_cli._version import __version__
from lsml_cli.errors import GateMissed
from lsml_cli.evaluation import gates
from lsml_cli.evaluation.results import Evaluation
from lsml_cli.evaluation.scorers import ControlMetrics
from lsml_cli.media.fetcher import Media
from lsml_cli.models.base import Progress
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.registry import promotion, resolve, versions
from lsml_cli.registry.code_digest import code_digest
from lsml_cli.registry.durable_files import raise_write_error
from lsml_cli.registry.seen_tasks import SeenTasks, shows_the_same, write_hashes
from lsml_cli.registry.version_writer import VersionWriter, open_version_writer
from lsml_cli.schema.annotations import AnnotationPolicy
from lsml_cli.schema.failure_causes import FailureCauses
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import Task, UnreadableRecord
from lsml_cli.training.preparation import (
    find_split_history,
    find_unchanged_version,
    prepare_training,
    resolve_gates,
)
from lsml_cli.training.splits import DataSplit, split_tasks
from lsml_cli.training.trainer import TrainingEnvironment, evaluate_held_out, train

# Packages whose version a trained model may depend on; only those that the fit has imported are recorded.
_PACKAGES = ("numpy", "scipy", "sklearn", "safetensors", "torch", "torchvision", "mmcv", "mmdet", "mmocr")


@dataclass(frozen=True)
class FitResult:
    """The outcome of a fit.

    Attributes:
        version: The new version.
        split: What it was trained and evaluated on.
        evaluation: On the held-out tasks; without any control if nothing was held out.
        gate_results: The outcome of each gate.
        promoted: Whether it is the promoted version now. It is not if a gate failed, a file was truncated, or the
            caller promotes it later.
        seconds: How long the fit took.
        unchanged: Whether nothing was trained, because `version` was trained on the same data in the same way.
    """

    version: versions.Version
    split: DataSplit
    evaluation: Evaluation
    gate_results: Sequence[gates.GateResult] = ()
    promoted: bool = False
    seconds: float = 0.0
    unchanged: bool = False

    @property
    def metrics(self) -> Mapping[str, ControlMetrics]:
        """The metrics by control; empty if nothing was held out."""
        return self.evaluation.metrics

    @property
    def failed(self) -> FailureCauses:
        """The held-out tasks that the new model failed on, by cause."""
        return self.evaluation.failed

    @property
    def classes_without_holdout(self) -> Mapping[str, Sequence[str]]:
        """By control, the classes that no held-out task has because they are too small."""
        return self.split.classes_without_holdout

    @property
    def failed_gates(self) -> list[gates.GateResult]:
        return [result for result in self.gate_results if not result.passed]

    @property
    def is_promotable(self) -> bool:
        """Tell whether the version may be promoted: no gate failed, and no file was truncated."""
        return not self.failed_gates and not self.split.truncated

    def require_gates_passed(self) -> None:
        """Check that all gates passed.

        Raises:
            GateMissed: The message names each failed gate with its gap, and the folder of the version.
        """
        if not self.failed_gates:
            return
        root, name = self.version.folder.parent, self.version.version
        count = (
            f"{len(self.failed_gates)} of {len(self.gate_results)} gates" if len(self.gate_results) > 1 else "its gate"
        )
        raise GateMissed(
            f"The new version missed {count} and was not promoted: {'; '.join(map(str, self.failed_gates))}.",
            f"It is kept in {self.version.folder}; to promote it anyhow: lsml versions {root} --promote {name}",
        )

    def to_json(self) -> dict[str, Any]:
        version = self.version
        return {
            "model": version.name,
            "version": version.version,
            "folder": str(version.folder),
            "promoted": self.promoted,
            "unchanged": self.unchanged,
            "refit": version.refit,
            "parent": version.parent,
            "digest": version.digest,
            "counts": version.counts,
            "too_small": self.classes_without_holdout,
            "never_seen": self.split.classes_without_training,
            "torn": self.split.truncated,
            "metrics": version.metrics,
            "failed": self.failed.by_reason(),
            "gates": [result.to_json() for result in self.gate_results],
            "seconds": round(self.seconds, 3),
        }


def fit_version(
    spec: ModelSpec,
    tasks: Iterable[Task | UnreadableRecord],
    config: LabelConfig,
    output: Path,
    *,
    holdout: float | Path = 0.2,
    seed: int = 0,
    annotation_policy: AnnotationPolicy = "last",
    fail_under: Sequence[str] = (),
    refit: bool = False,
    warm_start: bool = False,
    promote: bool = True,
    skip_unchanged: bool = False,
    media: Media | None = None,
    device: str = "cpu",
    progress: Progress = lambda sentence: None,
    before_commit: Callable[[], None] = lambda: None,
) -> FitResult:
    """Train on annotated tasks, evaluate on those held out, write the version below `output` and promote it.

    Unless `refit` is true, the model that is kept is the one that was evaluated. Unreadable records are left out and
    counted. A version trained on a truncated file is kept, but not promoted, because it is unknown how much is missing.
    If anything is raised, `output` is unchanged.

    Args:
        holdout: See `split_tasks`, like `seed` and `annotation_policy`.
        fail_under: Gates, see `gates.parse_gates`; a version that fails one is not promoted.
        refit: Train again on all tasks after evaluation and gates.
        warm_start: Start from the weights of `spec`, a trained version.
        promote: False to keep the version without promoting it.
        skip_unchanged: Train nothing if the promoted version is the same already, see `find_unchanged_version`.
        media: Where the media are that tasks refer to.
        device: Where to train: "cpu", "cuda:0".
        progress: Called with a sentence from time to time.
        before_commit: Called when everything is done but to give the version its name.

    Raises:
        UsageError: See `prepare_training`.
        ModelError: There is nothing to train on, or the model's code failed.
    """
    start_time = time.monotonic()
    training_spec = prepare_training(
        spec, config, output, holdout=holdout, fail_under=fail_under, refit=refit, warm_start=warm_start
    )
    for note in training_spec.notes:
        progress(note)
    history = find_split_history(training_spec, output, holdout, seed)
    split = split_tasks(
        tasks,
        config,
        holdout=holdout,
        seed=seed,
        annotation_policy=annotation_policy,
        media=media,
        history=history,
    )
    for note in split.history_notes(history):
        progress(note)
    for line in split.unreadable_lines("the export"):
        progress(line)
    if skip_unchanged and (version := find_unchanged_version(training_spec, config, split, output, refit)):
        nothing = Evaluation(f"{version.name}@{version.version}", tasks=0, annotations=0, controls={})
        seconds = time.monotonic() - start_time
        return FitResult(version, split, nothing, promoted=True, seconds=seconds, unchanged=True)
    requested_gates = resolve_gates(config, split, fail_under)
    environment = TrainingEnvironment(media, device, progress)
    result = _train_version(
        training_spec, config, split, output, requested_gates, refit, environment, history.init_from, before_commit
    )
    promoted = promote and result.is_promotable
    if promoted:
        promotion.promote(output, result.version.version)
    return replace(result, promoted=promoted, seconds=time.monotonic() - start_time)


def _train_version(
    spec: ModelSpec,
    config: LabelConfig,
    split: DataSplit,
    output: Path,
    requested_gates: Sequence[gates.Gate],
    refit: bool,
    environment: TrainingEnvironment,
    init_from: SeenTasks | None,
    before_commit: Callable[[], None],
) -> FitResult:
    """Train, evaluate, train again if requested and all gates passed, and write the version."""
    with open_version_writer(output) as writer:
        state = train(spec, config, split.train, split.held_out, writer.folder, environment)
        trained = replace(spec, path=writer.folder, state=state, init_from=None)
        evaluation = evaluate_held_out(trained, config, split.held_out, environment)
        gate_results = gates.evaluate_gates(requested_gates, evaluation.metrics)
        refit = refit and all(result.passed for result in gate_results)
        if refit:
            environment.progress("Training again on everything, the held-out tasks too (--refit).")
            writer.clear()
            state = train(spec, config, [*split.train, *split.held_out], [], writer.folder, environment)
        _write_seen_tasks(writer, config, split, init_from)
        before_commit()
        version = _commit(writer, spec, config, split, evaluation, gate_results, state, refit)
    return FitResult(version, split, replace(evaluation, name=f"{version.name}@{version.version}"), gate_results)


def _write_seen_tasks(
    writer: VersionWriter, config: LabelConfig, split: DataSplit, init_from: SeenTasks | None
) -> None:
    """Store which tasks were trained on and held out. A version has also seen what the one has that it starts from.

    Where that is not known, what was trained on is not stored either.
    """
    try:
        write_hashes(writer.folder / versions.HELD_OUT_TASKS_FILE, split.held_out_hashes)
        if init_from is None:
            write_hashes(writer.folder / versions.TRAINED_TASKS_FILE, split.train_hashes)
        elif init_from.all_trained is not None and shows_the_same(init_from.config, config):
            before = set(init_from.all_trained.tolist())
            write_hashes(writer.folder / versions.TRAINED_TASKS_FILE, before | split.train_hashes)
    except OSError as error:
        raise_write_error(error, writer.root)


def _commit(
    writer: VersionWriter,
    spec: ModelSpec,
    config: LabelConfig,
    split: DataSplit,
    evaluation: Evaluation,
    gate_results: Sequence[gates.GateResult],
    state: Mapping[str, Json],
    refit: bool,
) -> versions.Version:
    """Write the metadata of the version, and give the version its name."""
    model_class = spec.model_class()
    return writer.commit(
        family=resolve.family_name(spec.target),
        label_config=config.xml,
        state=state,
        params=model_class.default_params() | dict(spec.params),
        counts=split.counts,
        metrics={name: metrics.to_json() for name, metrics in evaluation.metrics.items()},
        data_digest=split.data_digest,
        code_digest=code_digest(model_class),
        libraries=_package_versions(),
        parent=_parent_version(spec, writer.root),
        refit=refit,
        gates=[result.to_json() for result in gate_results],
    )


def _parent_version(spec: ModelSpec, root: Path) -> str | None:
    """Return the version that training started from, with its model's name if that is another one."""
    parent = spec.init_from
    if parent is None or parent.path is None:
        return None
    is_same_model = parent.path.resolve().parent == root.resolve()
    return parent.version if is_same_model else f"{parent.name}@{parent.version}"


def _package_versions() -> dict[str, str]:
    package_versions = {"lsml": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        if name in sys.modules:
            package_versions[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return package_versions
