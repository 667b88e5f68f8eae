"""Split annotated tasks into those to train on and those to hold out.

A task's side is the one that an earlier version stored for it; that of a new task depends only on a seed and on the
content of its objects. So tasks of equal content fall together, no task changes sides as the data grows or while its
image cannot be read, and the same data always splits the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lsml_cli.errors import InputError, ModelError, UsageError, format_list
from lsml_cli.evaluation.unreadable_log import UnreadableLog
from lsml_cli.io.task_reader import read_tasks
from lsml_cli.media.fetcher import Media
from lsml_cli.registry.seen_tasks import SeenTasks, Side, TaskHashes, hash_task
from lsml_cli.schema.annotations import (
    NO_RELEVANT_ANSWER,
    UNREADABLE,
    AnnotationPolicy,
    content_hash,
    extract_labels,
    is_empty_annotation_valid,
    is_relevant,
    select_annotated_tasks,
    strip_annotations,
    task_content,
)
from lsml_cli.schema.json_codec import dumps
from lsml_cli.schema.label_config import Control, LabelConfig
from lsml_cli.schema.tasks import AnnotatedTask, Task, UnreadableRecord

IN_HOLDOUT_FILE = "content that is in the hold-out file"
TRAINED_BEFORE = "trained on by the version that it starts from"

ClassCounts = dict[str, dict[str, tuple[int, int]]]

_ANNOTATE_HINT = "Export tasks that have been annotated."
_HELD_OUT_HINTS = {  # by whether a file was held out
    True: "Give other tasks to train on than those of --holdout, or hold out a share: --holdout 0.2",
    False: "Annotate more tasks, or hold out fewer: --holdout 0.1",
}


@dataclass(frozen=True)
class SplitHistory:
    """The earlier versions that a split respects.

    Attributes:
        previous: The version whose sides tasks keep: the newest of the same model with the same share and seed.
        init_from: The version that training starts from; what it was trained on cannot be held out any more.
    """

    previous: SeenTasks | None = None
    init_from: SeenTasks | None = None

    def stored_side(self, task: Task, media: Media | None) -> Side | None:
        """Return the side that a task has had; None for a new task."""
        if self.init_from is not None and self.init_from.was_trained_on(task, media):
            return "trained"
        return None if self.previous is None else self.previous.split_side(task, media)


NO_HISTORY = SplitHistory()


@dataclass(frozen=True)
class DataSplit:
    """The tasks to train on and those held out, without the annotations that came with them.

    Attributes:
        train: Tasks to train on, with the annotations to learn.
        held_out: Tasks to evaluate on.
        left_out: Number of tasks of the export on neither side, by reason.
        held_out_left_out: Number of tasks of the hold-out file that cannot be evaluated, by reason.
        classes: {control: {label: (tasks to train on, held-out tasks)}}, for every label of the config and every one
            that an annotation uses.
        options: How the split was made: share or file name, seed, annotation policy.
        unreadable: The unreadable records of the export.
        held_out_unreadable: The same for the hold-out file.
        data_digest: Of tasks and annotations on both sides.
        train_hashes: Hashes of the tasks to train on, see `seen_tasks`.
        held_out_hashes: Hashes of the held-out tasks.
        trained_before: Number of tasks that would be held out, had the version that training starts from not been
            trained on them.
    """

    train: Sequence[AnnotatedTask]
    held_out: Sequence[AnnotatedTask]
    left_out: Mapping[str, int]
    held_out_left_out: Mapping[str, int]
    classes: ClassCounts
    options: Mapping[str, Any]
    unreadable: UnreadableLog = field(default_factory=UnreadableLog)
    held_out_unreadable: UnreadableLog = field(default_factory=UnreadableLog)
    data_digest: str = ""
    train_hashes: Set[int] = frozenset()
    held_out_hashes: Set[int] = frozenset()
    trained_before: int = 0

    @property
    def truncated(self) -> bool:
        """Tell whether a file is truncated, so that tasks are missing."""
        return self.unreadable.is_truncated or self.held_out_unreadable.is_truncated

    @property
    def unreadable_count(self) -> int:
        """Number of unreadable records in both files."""
        return self.left_out.get(UNREADABLE, 0) + self.held_out_left_out.get(UNREADABLE, 0)

    def unreadable_lines(self, export_name: str) -> Iterator[str]:
        """Say which records of the export and of the hold-out file could not be read, and why."""
        yield from self.unreadable.lines(export_name)
        yield from self.held_out_unreadable.lines(str(self.options.get("holdout_file")))

    def history_notes(self, history: SplitHistory) -> list[str]:
        """Say how the version that training starts from limits what can be measured."""
        if history.init_from is None:
            return []
        if not history.init_from.is_known:
            return [
                f"It is not known what {history.init_from.name} was trained on, because an older lsml wrote it; it may "
                f"have seen some of the held-out tasks."
            ]
        if not self.trained_before:
            return []
        tasks = "1 task" if self.trained_before == 1 else f"{self.trained_before:,} tasks"
        return [f"{tasks} cannot be held out, because {history.init_from.name} was trained on them."]

    @cached_property
    def counts(self) -> dict[str, Any]:
        """What `Version.counts` stores: numbers of tasks, and of annotations, of which a task may have several."""
        return {
            "train": _count_tasks(self.train),
            "holdout": _count_tasks(self.held_out),
            "annotations": {"train": len(self.train), "holdout": len(self.held_out)},
            "left_out": dict(self.left_out),
            "holdout_left_out": dict(self.held_out_left_out),
            "torn": self.truncated,
            "classes": {
                control: {label: {"train": train, "holdout": held_out} for label, (train, held_out) in labels.items()}
                for control, labels in self.classes.items()
            },
            **self.options,
        }

    @property
    def classes_without_holdout(self) -> dict[str, list[str]]:
        """By control, the classes that occur in training but not in the hold-out; empty if nothing is held out."""
        return self._classes_where(lambda train, held_out: bool(train and not held_out)) if self.held_out else {}

    @property
    def classes_without_training(self) -> dict[str, list[str]]:
        """By control, the classes that occur in the hold-out only: they are evaluated, but cannot be predicted."""
        return self._classes_where(lambda train, held_out: bool(held_out and not train))

    def _classes_where(self, predicate: Callable[[int, int], bool]) -> dict[str, list[str]]:
        """Return by control the classes whose numbers of training and held-out tasks satisfy the predicate."""
        matching = {
            control: sorted(label for label, counts in labels.items() if predicate(*counts))
            for control, labels in self.classes.items()
        }
        return {control: labels for control, labels in matching.items() if labels}

    def to_json(self) -> dict[str, Any]:
        return self.counts | {"too_small": self.classes_without_holdout, "never_seen": self.classes_without_training}


@dataclass
class _AnnotatedReader:
    """Reads annotated tasks from one file.

    Attributes:
        config: The label config.
        media: Where the media are that tasks refer to.
        keep_hashes: Whether to collect the content of all readable tasks in `hashes`.
        foreign_controls: The controls that the annotations fill, if none of them is in the label config.
    """

    config: LabelConfig
    media: Media | None = None
    keep_hashes: bool = False
    hashes: set[int] = field(default_factory=set)
    unreadable: UnreadableLog = field(default_factory=UnreadableLog)
    foreign_controls: Sequence[str] = ()

    def next_action(self) -> str:
        """Return what to do where no task has an answer."""
        if not self.foreign_controls:
            return _ANNOTATE_HINT
        named, expected = format_list(self.foreign_controls), format_list(self.config.controls)
        return (
            f"The annotations are for {named}, and the label config has {expected}: give the label config of the "
            "project that the export is from, with --label-config, or an export of the project of this one."
        )

    def read_examples(
        self, tasks: Iterable[Task | UnreadableRecord], annotation_policy: AnnotationPolicy
    ) -> tuple[list[AnnotatedTask], Counter[str]]:
        """Return the annotated tasks, and the number of all others by reason."""
        annotated, reasons = select_annotated_tasks(
            self._collect_hashes(self.unreadable.filter_readable(tasks)),
            self.config,
            annotation_policy,
            allow_empty=is_empty_annotation_valid(self.config),
        )
        relevant = [example for example in annotated if is_relevant(example.annotation, self.config)]
        irrelevant_count = _count_tasks(annotated) - _count_tasks(relevant)
        if not relevant:
            self.foreign_controls = _control_names(annotated)
        reasons.update({NO_RELEVANT_ANSWER: irrelevant_count, UNREADABLE: self.unreadable.count})
        return relevant, +reasons

    def _collect_hashes(self, tasks: Iterable[Task]) -> Iterator[Task]:
        for task in tasks:
            if self.keep_hashes:
                self.hashes.update(hash_task(task, self.config, self.media))
            yield task


def split_tasks(
    tasks: Iterable[Task | UnreadableRecord],
    config: LabelConfig,
    *,
    holdout: float | Path = 0.2,
    seed: int = 0,
    annotation_policy: AnnotationPolicy = "last",
    media: Media | None = None,
    history: SplitHistory = NO_HISTORY,
) -> DataSplit:
    """Read the annotated tasks and assign them to sides.

    Args:
        tasks: Of the export.
        config: The label config.
        holdout: The share of the tasks to hold out (0 <= holdout < 1), or a file of annotated tasks to hold out
            instead; no task with the content of a task in that file is trained on.
        seed: Another seed holds out another share.
        annotation_policy: Which of several annotations count, see `select_annotated_tasks`.
        media: Where images are: those on this machine are compared by their bytes, others by their addresses.
        history: The earlier versions whose sides are kept.

    Raises:
        ModelError: There is nothing to train on.
        InputError: The hold-out file has no annotated task.
    """
    require_share(holdout)
    reader = _AnnotatedReader(config)
    examples, left_out = reader.read_examples(tasks, annotation_policy)
    if isinstance(holdout, Path):
        split = _split_by_file(examples, config, holdout, annotation_policy, media, history)
    else:
        sides = _SideAssigner(config, holdout, seed, media, history)
        split = _split_by_share(examples, sides, annotation_policy)
    left_out = +(left_out + Counter(split.left_out))
    if not split.train:
        everything = f"all {len(split.held_out):,} annotated tasks are held out"
        reasons = everything if split.held_out and not left_out else format_reasons(left_out) or "no tasks at all"
        is_all_held_out = bool(split.held_out) and bool(examples)
        hint = _HELD_OUT_HINTS[isinstance(holdout, Path)] if is_all_held_out else reader.next_action()
        raise ModelError(f"There is nothing to learn from: {reasons}.", hint)
    return replace(
        split,
        left_out=dict(sorted(left_out.items())),
        classes=_count_classes(config, split.train, split.held_out),
        unreadable=reader.unreadable,
    )


def _split_by_share(
    examples: Sequence[AnnotatedTask], sides: _SideAssigner, annotation_policy: AnnotationPolicy
) -> DataSplit:
    """Hold out a share of the tasks."""
    train, held_out = sides.split(examples)
    return DataSplit(
        train,
        held_out,
        left_out={},
        held_out_left_out={},
        classes={},
        options={"annotation": annotation_policy, "holdout_share": sides.share, "seed": sides.seed},
        # In the order of the file, not of the sides, so that it does not depend on the seed.
        data_digest=_data_digest(examples),
        train_hashes=sides.hashes["trained"],
        held_out_hashes=sides.hashes["held out"],
        trained_before=sides.trained_before,
    )


@dataclass
class _SideAssigner:
    """Assigns tasks to sides, and collects the hashes of both.

    Attributes:
        share: The share of new tasks to hold out.
        seed: See `split_tasks`, like `config`, `media` and `history`.
        hashes: Of the tasks on each side.
        trained_before: See `DataSplit`.
    """

    config: LabelConfig
    share: float
    seed: int
    media: Media | None
    history: SplitHistory
    hashes: dict[Side, set[int]] = field(default_factory=lambda: {"trained": set(), "held out": set()})
    trained_before: int = 0

    def split(self, examples: Sequence[AnnotatedTask]) -> tuple[list[AnnotatedTask], list[AnnotatedTask]]:
        """Return the examples to train on and those to hold out. Where stored sides differ, equal tasks are trained on.

        Stored sides of all tasks are looked up first, because a new task may equal one that has a side.
        """
        hashed: list[tuple[TaskHashes, float]] = []
        stored: dict[int, Side] = {}
        for example in examples:
            content = task_content(example.task, self.config, self.media)
            values = content_hash(task_content(example.task, self.config)) if self.media else content_hash(content)
            hashes = TaskHashes(content_hash(content), values)
            hashed.append((hashes, _hash_position(content, self.seed)))
            side = self.history.stored_side(example.task, self.media)
            if side is not None and stored.get(hashes.content) != "trained":
                stored[hashes.content] = side
        train: list[AnnotatedTask] = []
        held_out: list[AnnotatedTask] = []
        for example, (hashes, position) in zip(examples, hashed, strict=True):
            by_position: Side = "held out" if position < self.share else "trained"
            side = stored.get(hashes.content, by_position)
            (train if side == "trained" else held_out).append(_strip_example(example))
            self.hashes[side].update(hashes)
            init_from = self.history.init_from
            if init_from is not None and side == "trained" and by_position == "held out":
                self.trained_before += init_from.was_trained_on(example.task, self.media)
        return train, held_out


def _split_by_file(
    examples: Sequence[AnnotatedTask],
    config: LabelConfig,
    path: Path,
    annotation_policy: AnnotationPolicy,
    media: Media | None,
    history: SplitHistory,
) -> DataSplit:
    """Hold out the tasks of a file, and leave tasks of equal content out of the training."""
    reader = _AnnotatedReader(config, media, keep_hashes=True)
    in_file, left_out = reader.read_examples(
        read_tasks(str(path), controls=frozenset(config.controls)), annotation_policy
    )
    init_from = history.init_from
    held_out = [
        _strip_example(example)
        for example in in_file
        if init_from is None or not init_from.was_trained_on(example.task, media)
    ]
    left_out += Counter({TRAINED_BEFORE: _count_tasks(in_file) - _count_tasks(held_out)})
    if not held_out:
        reasons = format_reasons(left_out) or "it has no tasks at all"
        raise InputError(f"{path} has no annotated task to measure with: {reasons}.", reader.next_action())
    train: list[AnnotatedTask] = []
    train_hashes: set[int] = set()
    for example in examples:
        hashes = hash_task(example.task, config, media)
        if reader.hashes.isdisjoint(hashes):
            train.append(_strip_example(example))
            train_hashes.update(hashes)
    return DataSplit(
        train,
        held_out,
        left_out={IN_HOLDOUT_FILE: _count_tasks(examples) - _count_tasks(train)},
        held_out_left_out=dict(sorted((+left_out).items())),
        classes={},
        options={"annotation": annotation_policy, "holdout_file": path.name},
        held_out_unreadable=reader.unreadable,
        data_digest=_data_digest([*examples, *held_out]),
        train_hashes=train_hashes,
        held_out_hashes=reader.hashes,
    )


def require_share(holdout: float | Path) -> None:
    """Check that a hold-out is a file, or a share.

    Raises:
        UsageError: It is a number outside 0 <= holdout < 1.
    """
    if not isinstance(holdout, Path) and not 0 <= holdout < 1:
        raise UsageError(f"--holdout must be at least 0 and below 1, not {holdout}.", "0.2 holds every fifth task out.")


def is_held_out(task: Task, config: LabelConfig, share: float, seed: int, media: Media | None = None) -> bool:
    """Return whether a new task is held out, which does not depend on other tasks."""
    return _hash_position(task_content(task, config, media), seed) < share


def format_reasons(reasons: Mapping[str, int]) -> str:
    """Format reasons with their counts: "5 with no annotation, 2 with skipped"."""
    return ", ".join(f"{count:,} with {reason}" for reason, count in sorted(reasons.items()))


def _hash_position(content: bytes, seed: int) -> float:
    """Map the content of a task to a number in 0..1 by a hash."""
    digest = blake2b(f"{seed}\0".encode() + content, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _strip_example(example: AnnotatedTask) -> AnnotatedTask:
    return AnnotatedTask(strip_annotations(example.task), example.annotation)


def _count_classes(
    config: LabelConfig, train: Sequence[AnnotatedTask], held_out: Sequence[AnnotatedTask]
) -> ClassCounts:
    counts: ClassCounts = {}
    for control in config.controls.values():
        if control.labels or control.has_dynamic_labels:
            in_train, in_held_out = _count_labels(control, train), _count_labels(control, held_out)
            labels = dict.fromkeys([label.name for label in control.labels])
            labels |= dict.fromkeys(sorted(in_train.keys() | in_held_out.keys()))
            counts[control.name] = {label: (in_train[label], in_held_out[label]) for label in labels}
    return counts


def _count_labels(control: Control, examples: Iterable[AnnotatedTask]) -> Counter[str]:
    """Return for each label the number of tasks that have it at least once."""
    occurrences = {
        (label, example.task.index)
        for example in examples
        for label in extract_labels(control, example.annotation.result)
    }
    return Counter(label for label, _ in occurrences)


def _control_names(examples: Iterable[AnnotatedTask]) -> list[str]:
    """Return the names of the controls that annotations fill, in alphabetical order."""
    names = {region.get("from_name") for example in examples for region in example.annotation.result}
    return sorted(name for name in names if isinstance(name, str))


def _count_tasks(examples: Iterable[AnnotatedTask]) -> int:
    return len({example.task.index for example in examples})


def _data_digest(examples: Iterable[AnnotatedTask]) -> str:
    digest = blake2b(digest_size=16)
    for task, annotation in examples:
        digest.update(dumps([task.data, annotation.result], sort_keys=True) + b"\n")
    return digest.hexdigest()
