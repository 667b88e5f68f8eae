"""JSON_MIN: Label Studio's compact export, the results of an annotation beside the data of its task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lsml_cli.io.formats.dataset_writer import DatasetWriter, Example, Region, WriteOptions
from lsml_cli.schema.json_codec import dumps
from lsml_cli.schema.tasks import DATA_PREFIX

FILE = "tasks.json"


class JsonMinWriter(DatasetWriter):
    """Writes `tasks.json`, a row for each annotation."""

    def __init__(self, folder: Path, options: WriteOptions) -> None:
        super().__init__(folder, options)
        self._file = self.folder.create(FILE)
        self._rows = 0

    def write(self, example: Example) -> None:
        row = dumps(make_row(example))
        self._file.write((b",\n" if self._rows else b"[\n") + row)
        self._rows += 1
        self.written += len(example.regions)

    def _finish(self) -> None:
        self._file.write(b"\n]\n" if self._rows else b"[]\n")

    def _close(self) -> None:
        self._file.close()


def make_row(example: Example) -> dict[str, Any]:
    """Return the row of an example, as Label Studio exports it; a prediction has a score and a model_version."""
    results: dict[str, list[Any]] = {}
    for region in example.regions:
        if isinstance(name := region.get("from_name"), str):
            results.setdefault(name, []).append(_shorten(region))
    data = {DATA_PREFIX + key if key in results else key: value for key, value in example.task.data.items()}
    row = {**data, "id": example.task.id}
    for name, values in results.items():
        row[name] = values[0] if len(values) == 1 and not isinstance(values[0], Mapping) else values
    source = example.source
    for key, name in (("completed_by", "annotator"), ("id", "annotation_id")):
        row[name] = _simplify(source.get(key))
    kept = ("created_at", "updated_at", "lead_time", "score", "model_version")
    return row | {key: source[key] for key in kept if source.get(key) is not None}


def _shorten(region: Region) -> Any:
    """Return a value as JSON_MIN holds it: a choice by its name, a shape with the size of its image."""
    value = region.get("value")
    if not isinstance(value, Mapping):
        return value
    if region.get("type") == "choices":
        choices = value.get("choices")
        return choices[0] if isinstance(choices, list) and len(choices) == 1 else {"choices": choices}
    if region.get("type") == "textarea":
        texts = value.get("text")
        return texts[0] if isinstance(texts, list) and len(texts) == 1 else texts
    size = {key: region[key] for key in ("original_width", "original_height") if key in region}
    return {**value, **size}


def _simplify(value: Any) -> Any:
    """Return the id of an annotator that is stored as an object."""
    return value.get("id") if isinstance(value, Mapping) else value
