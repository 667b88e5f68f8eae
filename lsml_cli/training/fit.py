"""From annotated tasks to a new version: hold out, fit, measure, gate, keep, promote."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import orjson

from lsml_cli._version import __version__
from lsml_cli.errors import GateMissed, LsmlError, ModelError, UsageError
from lsml_cli.evaluation import gates
from lsml_cli.evaluation.evaluate import evaluate_outcomes, measurable_controls
from lsml_cli.evaluation.metrics.geometry import require_pycocotools
from lsml_cli.evaluation.results import Evaluation
from lsml_cli.evaluation.scorers import REGION_CONTROL_TYPES, ControlMetrics
from lsml_cli.evaluation.sources import model_output_controls
from lsml_cli.inference import dispatch, placement
from lsml_cli.media.fetcher import Media
from lsml_cli.models.base import Binding, Model, Progress
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.registry import promotion, resolve, version_writer, versions
from lsml_cli.registry.code_digest import code_digest
from lsml_cli.registry.durable_files import DISK_FULL_ERRNOS, raise_write_error
from lsml_cli.schema.annotations import AnnotationPolicy, make_input_task
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Outcome
from lsml_cli.schema.tasks import AnnotatedTask, Task, UnreadableRecord
from lsml_cli.training.splits import DataSplit, is_held_out, require_share, split_tasks

# Modules whose version a trained model may depend on; only those that the fit has imported are noted down.
_LIBRARIES = ("numpy", "scipy", "sklearn", "safetensors", "torch", "torchvision", "mmcv", "mmdet", "mmocr")


@dataclass(frozen=True)
class FitResult:
    """What came out of a fit.

    version     the new version
    plan        what it was trained on and measured with
    evaluation  on the held-out tasks; without any number when nothing was held out
    verdicts    what the gates saw
    promoted    not where a gate was missed, a file was torn, or somebody else is to do that
    seconds     how long it took
    """

    version: versions.Version
    split: DataSplit
    evaluation: Evaluation
    gate_results: Sequence[gates.GateResult] = ()
    promoted: bool = False
    seconds: float = 0.0

    @property
    def metrics(self) -> Mapping[str, ControlMetrics]:
        """By control; empty when nothing was held out."""
        return self.evaluation.metrics

    @property
    def failed(self) -> Mapping[str, int]:
        """Held-out tasks that the new model failed on, by reason."""
        return self.evaluation.failed

    @property
    def classes_without_holdout(self) -> Mapping[str, Sequence[str]]:
        """Classes too small to be held out, by control: no held-out task has them."""
        return self.split.classes_without_holdout

    @property
    def failed_gates(self) -> list[gates.GateResult]:
        return [verdict for verdict in self.gate_results if not verdict.passed]

    def require_gates_passed(self) -> None:
        """Raises GateMissed that names every missed gate, by how much, and where the version is."""
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
            "refit": version.refit,
            "parent": version.parent,
            "digest": version.digest,
            "counts": version.counts,
            "too_small": self.classes_without_holdout,
            "never_seen": self.split.classes_without_training,
            "torn": self.split.truncated,
            "metrics": version.metrics,
            "failed": dict(self.failed),
            "gates": [verdict.to_json() for verdict in self.gate_results],
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
    media: Media | None = None,
    device: str = "cpu",
    progress: Progress = lambda sentence: None,
) -> FitResult:
    """Train on annotated tasks, measure on those held out, write the version below `output` and promote it.

    holdout, seed, which_annotation  see `holdout.plan_fit`
    fail_under                       gates, see `gates.parse_gates`; a version that misses one is not promoted
    refit                            train again on everything after the measurement and the gates
    continuing                       start from the weights of `spec`, a trained version, instead of afresh
    promote                          False: the version is kept, and what was promoted before stays so
    media                            where the pictures are that tasks point to
    device                           where to train: "cpu", "cuda:0"
    progress                         takes a sentence every now and then

    Unless `refit` asks for another, the model that is kept is the one that was measured. Tasks that cannot be read are
    left out and counted; but a version trained on a file that ends too early is kept without being promoted, because
    nobody knows how much is missing. Raises ModelError when there is nothing to learn; whatever is raised, `output`
    holds what it held before.
    """
    begun = time.monotonic()
    start = build_training_spec(spec, warm_start)
    start.build().bind(config, {}, None)  # fails here, before anything is read, when the two do not fit
    validate_options(config, holdout, fail_under, refit)
    if holdout and REGION_CONTROL_TYPES & {tag.lower() for tag in spec.model_class().supported_controls}:
        require_pycocotools()  # not after hours of training
    version_writer.require_version_root(output)
    for note in start.notes:
        progress(note)
    plan = split_tasks(tasks, config, holdout=holdout, seed=seed, annotation_policy=annotation_policy, media=media)
    for place in plan.describe_unreadable("the export"):
        progress(f"Cannot be read: {place}.")
    wanted = resolve_gates(config, plan, fail_under)
    with version_writer.open_version_writer(output) as draft:
        workplace = _TrainingEnvironment(media, device)
        state = _fit(start, config, plan.train, plan.held_out, draft.folder, workplace, progress)
        trained = replace(start, path=draft.folder, state=state, init_from=None)
        if plan.held_out:
            progress(f"Measuring on {plan.counts['holdout']:,} held-out tasks.")
        model = trained.build()
        given, filled = model.input_controls(config), model_output_controls(model, config)
        outcomes = _predict(trained, config, [make_input_task(example, given) for example in plan.held_out], workplace)
        evaluation = evaluate_outcomes(
            config, plan.held_out, outcomes, name=start.name, input_controls=given, output_controls=filled
        )
        metrics = evaluation.metrics
        verdicts = gates.evaluate_gates(wanted, metrics)
        passed = all(verdict.passed for verdict in verdicts)
        if refit and passed:
            progress("Training again on everything, the held-out tasks too (--refit).")
            draft.clear()
            state = _fit(start, config, [*plan.train, *plan.held_out], [], draft.folder, workplace, progress)
        version = draft.commit(
            family=resolve.family_name(spec.target),
            label_config=config.xml,
            state=state,
            params=spec.model_class().default_params() | dict(spec.params),
            counts=plan.counts,
            metrics={name: found.to_json() for name, found in metrics.items()},
            data_digest=plan.data_digest,
            code_digest=code_digest(spec.model_class()),
            libraries=_libraries(),
            parent=_parent(start, output),
            refit=refit and passed,
            gates=[verdict.to_json() for verdict in verdicts],
        )
    promoted = promote and passed and not plan.truncated
    if promoted:
        promotion.promote(output, version.version)
    evaluation = replace(evaluation, name=f"{version.name}@{version.version}")
    return FitResult(version, plan, evaluation, verdicts, promoted, time.monotonic() - begun)


def build_training_spec(spec: ModelSpec, warm_start: bool = False) -> ModelSpec:
    """The spec to train: without weights, but with the parameters of a version; `earlier` is the version to continue.

    Raises UsageError when the model cannot be trained, or not be continued.
    """
    family = spec.model_class()
    if family.fit is Model.fit:
        raise UsageError(f"{spec.name} cannot be trained.", "`lsml fit` needs a model that overrides `fit`.")
    start = replace(spec, version=None, path=None, state={}, init_from=spec if warm_start else None)
    if not warm_start:
        return replace(start, notes=())
    if spec.path is None:
        raise UsageError(
            f"{spec.name} is not a trained version, so there is nothing to continue from.",
            "Name a folder that `lsml fit` wrote: --init-from models/news",
        )
    if not family.supports_warm_start:
        raise UsageError(
            f"{family.__name__} cannot continue from an earlier version; it always learns from scratch.",
            f"Train it on all annotations, old and new, with the parameters and the label config of the version: "
            f"--model {resolve.model_argument(spec, spec.path)}",
        )
    return start


def make_unseen_filter(spec: ModelSpec, media: Media | None = None) -> Callable[[Task], bool]:
    """Whether a task is one that the fit of a trained version held out, or would have held out, had it been there.

    Raises UsageError for a model that nobody can say that of.
    """
    if spec.path is None:
        raise UsageError(f"{spec.name} is not a trained version, so nothing was held out.", "Leave out --held-out.")
    version = versions.read(spec.path)
    share, seed = version.counts.get("holdout_share"), version.counts.get("seed")
    if version.refit:
        raise UsageError(f"{spec.model_version} was trained again on its held-out tasks (--refit).", _OTHER_TASKS_HINT)
    if not isinstance(share, float | int) or not isinstance(seed, int):
        raise UsageError(
            f"{spec.model_version} was measured with a file of its own, {version.counts.get('holdout_file')}.",
            "Measure it with that file, without --held-out.",
        )
    if not share:
        raise UsageError(f"{spec.model_version} was trained on everything (--holdout 0).", _OTHER_TASKS_HINT)
    config = LabelConfig.parse(version.label_config)
    return lambda task: is_held_out(task, config, share, seed, media)


_OTHER_TASKS_HINT = "Measure it with tasks that it was not trained on, without --held-out."


def validate_options(config: LabelConfig, holdout: float | Path, fail_under: Sequence[str], refit: bool) -> None:
    """Raises UsageError for what makes no sense, before anything is read."""
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
    """The gates; raises UsageError for a class that no task has where classes come with the tasks."""
    known, kinds = measurable_controls(config)
    known = {name: list(split.classes[name]) if classes is None else classes for name, classes in known.items()}
    return gates.parse_gates(fail_under, known, kinds)


@dataclass(frozen=True)
class _TrainingEnvironment:
    """Where a model trains, and where it finds what tasks point to."""

    media: Media | None = None
    device: str = "cpu"


DEFAULT_ENVIRONMENT = _TrainingEnvironment()


def _fit(
    spec: ModelSpec,
    config: LabelConfig,
    train: Sequence[AnnotatedTask],
    held_out: Sequence[AnnotatedTask],
    folder: Path,
    environment: _TrainingEnvironment,
    progress: Progress,
) -> Mapping[str, Json]:
    """Let a new model learn; what somebody else's `fit` raises becomes a sentence about that model."""
    model = spec.build()
    binding: Binding = model.bind(config, {}, None)
    binding.media, binding.device = environment.media, environment.device
    try:
        state = model.fit(train, held_out, binding, folder, progress)
    except LsmlError:
        raise
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise_write_error(error, folder.parent)
        _raise_model_error(spec, f"failed while training: {type(error).__name__}: {error}", error)
    except (Exception, SystemExit) as error:
        _raise_model_error(spec, f"failed while training: {type(error).__name__}: {error}", error)
    try:
        orjson.dumps(dict(state))
    except (TypeError, ValueError) as error:
        _raise_model_error(spec, f"returned from `fit` what cannot be stored as a JSON object: {error}", error)
    return state


def _raise_model_error(spec: ModelSpec, reason: str, error: BaseException) -> NoReturn:
    raise ModelError(f"{spec.name} {reason}.", "LSML_DEBUG=1 shows where in its code.") from error


def _predict(
    spec: ModelSpec, config: LabelConfig, tasks: Sequence[Task], environment: _TrainingEnvironment = DEFAULT_ENVIRONMENT
) -> list[Outcome]:
    """By the way that `lsml predict` goes, with the weights as they were written."""
    if not tasks:
        return []
    workers = (os.cpu_count() or 1) if spec.model_class().parallelism == "threads" else 1
    with placement.open_replicas(
        spec, config, devices=[environment.device], workers=workers, media=environment.media
    ) as replicas:
        stream = dispatch.predict_stream(replicas, tasks, batch_size=spec.model_class().batch_size)
        return [outcome for _, outcome in stream]


def _parent(spec: ModelSpec, output: Path) -> str | None:
    """The version that was continued from, with its model's name where that is another one."""
    earlier = spec.init_from
    if earlier is None or earlier.path is None:
        return None
    at_home = earlier.path.resolve().parent == output.resolve()
    return earlier.version if at_home else f"{earlier.name}@{earlier.version}"


def _libraries() -> dict[str, str]:
    found = {"lsml": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        if name in sys.modules:
            found[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return found
