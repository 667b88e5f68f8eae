"""Which annotation of a task counts, and why some tasks have none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, Protocol, get_args

import orjson

from lsml_cli.schema.label_config import Control, LabelConfig
from lsml_cli.schema.tasks import AnnotatedTask, Annotation, Task, is_export_row, parse_id

UNREADABLE = "unreadable"

NO_RELEVANT_ANSWER = "no answer for this label config"

MAX_LISTED_UNREADABLE = 3  # unreadable tasks named one by one, besides the place where a file is torn

MEDIA_REFERENCE_TAGS = frozenset({"Image", "Audio", "Video", "Pdf"})  # objects whose value says where their content is


AnnotationPolicy = Literal["last", "first", "all"]
ANNOTATION_POLICIES: tuple[str, ...] = get_args(AnnotationPolicy)

NO_ANNOTATION = "no annotation"
SKIPPED = "skipped"  # the annotator pressed Skip: Label Studio calls it cancelled
EMPTY_RESULT = "empty result"  # submitted without filling anything


def select_annotated_tasks(
    tasks: Iterable[Task],
    config: LabelConfig,
    annotation_policy: AnnotationPolicy = "last",
    *,
    allow_empty: bool = False,
) -> tuple[list[AnnotatedTask], Counter[str]]:
    """The tasks that have an annotation that counts, each with it, and how many others there are by reason.

    which  of several annotations the "last" (or "first") ground truth, else the last (or first) one that was not
           skipped; "all": each of them, as so many examples
    empty  whether an annotation without any region counts: it says that nothing is there

    The rows that JSON_MIN or CSV has for one task, one for each annotation, count as one task.
    """
    found: list[AnnotatedTask] = []
    reasons: Counter[str] = Counter()
    for each in iter_task_annotations(tasks, config, annotation_policy, allow_empty=allow_empty):
        found += [AnnotatedTask(each.task, annotation) for annotation in each.selected]
        if each.reason:
            reasons[each.reason] += 1
    return found, reasons


class MediaDigests(Protocol):
    """The part of `Media` that tells whether two values point to the same content."""

    def digest(self, value: str) -> bytes | None:
        """Return a digest of the file that `value` points to, None if it is not on this machine."""
        ...


class TaskAnnotations(NamedTuple):
    """A task with its annotations.

    counting  those that count; none with a `reason` why
    usable    all that were not skipped
    """

    task: Task
    selected: Sequence[Annotation]
    usable: Sequence[Annotation]
    reason: str = ""


def iter_task_annotations(
    tasks: Iterable[Task],
    config: LabelConfig,
    annotation_policy: AnnotationPolicy = "last",
    *,
    allow_empty: bool = False,
) -> Iterator[TaskAnnotations]:
    """Each task with its annotations, one at a time; the parameters are those of `labelled`.

    Only the rows of JSON_MIN and CSV are kept until the end, when it is known which of them are about one task.
    """
    rows: dict[int, list[tuple[Task, Annotation]]] = {}
    for task in tasks:
        if is_export_row(task.raw):
            annotation = _parse_row(task.raw, config)
            if task.id is not None:
                rows.setdefault(task.id, []).append((task, annotation))
                continue
            candidates = [annotation]
        else:
            candidates = parse_annotations(task)
        yield _select_for_task(task, candidates, annotation_policy, allow_empty)
    for several in rows.values():
        yield _select_for_task(several[0][0], [annotation for _, annotation in several], annotation_policy, allow_empty)


def parse_annotations(task: Task) -> list[Annotation]:
    """The annotations of a whole task, as it was exported (`completions` in old exports)."""
    stored = task.raw.get("annotations", task.raw.get("completions"))
    if not isinstance(stored, list):
        return []
    return [_parse_annotation(each) for each in stored if isinstance(each, Mapping)]


def select_annotations(
    annotations: Sequence[Annotation], annotation_policy: AnnotationPolicy = "last", *, allow_empty: bool = False
) -> list[Annotation]:
    """Those that count: one, none, or with "all" every usable one. The order is that of their ids."""
    usable = [each for each in annotations if not each.cancelled and (each.result or allow_empty)]
    # An export lists the oldest first, JSON_MIN the newest; ids grow in the order of creation.
    if all(each.id is not None for each in usable):
        usable.sort(key=lambda each: each.id or 0)
    if annotation_policy == "all":
        return usable
    preferred = [each for each in usable if each.ground_truth] or usable
    return preferred[-1:] if annotation_policy == "last" else preferred[:1]


def extract_labels(control: Control, result: Iterable[Mapping[str, Any]]) -> list[str]:
    """The labels that regions (of an annotation or a prediction) give to a control, by the name they have now."""
    found = []
    for region in result:
        value = region.get("value")
        if region.get("from_name") == control.name and isinstance(value, Mapping):
            given = value.get(control.type)
            if isinstance(given, str):
                found.append(given)
            elif isinstance(given, list | tuple):
                found += [name for name in given if isinstance(name, str)]
    return [control.label_names.get(name, name) for name in found]


def _select_for_task(
    task: Task, candidates: Sequence[Annotation], annotation_policy: AnnotationPolicy, allow_empty: bool
) -> TaskAnnotations:
    counting, usable = (
        select_annotations(candidates, annotation_policy, allow_empty=allow_empty),
        select_annotations(candidates, "all", allow_empty=allow_empty),
    )
    if counting:
        return TaskAnnotations(task, counting, usable)
    kept = [each for each in candidates if not each.cancelled]
    return TaskAnnotations(task, (), (), EMPTY_RESULT if kept else SKIPPED if candidates else NO_ANNOTATION)


def _parse_annotation(stored: Mapping[str, Any]) -> Annotation:
    result = stored.get("result")
    return Annotation(
        parse_id(stored.get("id")),
        [region for region in result if isinstance(region, Mapping)] if isinstance(result, list) else [],
        ground_truth=stored.get("ground_truth") is True,
        cancelled=stored.get("was_cancelled") is True or stored.get("skipped") is True,
    )


def _parse_row(row: Mapping[str, Any], config: LabelConfig) -> Annotation:
    """JSON_MIN drops ids of regions and ground truths, and shortens a lone choice to its name."""
    result = [
        {"from_name": control.name, "to_name": control.to_names[0], "type": control.type, "value": value}
        for control in config.controls.values()
        for value in _parse_cell(control, row.get(control.name))
    ]
    return Annotation(parse_id(row.get("annotation_id")), result)


def _parse_cell(control: Control, cell: Any) -> list[Mapping[str, Any]]:
    """The value objects in one cell of a row; a cell of the CSV export holds JSON in a string."""
    if isinstance(cell, str) and cell[:1] in ("{", "["):
        with suppress(ValueError):  # a label or a text may happen to begin with a bracket
            cell = orjson.loads(cell)
    if cell is None or cell == "":
        return []
    if isinstance(cell, Mapping):
        return [cell]
    if isinstance(cell, list) and all(isinstance(each, Mapping) for each in cell):
        return cell
    key = "text" if control.type == "textarea" else control.type
    return [{key: cell if isinstance(cell, list) else [cell]}]


def task_content(task: Task, config: LabelConfig, media: MediaDigests | None = None) -> bytes:
    """What a task is about: the values of the objects that some control refers to. Equal bytes, equal content.

    A value that points to a file on this machine stands for the file's bytes.
    """
    about = {name for control in config.controls.values() for name in control.to_names}
    shown = []
    for source in config.objects.values():
        if source.name not in about:
            continue
        try:
            value = source.read(task.data)
            digest = (
                media.digest(value) if media and isinstance(value, str) and source.tag in MEDIA_REFERENCE_TAGS else None
            )
            shown.append((digest or orjson.dumps(value, option=orjson.OPT_SORT_KEYS)) + b"\0")
        except ValueError:
            shown.append(b"null\0")
    return b"".join(shown)


def content_digest(content: bytes) -> bytes:
    """Return a 16-byte digest of what `task_content` returned."""
    return blake2b(content, digest_size=16).digest()


def is_empty_annotation_valid(config: LabelConfig) -> bool:
    """Whether an annotation without any region says something: that no label applies, that nothing is there."""
    return not all(control.is_single_choice for control in config.controls.values())


def is_relevant(annotation: Annotation, config: LabelConfig) -> bool:
    """Whether an annotation says anything about this label config: an empty one does, where it counts at all."""
    result = annotation.result
    return not result or any(region.get("from_name") in config.controls for region in result)


def strip_annotations(task: Task) -> Task:
    """The task without the annotations and predictions that came with it: nothing can peek at them."""
    return replace(task, raw={key: task.raw[key] for key in ("id", "data", "meta") if key in task.raw})


def make_input_task(example: AnnotatedTask, input_controls: Set[str]) -> Task:
    """What a model is asked when it is measured: the bare task, with what is `given`, see `Model.given`."""
    task = strip_annotations(example.task)
    shown = [region for region in example.annotation.result if region.get("from_name") in input_controls]
    return replace(task, raw={**task.raw, "annotations": [{"result": shown}]}) if shown else task
