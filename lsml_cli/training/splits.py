"""Which annotated tasks a model learns from, and which it is measured on.

A task's side depends on a seed and on what its objects show, on nothing else. So equal texts fall together, nothing
changes sides as the data grows, and the same data always splits the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from lsml_cli.errors import InputError, ModelError, UsageError
from lsml_cli.io.task_reader import read_tasks
from lsml_cli.media.fetcher import Media
from lsml_cli.schema.annotations import (
    MAX_LISTED_UNREADABLE,
    NO_RELEVANT_ANSWER,
    UNREADABLE,
    AnnotationPolicy,
    extract_labels,
    is_empty_annotation_valid,
    is_relevant,
    select_annotated_tasks,
    strip_annotations,
    task_content,
)
from lsml_cli.schema.label_config import Control, LabelConfig
from lsml_cli.schema.tasks import AnnotatedTask, Task, UnreadableRecord

IN_HOLDOUT_FILE = "content that is in the hold-out file"


ClassCounts = dict[str, dict[str, tuple[int, int]]]


@dataclass(frozen=True)
class DataSplit:
    """What a fit would learn from (`train`) and be measured on (`held_out`), without any answer in the tasks.

    left_out           tasks of the export on neither side, by reason
    held_out_left_out  tasks of the hold-out file that cannot be measured with, by reason
    classes            {control: {label: (tasks to train on, held-out tasks)}}, every label of the config and
                       every one that was given
    asked              how it came about: share or file name, seed, which annotation
    unreadable         the first places of the export where no task can be read, and the one where it is torn
    held_out_unreadable  the same for the hold-out file
    data_digest        of the tasks and annotations on both sides
    """

    train: Sequence[AnnotatedTask]
    held_out: Sequence[AnnotatedTask]
    left_out: Mapping[str, int]
    held_out_left_out: Mapping[str, int]
    classes: ClassCounts
    options: Mapping[str, Any]
    unreadable: Sequence[UnreadableRecord] = ()
    held_out_unreadable: Sequence[UnreadableRecord] = ()
    data_digest: str = ""

    @property
    def truncated(self) -> bool:
        """Whether a file ends too early, so that there was more to learn from, or to measure with, than was seen."""
        return any(place.truncated for place in (*self.unreadable, *self.held_out_unreadable))

    @property
    def unreadable_count(self) -> int:
        """Number of places of both files where a task was expected, and none can be read."""
        return self.left_out.get(UNREADABLE, 0) + self.held_out_left_out.get(UNREADABLE, 0)

    def describe_unreadable(self, export_name: str) -> list[str]:
        """The first of these places, each with its file and the reason. `export` is what the export is called."""
        files = ((export_name, self.unreadable), (self.options.get("holdout_file"), self.held_out_unreadable))
        return [f"{file}, {place.location}: {place.reason}" for file, places in files for place in places]

    @cached_property
    def counts(self) -> dict[str, Any]:
        """As `Version.counts` keeps it. Tasks, unless it says annotations: with "all" a task may have several."""
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
        """By control, the classes too small to be held out: learned, but without a held-out task. Empty without any."""
        return self._classes_where(lambda train, held_out: bool(train and not held_out)) if self.held_out else {}

    @property
    def classes_without_training(self) -> dict[str, list[str]]:
        """By control, the classes that only held-out tasks have: they are measured, but cannot be right."""
        return self._classes_where(lambda train, held_out: bool(held_out and not train))

    def _classes_where(self, predicate: Any) -> dict[str, list[str]]:
        found = {
            control: sorted(label for label, sides in labels.items() if predicate(*sides))
            for control, labels in self.classes.items()
        }
        return {control: labels for control, labels in found.items() if labels}

    def to_json(self) -> dict[str, Any]:
        return self.counts | {"too_small": self.classes_without_holdout, "never_seen": self.classes_without_training}


@dataclass
class _AnnotatedReader:
    """One pass over a file of tasks: what could not be read, and if `remembering`, the content of what could."""

    config: LabelConfig
    media: Media | None = None
    keep_contents: bool = False
    unreadable: list[UnreadableRecord] = field(default_factory=list)
    contents: set[bytes] = field(default_factory=set)

    @property
    def listed_unreadable(self) -> list[UnreadableRecord]:
        """The first places that are unreadable, and the last one if nothing could be read from there on."""
        return self.unreadable[:MAX_LISTED_UNREADABLE] + [
            place for place in self.unreadable[MAX_LISTED_UNREADABLE:] if place.truncated
        ]

    def filter_readable(self, tasks: Iterable[Task | UnreadableRecord]) -> Iterator[Task]:
        for task in tasks:
            if isinstance(task, UnreadableRecord):
                self.unreadable.append(task)
            else:
                if self.keep_contents:
                    self.contents.add(_digest(task_content(task, self.config, self.media)))
                yield task

    def read_examples(
        self, tasks: Iterable[Task | UnreadableRecord], annotation_policy: AnnotationPolicy
    ) -> tuple[list[AnnotatedTask], Counter[str]]:
        """The annotated tasks, and the others by reason."""
        found, reasons = select_annotated_tasks(
            self.filter_readable(tasks),
            self.config,
            annotation_policy,
            allow_empty=is_empty_annotation_valid(self.config),
        )
        usable = [each for each in found if is_relevant(each.annotation, self.config)]
        foreign = _count_tasks(found) - _count_tasks(usable)
        reasons.update({NO_RELEVANT_ANSWER: foreign, UNREADABLE: len(self.unreadable)})
        return usable, +reasons


def split_tasks(
    tasks: Iterable[Task | UnreadableRecord],
    config: LabelConfig,
    *,
    holdout: float | Path = 0.2,
    seed: int = 0,
    annotation_policy: AnnotationPolicy = "last",
    media: Media | None = None,
) -> DataSplit:
    """Read the annotated tasks and choose their sides.

    holdout           the share of the tasks to hold out (0 <= holdout < 1), or a file of annotated tasks that takes
                      their place; what the file has is never trained on, also not in another task of equal content
    seed              another share
    which_annotation  see `annotations.labelled`
    media             where pictures are: those on this machine are compared by their bytes, others by their addresses

    Raises ModelError when nothing is left to learn from, InputError when the file has nothing to measure with.
    """
    require_share(holdout)
    reading = _AnnotatedReader(config)
    examples, left_out = reading.read_examples(tasks, annotation_policy)
    held_out_unreadable: list[UnreadableRecord] = []
    asked: dict[str, Any] = {"annotation": annotation_policy}
    not_measured: Counter[str] = Counter()
    if isinstance(holdout, Path):
        other = _AnnotatedReader(config, media, keep_contents=True)
        names = frozenset(config.controls)
        held_out, not_measured = other.read_examples(read_tasks(str(holdout), controls=names), annotation_policy)
        held_out_unreadable = other.listed_unreadable
        if not held_out:
            reasons = format_reasons(not_measured) or "it has no tasks at all"
            raise InputError(f"{holdout} has no annotated task to measure with: {reasons}.", _ANNOTATE_HINT)
        train = [each for each in examples if _digest(task_content(each.task, config, media)) not in other.contents]
        left_out.update({IN_HOLDOUT_FILE: _count_tasks(examples) - _count_tasks(train)})
        train, held_out = [_strip_example(each) for each in train], [_strip_example(each) for each in held_out]
        asked |= {"holdout_file": holdout.name}
    else:
        train, held_out = split_examples(examples, config, holdout, seed, media)
        asked |= {"holdout_share": holdout, "seed": seed}
    left_out = +left_out
    if not train:
        everything = f"all {len(held_out):,} annotated tasks are held out" if held_out and not left_out else ""
        reasons = everything or format_reasons(left_out) or "no tasks at all"
        raise ModelError(f"There is nothing to learn from: {reasons}.", _ANNOTATE_HINT)
    return DataSplit(
        train,
        held_out,
        dict(sorted(left_out.items())),
        dict(sorted(not_measured.items())),
        _count_classes(config, train, held_out),
        asked,
        reading.listed_unreadable,
        held_out_unreadable,
        # In the order of the files, not of the sides: the seed changes nothing about the data.
        _data_digest([*examples, *held_out] if isinstance(holdout, Path) else examples),
    )


_ANNOTATE_HINT = "Export tasks that have been annotated."


def require_share(holdout: float | Path) -> None:
    """Raises UsageError for what is no share of tasks."""
    if not isinstance(holdout, Path) and not 0 <= holdout < 1:
        raise UsageError(f"--holdout must be at least 0 and below 1, not {holdout}.", "0.2 holds every fifth task out.")


def split_examples(
    examples: Sequence[AnnotatedTask], config: LabelConfig, share: float, seed: int, media: Media | None = None
) -> tuple[list[AnnotatedTask], list[AnnotatedTask]]:
    """(train, held out), the second with about `share` of the tasks. See the top of this file."""
    sides: tuple[list[AnnotatedTask], list[AnnotatedTask]] = ([], [])
    for example in examples:
        sides[is_held_out(example.task, config, share, seed, media)].append(_strip_example(example))
    return sides


def is_held_out(task: Task, config: LabelConfig, share: float, seed: int, media: Media | None = None) -> bool:
    """Which side a task is on, whatever other tasks there are."""
    return _hash_position(task, config, seed, media) < share


def format_reasons(reasons: Mapping[str, int]) -> str:
    """ "5 with no annotation, 2 with skipped"."""
    return ", ".join(f"{count:,} with {reason}" for reason, count in sorted(reasons.items()))


def _hash_position(task: Task, config: LabelConfig, seed: int, media: Media | None) -> float:
    """Where a task's content falls in 0..1, by a hash."""
    digest = blake2b(f"{seed}\0".encode() + task_content(task, config, media), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def _strip_example(example: AnnotatedTask) -> AnnotatedTask:
    return AnnotatedTask(strip_annotations(example.task), example.annotation)


def _count_classes(
    config: LabelConfig, train: Sequence[AnnotatedTask], held_out: Sequence[AnnotatedTask]
) -> ClassCounts:
    found: ClassCounts = {}
    for control in config.controls.values():
        if control.labels or control.has_dynamic_labels:
            sides = [_count_labels(control, train), _count_labels(control, held_out)]
            names = dict.fromkeys([label.name for label in control.labels])
            names |= dict.fromkeys(sorted(sides[0].keys() | sides[1].keys()))
            found[control.name] = {name: (sides[0][name], sides[1][name]) for name in names}
    return found


def _count_labels(control: Control, examples: Iterable[AnnotatedTask]) -> Counter[str]:
    """In how many tasks each label is given at least once."""
    given = {(label, each.task.index) for each in examples for label in extract_labels(control, each.annotation.result)}
    return Counter(label for label, _ in given)


def _count_tasks(examples: Iterable[AnnotatedTask]) -> int:
    return len({example.task.index for example in examples})


def _data_digest(examples: Iterable[AnnotatedTask]) -> str:
    digest = blake2b(digest_size=16)
    for task, annotation in examples:
        digest.update(orjson.dumps([task.data, annotation.result], option=orjson.OPT_SORT_KEYS) + b"\n")
    return digest.hexdigest()
