"""Labelled spans of the texts of a task, as writers of text formats want them."""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lsml_cli.errors import UsageError, format_list
from lsml_cli.io.formats.dataset_writer import Example, Region, WriteOptions
from lsml_cli.schema import predictions
from lsml_cli.schema.controls import Object
from lsml_cli.schema.data_checks import find_data_problem
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.value_checks import is_integer, is_number

SPAN_TYPES = frozenset({"labels", "hypertextlabels", "paragraphlabels"})
TEXT_TAGS = frozenset({"text", "paragraphs"})

NO_SPAN = "not a span in a text"
NO_LABEL = "a span without a label"
INVALID_SPAN = "a span that does not fit its text"
HTML_SPAN = "a span in HTML, whose place in the plain text is not known"
BLANK_SPAN = "a span of white space alone"
OVERLAP = "a span, or a further label of one, that overlaps another of at least its length"

_TURN_SEPARATOR = "\n"  # between the turns of a dialogue in its text
_OTHER_KEYS = frozenset({"x", "points", "rle", "channel"})  # of <Labels> that are about an image or a sound
_TEXT_OBJECT = Object("text", "Text", "$text")


@dataclass(frozen=True, slots=True)
class TextSpan:
    """A span with one label.

    Attributes:
        start, end: In code points, as slices in Python.
        label: Its name in the label config.
        score: Probability in 0..1.
        control: Name of the control.
    """

    start: int
    end: int
    label: str
    score: float | None = None
    control: str = ""


class LabelledText(NamedTuple):
    """A text of a task.

    Attributes:
        key: Of the task's data that holds it; None for a literal value of the label config.
        text: The text; the turns of <Paragraphs> are its lines.
        controls: Names of the controls that are about it; only those with spans without a label config.
        spans: Sorted by their starts.
    """

    key: str | None
    text: str
    controls: Sequence[str]
    spans: Sequence[TextSpan]


class TextSet:
    """The texts of the tasks.

    Args:
        options: Of the data set.

    Attributes:
        controls: Names of the controls that give labels to spans; empty without a label config.

    Raises:
        UsageError: The label config has no control for spans in a text.
    """

    def __init__(self, options: WriteOptions) -> None:
        self._config = options.config
        self._data_key = options.data_key
        self._objects = _find_objects(options.config, options.data_key) if options.config else {}
        self.controls = list(dict.fromkeys(name for names in self._objects.values() for name in names))

    def read(self, example: Example, left_out: Counter[str]) -> list[LabelledText]:
        """Return the texts of a task: one for each object, the only one without a label config.

        Args:
            example: The task with its regions.
            left_out: Counts regions that are no spans in these texts, by reason.

        Raises:
            ValueError: A text is missing.
        """
        data = example.task.data
        if self._config is None:
            key = self._data_key or _guess_key(data)
            if key not in data:
                raise ValueError(f'the task has no "{key}", which --data-key names')
            spans = self._collect(example.regions, _Text(data[key], {}), left_out)
            return [LabelledText(key, _Text(data[key], {}).text, list(dict.fromkeys(s.control for s in spans)), spans)]
        texts = {obj: _read_object(obj, data) for obj in self._objects}
        regions: dict[Object, list[Region]] = {obj: [] for obj in texts}
        for region in example.regions:
            control = self._config.controls[str(region.get("from_name"))]
            name = region.get("to_name", control.to_names[0])
            obj = next((obj for obj in texts if obj.name == name and control.name in self._objects[obj]), None)
            if obj is None:
                is_html = control.type in SPAN_TYPES and self._config.objects[control.to_names[0]].tag == "HyperText"
                left_out[HTML_SPAN if is_html else NO_SPAN] += 1
            else:
                regions[obj].append(region)
        return [
            LabelledText(obj.data_key, text.text, self._objects[obj], self._collect(regions[obj], text, left_out))
            for obj, text in texts.items()
        ]

    def _collect(self, regions: Iterable[Region], text: _Text, left_out: Counter[str]) -> list[TextSpan]:
        spans: list[TextSpan] = []
        for region in regions:
            found = text.locate(region)
            if isinstance(found, str):
                left_out[found] += 1
                continue
            labels = list(_labels(region, self._config))
            if not labels:
                left_out[NO_LABEL] += 1
            score = region.get("score")
            start, end = found
            control = str(region.get("from_name", ""))
            spans += [TextSpan(start, end, label, score if is_number(score) else None, control) for label in labels]
        return sorted(spans, key=lambda span: (span.start, span.end))


class _Text:
    """A text, or the turns of a dialogue, and what regions mark in it.

    Args:
        value: What the object shows.
        attrs: Attributes of the object.

    Raises:
        ValueError: It is no text.
    """

    def __init__(self, value: object, attrs: Mapping[str, str]) -> None:
        self._turns: list[str] | None = None
        self._value = value
        if isinstance(value, str):
            self.text = value
            return
        text_key = attrs.get("textKey") or "text"
        turns = [turn.get(text_key) if isinstance(turn, Mapping) else None for turn in _as_list(value)]
        self._turns = [turn for turn in turns if isinstance(turn, str)]
        if not turns or len(self._turns) < len(turns):
            raise ValueError("the text of the task is neither a text nor a list of turns with a text each")
        self.text = _TURN_SEPARATOR.join(self._turns)
        self._object = Object("text", "Paragraphs", "$text", attrs)

    def locate(self, region: Region) -> tuple[int, int] | str:
        """Return start and end of a region in the text, else why it is none."""
        value = region.get("value")
        if region.get("type") not in SPAN_TYPES or not isinstance(value, Mapping):
            return NO_SPAN
        if _OTHER_KEYS & value.keys() or not {"start", "end"} <= value.keys():
            return NO_SPAN
        if isinstance(value["start"], str) and not value["start"].isdecimal():
            return HTML_SPAN
        checked = predictions.Region("", "", "", str(region["type"]), value)
        obj = _TEXT_OBJECT if self._turns is None else self._object
        if find_data_problem(checked, obj, {"text": self._value}) is not None:
            return INVALID_SPAN
        found = _offsets(value) if self._turns is None else _turn_offsets(value, self._turns)
        return found if found is not None and found[0] < found[1] else INVALID_SPAN


def trim_spans(text: str, spans: Iterable[TextSpan], left_out: Counter[str]) -> list[TextSpan]:
    """Return the spans without white space at their ends, which is in no token; count those of nothing else."""
    trimmed = []
    for span in spans:
        marked = text[span.start : span.end]
        start = span.start + len(marked) - len(marked.lstrip())
        end = start + len(marked.strip())
        if start == end:
            left_out[BLANK_SPAN] += 1
        else:
            trimmed.append(replace(span, start=start, end=end))
    return trimmed


def select_longest(spans: Iterable[TextSpan]) -> list[TextSpan]:
    """Return spans that do not overlap, sorted: longer ones are preferred, then earlier ones."""
    selected: list[TextSpan] = []
    for span in sorted(spans, key=lambda span: (span.start - span.end, span.start)):
        position = bisect(selected, span.start, key=lambda other: other.start)
        if position and selected[position - 1].end > span.start:
            continue
        if position < len(selected) and selected[position].start < span.end:
            continue
        selected.insert(position, span)
    return selected


def _find_objects(config: LabelConfig, data_key: str | None) -> dict[Object, list[str]]:
    """Return the objects that are texts, each with the names of the controls that give labels to its spans."""
    found: dict[Object, list[str]] = {}
    for control in config.controls.values():
        if control.type in SPAN_TYPES and not control.per_region:
            for obj in (config.objects[name] for name in control.to_names):
                if obj.tag.lower() in TEXT_TAGS and data_key in (None, obj.data_key):
                    found.setdefault(obj, []).append(control.name)
    if found:
        return found
    known = format_list(map(str, config.controls.values())) or "no control at all"
    about = f' with value="${data_key}"' if data_key else ""
    raise UsageError(f"The label config has no <Labels> about a <Text> or <Paragraphs>{about}: it has {known}.")


def _read_object(obj: Object, data: Mapping[str, Any]) -> _Text:
    if obj.attrs.get("valueType", "").lower() == "url" or obj.attrs.get("encoding", "none").lower() != "none":
        raise ValueError(f"the text of {obj} is not in the task itself, but at an address, or encoded")
    return _Text(obj.read(data), obj.attrs)


def _guess_key(data: Mapping[str, Any]) -> str:
    """Return the only key of a task's data that may hold a text."""
    keys = [key for key, value in data.items() if isinstance(value, str)]
    keys = keys or [key for key, value in data.items() if isinstance(value, list)]
    if len(keys) != 1 and "text" in keys:
        return "text"
    if len(keys) != 1:
        raise ValueError("which value of the task is its text? Name the label config with --label-config")
    return keys[0]


def _labels(region: Region, config: LabelConfig | None) -> Iterator[str]:
    value, region_type = region["value"], region["type"]
    control = config.controls.get(str(region.get("from_name"))) if config else None
    names = control.label_names if control else {}
    labels = value.get(region_type, value.get("labels"))
    for label in dict.fromkeys([labels] if isinstance(labels, str) else filter(_is_text, _as_list(labels))):
        yield names.get(label, label)


def _offsets(value: Mapping[str, Any]) -> tuple[int, int] | None:
    start, end = value["start"], value["end"]
    return (int(start), int(end)) if is_number(start) and is_number(end) else None


def _turn_offsets(value: Mapping[str, Any], turns: Sequence[str]) -> tuple[int, int] | None:
    """Return the offsets in the lines that turns become; those in a turn count UTF-16 code units."""
    positions = []
    for index, offset in ((value["start"], value.get("startOffset")), (value["end"], value.get("endOffset"))):
        if not (is_integer(offset) and str(index).isdecimal() and int(index) < len(turns)):
            return None
        units = turns[int(index)].encode("utf-16-le")[: 2 * offset]
        try:
            before = units.decode("utf-16-le")
        except UnicodeDecodeError:  # it cuts a character in two
            return None
        positions.append(sum(len(turn) + len(_TURN_SEPARATOR) for turn in turns[: int(index)]) + len(before))
    return positions[0], positions[1]


def _as_list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _is_text(value: object) -> bool:
    return isinstance(value, str)
