"""Keep the training data of the evaluated models out of an evaluation, or count it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from lsml_cli.errors import UsageError
from lsml_cli.models.spec import ModelSpec
from lsml_cli.registry import versions
from lsml_cli.registry.seen_tasks import SeenTasks, read_seen_tasks
from lsml_cli.schema.annotations import MediaDigests
from lsml_cli.schema.tasks import Task

TrainingDataPolicy = Literal["leave out", "include", "held out only"]

_OTHER_TASKS_HINT = "Measure it with tasks that it was not trained on, without --held-out."


@dataclass(frozen=True)
class TrainingDataUse:
    """How an evaluation treated the tasks that a model was trained on.

    Attributes:
        left_out: Number of annotated tasks that were left out because of it.
        included: Number of measured tasks that a model was trained on (--include-trained).
        unknown: The versions of which it is not known what they were trained on.
        unnamed: The trained versions that made predictions of a file, and are not given by --predicted-by.
    """

    left_out: int = 0
    included: int = 0
    unknown: Sequence[str] = ()
    unnamed: Sequence[str] = ()

    def add_unnamed(self, predicted_by: Iterable[str], given: Iterable[str]) -> TrainingDataUse:
        """Return this with the versions that made predictions, as far as they are not `given`."""
        return replace(self, unnamed=[*self.unnamed, *dict.fromkeys(set(predicted_by) - set(given))])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def warning_lines(self, tasks: int) -> list[str]:
        """Warn that numbers from `tasks` measured tasks are, or may be, partly on training data."""
        lines = []
        if self.included:
            share = "1 of them was" if self.included == 1 else f"{self.included:,} of them were"
            lines.append(
                f"PARTLY ON TRAINING DATA: measured on {tasks:,} {'task' if tasks == 1 else 'tasks'}, and {share} "
                f"trained on (--include-trained). The numbers are too good."
            )
        lines += [
            f"It is not known which tasks {name} was trained on; the numbers may be partly on its training data."
            for name in self.unknown
        ]
        lines += [
            f"It is not known which tasks {name} was trained on; the numbers may be partly on its training data. Name "
            f"its folder with --predicted-by to leave these tasks out."
            for name in self.unnamed
        ]
        return lines


class TrainingDataFilter:
    """Tells which tasks to leave out of an evaluation, and counts those that a model was trained on.

    Args:
        seen: What each trained version knows about its training; files of predictions and untrained models have none.
        policy: "leave out" tasks that a version was trained on, "include" them and count them, or measure "held out
            only": tasks that each version has held out.
        media: Where the images are.
    """

    def __init__(
        self,
        seen: Sequence[SeenTasks] = (),
        policy: TrainingDataPolicy = "leave out",
        media: MediaDigests | None = None,
    ) -> None:
        self._seen = seen
        self._policy = policy
        self._media = media
        self._left_out = 0
        self._included = 0

    def reason_to_leave_out(self, task: Task) -> str | None:
        """Return why a task is not to be measured; None for one to measure."""
        for seen in self._seen:
            if self._policy == "held out only":
                if seen.split_side(task, self._media) != "held out":
                    self._left_out += 1
                    return f"not held out by {seen.name}"
            elif seen.was_trained_on(task, self._media):
                if self._policy == "include":
                    self._included += 1
                    return None
                self._left_out += 1
                return f"{seen.name} was trained on it"
        return None

    @property
    def use(self) -> TrainingDataUse:
        """What happened so far."""
        unknown = [seen.name for seen in self._seen if not seen.is_known] if self._policy != "held out only" else []
        return TrainingDataUse(self._left_out, self._included, list(dict.fromkeys(unknown)))


def build_filter(
    specs: Sequence[ModelSpec], policy: TrainingDataPolicy, media: MediaDigests | None = None
) -> TrainingDataFilter:
    """Create the filter for the models that are evaluated.

    Raises:
        UsageError: Nothing was held out from one of the models, or it is not known what (only "held out only").
    """
    if policy == "held out only":
        for spec in specs:
            _require_holdout(spec)
    seen = [read_seen_tasks(spec.path) for spec in specs if spec.path is not None]
    return TrainingDataFilter(seen, policy, media)


def _require_holdout(spec: ModelSpec) -> None:
    """Raise UsageError unless it is known what the fit of a version has held out."""
    if spec.path is None:
        raise UsageError(f"{spec.name} is not a trained version, so nothing was held out.", "Leave out --held-out.")
    version, name = versions.read(spec.path), spec.model_version
    if version.refit:
        raise UsageError(f"{name} was trained again on its held-out tasks (--refit).", _OTHER_TASKS_HINT)
    if version.counts.get("holdout_share") == 0:
        raise UsageError(f"{name} was trained on everything (--holdout 0).", _OTHER_TASKS_HINT)
    if versions.HELD_OUT_TASKS_FILE not in version.files:
        raise UsageError(
            f"It is not known which tasks {name} held out, because an older lsml wrote it.",
            "Train it again, or measure it with tasks that it was not trained on, without --held-out.",
        )
