"""JSON_MIN: Label Studio's compact export, the results of an annotation beside the data of its task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsml_cli.io.formats.dataset_writer import DatasetWriter, Example, Region, WriteOptions
from lsml_cli.schema.json_codec import dumps
from lsml_cli.schema.tasks import DATA_PREFIX, EXPORT_ROW_FIELDS

FILE = "tasks.json"

# Types of controls whose value is shortened, and the key that holds it.
_SHORTENED = {"choices": "choices", "textarea": "text"}


class JsonMinWriter(DatasetWriter):
    """Writes `tasks.json`, a row for each annotation."""

    def __init__(self, folder: Path, options: WriteOptions) -> None:
        super().__init__(folder, options)
        self._file = self.folder.create(FILE)
        self._rows = 0

    def write(self, example: Example) -> None:
        config = self.options.config
        row = dumps(make_row(example, config.controls if config else ()))
        self._file.write((b",\n" if self._rows else b"[\n") + row)
        self._rows += 1
        self.written += len(example.regions)

    def _finish(self) -> None:
        self._file.write(b"\n]\n" if self._rows else b"[]\n")

    def _close(self) -> None:
        self._file.close()


def make_row(example: Example, controls: Iterable[str] = ()) -> dict[str, Any]:
    """Return the row of an example, as Label Studio exports it; a prediction has a score and a model_version.

    Args:
        example: A task with an annotation or prediction.
        controls: Names of controls that a key of the data must not be taken for; those of the results anyway, and
            those of the columns about the annotation.
    """
    results = shorten_results(example.regions)
    names = {*results, *controls, *EXPORT_ROW_FIELDS}
    data = {DATA_PREFIX + key if key in names else key: value for key, value in example.task.data.items()}
    row = {**data, "id": example.task.id, **results}
    source = example.source
    for key, name in (("completed_by", "annotator"), ("id", "annotation_id")):
        row[name] = _simplify(source.get(key))
    kept = ("created_at", "updated_at", "lead_time", "score", "model_version")
    return row | {key: source[key] for key in kept if source.get(key) is not None}


def shorten_results(
    regions: Sequence[Region], is_unambiguous: Callable[[str], bool] = lambda _: True
) -> dict[str, Any]:
    """Return the results of each control as JSON_MIN and CSV hold them.

    One choice, or one text, is that text; anything else is a list of values. A single value of several choices is not
    in a list.

    Args:
        regions: Label Studio's region objects.
        is_unambiguous: Whether a choice or a text may stand for itself.
    """
    groups: dict[str, list[Region]] = {}
    for region in regions:
        if isinstance(name := region.get("from_name"), str):
            groups.setdefault(name, []).append(region)
    results: dict[str, Any] = {}
    for name, parts in groups.items():
        values = [_shorten(region, is_unambiguous) for region in parts]
        is_alone = len(values) == 1 and parts[0].get("type") in _SHORTENED
        results[name] = values[0] if is_alone else values
    return results


def _shorten(region: Region, is_unambiguous: Callable[[str], bool]) -> Any:
    """Return a value: a choice or a text by itself, a shape with the size of its image."""
    value = region.get("value")
    if not isinstance(value, Mapping):
        return value
    texts = value.get(_SHORTENED.get(str(region.get("type")), ""))
    text = texts[0] if isinstance(texts, list) and len(texts) == 1 else texts
    if isinstance(text, str) and is_unambiguous(text):
        return text
    size = {key: region[key] for key in ("original_width", "original_height") if key in region}
    return {**value, **size}


def _simplify(value: Any) -> Any:
    """Return the id of an annotator that is stored as an object."""
    return value.get("id") if isinstance(value, Mapping) else value
