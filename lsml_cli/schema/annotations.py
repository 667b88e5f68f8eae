"""Select the annotations of tasks that count, and compare what tasks and annotations contain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, Protocol

from lsml_cli.schema.json_codec import dumps, loads
from lsml_cli.schema.label_config import Control, LabelConfig
from lsml_cli.schema.tasks import AnnotatedTask, Annotation, Task, is_export_row, parse_id, parse_regions

UNREADABLE = "unreadable"

NO_RELEVANT_ANSWER = "no answer for this label config"


MEDIA_REFERENCE_TAGS = frozenset({"Image", "Audio", "Video", "Pdf"})  # objects whose value is an address

AnnotationPolicy = Literal["last", "first", "all"]

NO_ANNOTATION = "no annotation"
SKIPPED = "skipped"  # the annotator pressed Skip; Label Studio calls it cancelled
EMPTY_RESULT = "empty result"  # submitted without a region


def select_annotated_tasks(
    tasks: Iterable[Task],
    config: LabelConfig,
    annotation_policy: AnnotationPolicy = "last",
    *,
    allow_empty: bool = False,
) -> tuple[list[AnnotatedTask], Counter[str]]:
    """Return the tasks with the annotations that count, and how many other tasks there are, by reason.

    The rows that JSON_MIN or CSV hold for one task, one for each annotation, count as one task.

    Args:
        tasks: Tasks as they were exported.
        config: Label config of the project.
        annotation_policy: Which of several annotations: the "last" or "first" ground truth, else the last or first that
            was not skipped; "all": each of them, as an example of its own.
        allow_empty: Whether an annotation without regions counts: it says that nothing is there.
    """
    selected: list[AnnotatedTask] = []
    reasons: Counter[str] = Counter()
    for entry in iter_task_annotations(tasks, config, annotation_policy, allow_empty=allow_empty):
        selected += [AnnotatedTask(entry.task, annotation) for annotation in entry.selected]
        if entry.reason:
            reasons[entry.reason] += 1
    return selected, reasons


class MediaDigests(Protocol):
    """The part of `Media` that tells whether two values point to the same content."""

    def digest(self, value: str) -> bytes | None:
        """Return a digest of the file that `value` points to, None if it is not on this machine."""
        ...


class TaskAnnotations(NamedTuple):
    """A task with its annotations.

    Attributes:
        selected: The annotations that count; if there is none, `reason` says why.
        usable: All annotations that were not skipped.
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
    """Yield each task with its annotations; the arguments are those of `select_annotated_tasks`.

    Only the rows of JSON_MIN and CSV are kept until the end, when all rows of one task are known.
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
    for task_rows in rows.values():
        annotations = [annotation for _, annotation in task_rows]
        yield _select_for_task(task_rows[0][0], annotations, annotation_policy, allow_empty)


def parse_annotations(task: Task) -> list[Annotation]:
    """Return the annotations of an exported task (`completions` in old exports).

    One with items that are no regions is left out: without them, it might look like the answer that nothing is there.
    """
    stored = task.raw.get("annotations", task.raw.get("completions"))
    if not isinstance(stored, list):
        return []
    return [_parse_annotation(annotation) for annotation in stored if _is_annotation(annotation)]


def select_annotations(
    annotations: Sequence[Annotation], annotation_policy: AnnotationPolicy = "last", *, allow_empty: bool = False
) -> list[Annotation]:
    """Return the annotations that count, by id: one, none, or with "all" every usable one."""
    usable = [
        annotation for annotation in annotations if not annotation.cancelled and (annotation.result or allow_empty)
    ]
    # An export lists the oldest first, JSON_MIN the newest; ids grow in the order of creation.
    if all(annotation.id is not None for annotation in usable):
        usable.sort(key=lambda annotation: annotation.id or 0)
    if annotation_policy == "all":
        return usable
    preferred = [annotation for annotation in usable if annotation.ground_truth] or usable
    return preferred[-1:] if annotation_policy == "last" else preferred[:1]


def extract_labels(control: Control, result: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the labels that regions give to a control, by their current names."""
    names: list[str] = []
    for region in result:
        value = region.get("value")
        if region.get("from_name") == control.name and isinstance(value, Mapping):
            labels = value.get(control.type)
            if isinstance(labels, str):
                names.append(labels)
            elif isinstance(labels, list | tuple):
                names += [name for name in labels if isinstance(name, str)]
    return [control.label_names.get(name, name) for name in names]


def _select_for_task(
    task: Task, candidates: Sequence[Annotation], annotation_policy: AnnotationPolicy, allow_empty: bool
) -> TaskAnnotations:
    selected = select_annotations(candidates, annotation_policy, allow_empty=allow_empty)
    if selected:
        return TaskAnnotations(task, selected, select_annotations(candidates, "all", allow_empty=allow_empty))
    is_submitted = any(not annotation.cancelled for annotation in candidates)
    return TaskAnnotations(task, (), (), EMPTY_RESULT if is_submitted else SKIPPED if candidates else NO_ANNOTATION)


def _is_annotation(stored: object) -> bool:
    if not isinstance(stored, Mapping):
        return False
    result = stored.get("result")
    return not isinstance(result, list) or all(isinstance(region, Mapping) for region in result)


def _parse_annotation(stored: Mapping[str, Any]) -> Annotation:
    return Annotation(
        parse_id(stored.get("id")),
        parse_regions(stored.get("result")),
        ground_truth=stored.get("ground_truth") is True,
        cancelled=stored.get("was_cancelled") is True or stored.get("skipped") is True,
    )


def _parse_row(row: Mapping[str, Any], config: LabelConfig) -> Annotation:
    """Rebuild an annotation from a row: JSON_MIN drops ids of regions, and shortens a single choice to its name."""
    result = [
        {"from_name": control.name, "to_name": control.to_names[0], "type": control.type, "value": value}
        for control in config.controls.values()
        for value in _parse_cell(control, row.get(control.name))
    ]
    return Annotation(parse_id(row.get("annotation_id")), result)


def _parse_cell(control: Control, cell: Any) -> list[Mapping[str, Any]]:
    """Return the value objects in one cell of a row; a cell of the CSV export holds JSON in a string."""
    if isinstance(cell, str) and cell[:1] in ("{", "["):
        with suppress(ValueError):  # a label or a text may happen to begin with a bracket
            cell = loads(cell.encode())
    if cell is None or cell == "":
        return []
    if isinstance(cell, Mapping):
        return [cell]
    if isinstance(cell, list) and all(isinstance(item, Mapping) for item in cell):
        return cell
    key = "text" if control.type == "textarea" else control.type
    return [{key: cell if isinstance(cell, list) else [cell]}]


def task_content(task: Task, config: LabelConfig, media: MediaDigests | None = None) -> bytes:
    """Return the values of the objects that some control is about. Equal bytes mean equal content.

    A value that points to a file on this machine is replaced by a digest of the file.
    """
    referenced_names = {name for control in config.controls.values() for name in control.to_names}
    parts = []
    for obj in config.objects.values():
        if obj.name not in referenced_names:
            continue
        try:
            value = obj.read(task.data)
            is_media = media and isinstance(value, str) and obj.tag in MEDIA_REFERENCE_TAGS
            digest = media.digest(value) if media and is_media else None
            parts.append((digest or dumps(value, sort_keys=True)) + b"\0")
        except ValueError:
            parts.append(b"null\0")
    return b"".join(parts)


def content_digest(content: bytes) -> bytes:
    """Return a 16-byte digest of what `task_content` returned."""
    return blake2b(content, digest_size=16).digest()


def content_hash(content: bytes) -> int:
    """Return an 8-byte hash of what `task_content` returned."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big")


def is_empty_annotation_valid(config: LabelConfig) -> bool:
    """Return whether an annotation without regions is an answer: no label applies, or nothing is there."""
    return not all(control.is_single_choice for control in config.controls.values())


def is_relevant(annotation: Annotation, config: LabelConfig) -> bool:
    """Return whether an annotation is empty or has a region of this label config."""
    result = annotation.result
    return not result or any(region.get("from_name") in config.controls for region in result)


def strip_annotations(task: Task) -> Task:
    """Return the task without its annotations and predictions, so that no model sees the answer."""
    return replace(task, raw={key: task.raw[key] for key in ("id", "data", "meta") if key in task.raw})


def make_input_task(example: AnnotatedTask, input_controls: Set[str]) -> Task:
    """Return the task that a model gets when it is evaluated: stripped, but with the regions of `input_controls`.

    See `Model.input_controls`.
    """
    task = strip_annotations(example.task)
    regions = [region for region in example.annotation.result if region.get("from_name") in input_controls]
    return replace(task, raw={**task.raw, "annotations": [{"result": regions}]}) if regions else task
