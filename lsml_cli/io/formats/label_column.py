"""Tables with a column of labels: each row becomes a task with choices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeGuard

from lsml_cli.errors import InputError, UsageError, format_list, sort_by_similarity
from lsml_cli.io.formats.config_binding import ConfigBinding, Need, bind_config
from lsml_cli.io.formats.dataset_source import DatasetSource, Item, ReadOptions, RegionFactory
from lsml_cli.io.image_paths import is_image
from lsml_cli.schema.data_key import MEDIA_TAGS
from lsml_cli.schema.json_codec import loads
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Region
from lsml_cli.schema.value_checks import is_number

LABEL_COLUMN = "label-column"
SCORE_COLUMN = "score-column"

LABEL_SEPARATOR = ";"
MAX_CLASSES = 1_000  # more different values than that are no classes, unless a label config has them
_SAMPLED_ROWS = 100  # that tell what a column holds
_USUAL_COLUMNS = ("text", "image")


class TableRow(NamedTuple):
    """A row of a table.

    Attributes:
        location: Where it stands, for messages: "line 12".
        values: By column.
        share: Which part (0..1) of the table ends here.
        problem: Why there is no row here, "" if there is one.
    """

    location: str
    values: Mapping[str, Any]
    share: float = 0.0
    problem: str = ""


class TableSource(DatasetSource):
    """Reads a table, a task for each row. A subclass implements `_iter_rows`.

    The labels of a row are one cell of `--label-column`: one label, several with semicolons, or a JSON list. An empty
    cell is a task without an annotation. Every other column is data of the task.

    The table is read twice: its classes are known before the first task. Where labels do not count, it has no label
    config, and every column is data.

    Attributes:
        title: The format, for messages.
    """

    title: str

    def __init__(self, path: str, options: ReadOptions) -> None:
        super().__init__(path, options)
        if self.path.is_dir():
            raise UsageError(f"{path} is a folder, and {self.title} is a file.", "Name the file in it.")
        settings = options.columns or {}
        self._label_column = settings.get(LABEL_COLUMN)
        self._score_column = settings.get(SCORE_COLUMN)
        if self._score_column is not None and options.content != "predictions":
            raise UsageError("--score-column is about predictions.", "Add --what predictions, or leave it out.")
        columns, sample = self._read_sample()
        self._binding: ConfigBinding | None = None
        if not options.needs_labels:
            return
        self._require_columns(columns)
        self._given_labels = _control_labels(options.config)
        data_key, object_tag = self._choose_data(columns, sample)
        labels, is_multiple = self._collect_labels()
        if not labels:
            raise UsageError(f"The column {self._label_column} of {path} is empty: there are no labels.")
        need = Need("Choices", tuple(labels), object_tag, {"choice": "multiple" if is_multiple else "single"})
        self._binding = binding = bind_config([need], self._narrow_config(), data_key, title=path)
        self.label_config = options.config or binding.config
        self._target = binding.targets["Choices"]
        if binding.data_key not in columns:
            shown = self._target.object
            raise UsageError(f"{path} has no column {binding.data_key}, which {shown} shows.", _list(columns))

    @abstractmethod
    def _iter_rows(self) -> Iterator[TableRow]:
        """Yield the rows. What is wrong with one costs this one only, see `TableRow.problem`."""

    def _read_sample(self) -> tuple[list[str], list[Mapping[str, Any]]]:
        """Return the columns, and the first rows."""
        sample = [row.values for row in islice(self._iter_rows(), _SAMPLED_ROWS) if not row.problem]
        if not sample:
            raise InputError(f"No row of {self.name} can be read.", "Look at its first lines.")
        return list(sample[0]), sample

    def _require_columns(self, columns: Sequence[str]) -> None:
        if self._label_column is None:
            raise UsageError(
                "Which column has the labels?",
                f"Name it with --label-column. {_list(columns)} An export of Label Studio is read without --from.",
            )
        for column in (self._label_column, self._score_column):
            if column is not None and column not in columns:
                raise UsageError(f"There is no column {column}.", _list(sort_by_similarity(column, columns)))

    def _choose_data(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> tuple[str | None, str]:
        """Return the key that the label config is made or checked with, and the tag of the object.

        Raises:
            UsageError: Several columns could be what is labelled.
        """
        config = self._narrow_config()
        if config is not None:
            pairs = config.find_pairs("Choices", [obj.tag for obj in config.objects.values()])
            fitting = [obj for _, obj in pairs if obj.data_key in columns] or [obj for _, obj in pairs]
            return self.options.data_key, fitting[0].tag if fitting else "Text"
        key = self.options.data_key
        if key is None:
            others = [name for name in columns if name not in (self._label_column, self._score_column)]
            usual = [name for name in _USUAL_COLUMNS if name in others]
            if len(others) != 1 and len(usual) != 1:
                raise UsageError(
                    "Which column has the text or image?",
                    f"Give a label config that shows it, or name it with --data-key of lsml convert. {_list(others)}",
                )
            key = (usual if len(others) != 1 else others)[0]
        elif key not in columns:
            raise UsageError(f"There is no column {key}.", _list(sort_by_similarity(key, columns)))
        values = [value for row in sample if (value := row.get(key))]
        has_images = bool(values) and all(isinstance(value, str) and is_image(value) for value in values)
        return key, "Image" if has_images else "Text"

    def _narrow_config(self) -> LabelConfig | None:
        """Return the label config with the control of the column's name alone, if it has one; else all of it."""
        config = self.options.config
        control = config.controls.get(self._label_column or "") if config else None
        if config is None or control is None or control.type != "choices":
            return config
        return LabelConfig(config.xml, {control.name: control}, config.objects)

    def _collect_labels(self) -> tuple[list[str], bool]:
        """Return the labels in their alphabetical order, and whether some row has several."""
        found: set[str] = set()
        unknown = 0  # labels that the label config does not have
        is_multiple = False
        for row in self._iter_rows():
            try:
                labels = self._split(row)
            except ValueError:  # costs its row when that is read
                continue
            is_multiple |= labels is not None and len(labels) != 1
            new = {label for label in labels or () if label not in found}
            unknown += sum(label not in self._given_labels for label in new)
            found |= new
            if unknown > MAX_CLASSES:
                raise UsageError(
                    f"The column {self._label_column} has more than {MAX_CLASSES:,} different labels.",
                    "Name another column, or give a label config that has all of them.",
                )
        return sorted(found), is_multiple

    def _split(self, row: TableRow) -> list[str] | None:
        if row.problem:
            return None
        return split_labels(row.values.get(self._label_column or ""), self._given_labels)

    def _iter_items(self) -> Iterator[Item]:
        for index, row in enumerate(self._iter_rows()):
            if row.problem:
                yield Item(row.location, {}, problem=row.problem, share=row.share)
                continue
            try:
                regions = self._regions(index, row) if self._binding else None
                data = self._data(row)
            except ValueError as error:
                yield Item(row.location, {}, problem=str(error), share=row.share)
                continue
            yield Item(row.location, data, regions, share=row.share)

    def _data(self, row: TableRow) -> dict[str, Any]:
        data = {key: value for key, value in row.values.items() if key not in (self._label_column, self._score_column)}
        if self._binding is not None and self._target.object.tag.lower() in MEDIA_TAGS:
            key = self._binding.data_key
            if _is_relative_path(value := data.get(key)):
                data[key] = self.media_value(value)
        return data

    def _regions(self, index: int, row: TableRow) -> list[Region] | None:
        labels = self._split(row)
        if not labels:
            return None if labels is None else []
        names = list(dict.fromkeys(self._target.label_names[label] for label in labels))
        control = self._target.control
        if len(names) > 1 and control.is_single_choice:
            raise ValueError(f"the row has {len(names)} labels, and {control} takes one: {format_list(names)}")
        score = self._parse_score(row)
        factory = RegionFactory(index)
        return [factory.make(control, {"choices": names}, score=score, to_name=self._target.object.name)]

    def _parse_score(self, row: TableRow) -> float | None:
        if self._score_column is None:
            return None
        cell = row.values.get(self._score_column)
        if cell is None or cell == "":
            return None
        try:
            score = float(cell)
        except (TypeError, ValueError):
            score = -1.0
        if not (is_number(score) and 0 <= score <= 1):
            raise ValueError(f"the score is {cell!r}, not a number in 0..1")
        return score


def split_labels(cell: Any, known: Mapping[str, Any] | None = None) -> list[str] | None:
    """Return the labels of a cell; None if it is empty, an empty list for the JSON list that is.

    Args:
        cell: A text, a list, or a number.
        known: Labels that may hold semicolons or brackets themselves.

    Raises:
        ValueError: It holds something else.
    """
    if isinstance(cell, bool | int | float):
        cell = str(cell)
    if isinstance(cell, str) and not (known and cell in known):
        cell = _parse_list(cell.strip())
    if cell is None or cell == "":
        return None
    if isinstance(cell, Mapping):  # as Label Studio exports several choices
        cell = cell.get("choices")
    labels = [cell] if isinstance(cell, str) else cell
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError("the labels are neither a text nor a list of texts")
    return list(dict.fromkeys(labels))


def _parse_list(text: str) -> Any:
    if text.startswith(("[", "{")):
        try:
            return loads(text.encode())
        except ValueError:  # a label may begin with a bracket
            pass
    if LABEL_SEPARATOR not in text:
        return text
    return [label for part in text.split(LABEL_SEPARATOR) if (label := part.strip())] or None


def _control_labels(config: LabelConfig | None) -> dict[str, None]:
    controls = config.controls.values() if config else ()
    return {name: None for control in controls if control.type == "choices" for name in control.label_names}


def _is_relative_path(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value) and not value.startswith(("/", "data:")) and "://" not in value


def _list(columns: Sequence[str]) -> str:
    return f"The columns are: {format_list(columns)}."
