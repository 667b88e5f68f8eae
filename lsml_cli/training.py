"""From annotated tasks to a new version: hold out, fit, measure, keep, promote."""

from __future__ import annotations

import platform
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from lsml_cli import __version__, pipeline, registry, versions
from lsml_cli.annotations import Which, labelled
from lsml_cli.errors import ModelError, UsageError
from lsml_cli.label_config import Control, LabelConfig
from lsml_cli.metrics import Metrics, classification
from lsml_cli.models.base import ModelSpec, Progress
from lsml_cli.predictions import Failure, Outcome, Prediction
from lsml_cli.tasks import Labelled, Task, Unreadable

UNREADABLE = "unreadable"
SHOWN = 3  # unreadable tasks named one by one

# Modules whose version a trained model may depend on; only those that the fit has imported are noted down.
_LIBRARIES = ("numpy", "scipy", "sklearn", "safetensors", "torch", "torchvision", "mmcv", "mmdet", "mmocr")


@dataclass(frozen=True)
class FitResult:
    """What came out of a fit.

    version    the new version; `version.counts` says what it was trained on
    metrics    by control, measured on the held-out tasks; empty when nothing was held out
    failed     held-out tasks that the new model failed on, by reason
    too_small  classes too small to be held out, by control: no held-out task has them
    """

    version: versions.Version
    metrics: Mapping[str, Metrics] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)
    too_small: Mapping[str, Sequence[str]] = field(default_factory=dict)


def fit_version(
    spec: ModelSpec,
    tasks: Iterable[Task | Unreadable],
    config: LabelConfig,
    output: Path,
    *,
    holdout: float = 0.2,
    seed: int = 0,
    which_annotation: Which = "last",
    progress: Progress = lambda sentence: None,
) -> FitResult:
    """Train on annotated tasks, measure on those held out, write the version below `output` and promote it.

    holdout           share of the tasks (0 <= holdout < 1) that the model does not see
    seed              changes which ones
    which_annotation  see `annotations.labelled`
    progress          takes a sentence every now and then

    The model that is kept is the one that was measured. Raises ModelError when there is nothing to learn; whatever
    is raised, `output` holds what it held before.
    """
    if not 0 <= holdout < 1:
        raise UsageError(f"--holdout must be at least 0 and below 1, not {holdout}.", "0.2 holds every fifth task out.")
    model = spec.build()
    binding = model.bind(config, {}, None)  # fails here, before anything is read, when the two do not fit
    unreadable: list[Unreadable] = []
    nothing_is_an_answer = not all(control.single for control in config.controls.values())
    examples, skipped = labelled(_readable(tasks, unreadable), config, which_annotation, empty=nothing_is_an_answer)
    for place in unreadable[:SHOWN]:
        progress(f"Task {place.index + 1} ({place.place}) cannot be read: {place.reason}.")
    if unreadable:
        skipped[UNREADABLE] = len(unreadable)
    if not examples:
        reasons = (
            ", ".join(f"{count:,} with {reason}" for reason, count in sorted(skipped.items())) or "no tasks at all"
        )
        raise ModelError(f"There is nothing to learn from: {reasons}.", "Export tasks that have been annotated.")
    train, held_out = split(examples, config, holdout, seed)
    with versions.begin(output) as draft:
        state = model.fit(train, held_out, binding, draft.folder, progress)
        trained = replace(spec, path=draft.folder, state=state)
        outcomes = _predict(trained, config, [example.task for example in held_out])
        metrics = measure(config, held_out, outcomes)
        version = draft.keep(
            family=spec.target,
            label_config=config.xml,
            state=state,
            params=dict(spec.params),
            counts={
                "train": len(train),
                "holdout": len(held_out),
                "left_out": dict(sorted(skipped.items())),
                "holdout_share": holdout,
                "seed": seed,
            },
            metrics={name: found.to_json() for name, found in metrics.items()},
            data_digest=_data_digest(examples),
            code_digest=registry.code_digest(spec.family()),
            libraries=_libraries(),
            parent=spec.version,
        )
    versions.promote(output, version.version)
    failed = Counter(outcome.reason for outcome in outcomes if isinstance(outcome, Failure))
    return FitResult(version, metrics, failed, _too_small(config, train, metrics))


def split(
    examples: Sequence[Labelled], config: LabelConfig, holdout: float, seed: int
) -> tuple[list[Labelled], list[Labelled]]:
    """(train, held out). A task's side depends on the seed and on what its objects show, on nothing else.

    So equal texts fall together, and nothing changes sides as the data grows.
    """
    sides: tuple[list[Labelled], list[Labelled]] = ([], [])
    for example in examples:
        sides[_position(example.task, config, seed) < holdout].append(_without_answers(example))
    return sides


def _position(task: Task, config: LabelConfig, seed: int) -> float:
    """Where a task's content falls in 0..1, by a hash."""
    digest = blake2b(f"{seed}\0".encode(), digest_size=8)
    for source in config.objects.values():
        try:
            shown = source.read(task.data)
        except ValueError:
            shown = None
        digest.update(orjson.dumps(shown, option=orjson.OPT_SORT_KEYS) + b"\0")
    return int.from_bytes(digest.digest(), "big") / 2**64


def _without_answers(example: Labelled) -> Labelled:
    """The example, its task without the annotations and predictions that came with it: nothing can peek at them."""
    raw = {key: example.task.raw[key] for key in ("id", "data", "meta") if key in example.task.raw}
    return Labelled(replace(example.task, raw=raw), example.annotation)


def measure(config: LabelConfig, examples: Sequence[Labelled], outcomes: Sequence[Outcome]) -> dict[str, Metrics]:
    """How well the outcomes meet the annotations, for each <Choices> about the task that was annotated and predicted.

    A failed task counts as one for which nothing was predicted. Where several labels may apply, an annotation
    without any says that none does; where one has to, such a task does not count.
    """
    found = {}
    for control in config.controls.values():
        if control.type != "choices" or control.per_region:
            continue
        truths = [chosen(control, example.annotation.result) for example in examples]
        guesses = [_guess(control, outcome) for outcome in outcomes]
        pairs = [(truth, guess) for truth, guess in zip(truths, guesses, strict=True) if truth or not control.single]
        if any(truths) and (any(guesses) or not control.single):
            found[control.name] = classification(pairs)
    return found


def chosen(control: Control, result: Iterable[Mapping[str, Any]]) -> list[str]:
    """The labels that regions (of an annotation or a prediction) give to a control, by the name they have now."""
    names = {label.value: label.name for label in control.labels} | {each.name: each.name for each in control.labels}
    found = []
    for region in result:
        value = region.get("value")
        if region.get("from_name") == control.name and isinstance(value, Mapping):
            given = value.get(control.type)
            found += [given] if isinstance(given, str) else [name for name in given or () if isinstance(name, str)]
    return [names.get(name, name) for name in found]


def _guess(control: Control, outcome: Outcome) -> list[str]:
    if not isinstance(outcome, Prediction):
        return []
    return [
        name for region in outcome.result if region.from_name == control.name for name in region.value[control.type]
    ]


def _predict(spec: ModelSpec, config: LabelConfig, tasks: Sequence[Task]) -> list[Outcome]:
    """By the way that `lsml predict` goes, with the weights as they were written."""
    if not tasks:
        return []
    with pipeline.open_replicas(spec, config) as replicas:
        stream = pipeline.predict_stream(replicas, tasks, batch_size=spec.family().batch_size)
        return [outcome for _, outcome in stream]


def _too_small(
    config: LabelConfig, train: Iterable[Labelled], metrics: Mapping[str, Metrics]
) -> dict[str, Sequence[str]]:
    train = list(train)
    found: dict[str, Sequence[str]] = {}
    for name, measured in metrics.items():
        known = {label for example in train for label in chosen(config.controls[name], example.annotation.result)}
        missing = sorted(known - {each.name for each in measured.classes if each.support})
        if missing:
            found[name] = missing
    return found


def _readable(tasks: Iterable[Task | Unreadable], unreadable: list[Unreadable]) -> Iterator[Task]:
    for task in tasks:
        if isinstance(task, Unreadable):
            unreadable.append(task)
        else:
            yield task


def _data_digest(examples: Iterable[Labelled]) -> str:
    digest = blake2b(digest_size=16)
    for task, annotation in examples:
        digest.update(orjson.dumps([task.data, annotation.result], option=orjson.OPT_SORT_KEYS) + b"\n")
    return digest.hexdigest()


def _libraries() -> dict[str, str]:
    found = {"lsml": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        if name in sys.modules:
            found[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return found
