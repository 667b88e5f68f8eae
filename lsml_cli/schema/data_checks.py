"""Check regions against the data of their task: a span lies inside of its text, a range inside of its media.

The unit of an offset is that of Label Studio's editor, which differs between objects:

    <Text>        code points, as in Python: "😀 ok"[2:4] is "ok". A line break is one of them.
    <HyperText>   globalOffsets: code points of the visible text. XPaths, and offsets in them, are not resolved here.
    <Paragraphs>  UTF-16 code units of the text of one turn, in which "😀" counts as two.
    <Audio>       seconds, <TimeSeries> the unit of its time column, <Video> frames from 1.

What a task does not hold itself is not checked: texts behind addresses, encoded ones, the length of media files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lsml_cli.schema.controls import Object
from lsml_cli.schema.predictions import Region
from lsml_cli.schema.value_checks import is_integer, is_number

LENGTH_TOLERANCE = 0.05  # seconds that a range may reach beyond the end of a sound, whose length decoders round

_MAX_QUOTED = 40  # characters of a text in a message
_POSITION_KEYS = frozenset({"start", "globalOffsets"})


def find_data_problem(region: Region, obj: Object, data: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a region, given the data of its task; None if nothing is.

    Args:
        region: A region that obeys the rules of its control.
        obj: The object that it is about.
        data: The data of the task.
    """
    if _POSITION_KEYS.isdisjoint(region.value):
        return None
    check = _CHECKS.get(obj.tag.lower())
    return check(region, obj, data) if check else None


def _check_text_span(region: Region, obj: Object, data: Mapping[str, Any]) -> str | None:
    value = region.value
    start, end = value.get("start"), value.get("end")
    if not (is_number(start) and is_number(end)) or (text := _read_text(obj, data)) is None:
        return None
    for name, position in (("start", start), ("end", end)):
        if position != int(position):
            return f"{name} is {position!r}, not a whole number of characters"
        if not 0 <= position <= len(text):
            return f"{name} is {position!r}, but the text of {obj} has {len(text):,} characters"
    found, stated = text[int(start) : int(end)], value.get("text")
    if not isinstance(stated, str) or region.type == "textarea":  # the text of a <TextArea> is its answer
        return None
    if stated == found or _escape_line_breaks(stated) == _escape_line_breaks(found):
        return None
    is_utf16 = stated == _slice_utf16(text, int(start), int(end))
    unit = " (offsets count code points, as Python does, not UTF-16 code units)" if is_utf16 else ""
    return f"text is {_quote(stated)}, but start and end mark {_quote(found)}{unit}"


def _escape_line_breaks(text: str) -> str:
    """Write line breaks as the editor does in the text of a span: as a backslash and an n."""
    return text.replace("\r", "\\n").replace("\n", "\\n")


def _check_hypertext_span(region: Region, obj: Object, data: Mapping[str, Any]) -> str | None:
    value, markup = region.value, _read_text(obj, data)
    if value.get("start") == value.get("end") and isinstance(value.get("start"), str):
        first, last = value.get("startOffset"), value.get("endOffset")
        if is_integer(first) and is_integer(last) and first > last:
            return f"startOffset is {first!r}, which is after endOffset, {last!r}, in the same element"
    offsets = value.get("globalOffsets")
    if not isinstance(offsets, Mapping):
        return None
    start, end = offsets.get("start"), offsets.get("end")
    if not (is_number(start) and is_number(end)):
        return None
    if start > end:
        return f"globalOffsets start at {start!r}, which is after their end, {end!r}"
    if markup is not None and end > len(markup):  # the visible text is never longer than its markup
        return f"globalOffsets end at {end!r}, but {obj} has {len(markup):,} characters, markup included"
    return None


def _check_paragraph_span(region: Region, obj: Object, data: Mapping[str, Any]) -> str | None:
    value = region.value
    turns = _read_turns(obj, data)
    first, last = _parse_index(value.get("start")), _parse_index(value.get("end"))
    if turns is None or first is None or last is None:
        return None
    if first > last:
        return f"start is turn {first}, which is after the end, turn {last}"
    if last >= len(turns):
        return f"end is turn {last}, but {obj} has {len(turns):,}, counted from 0"
    start, end = value.get("startOffset"), value.get("endOffset")
    if not (is_integer(start) and is_integer(end)):
        return None
    for name, offset, turn in (("startOffset", start, first), ("endOffset", end, last)):
        if not 0 <= offset <= (length := _utf16_length(turns[turn])):
            return f"{name} is {offset!r}, but the text of turn {turn} of {obj} has {length:,} UTF-16 code units"
    if first == last and start > end:
        return f"startOffset is {start!r}, which is after endOffset, {end!r}, in the same turn"
    stated, text = value.get("text"), turns[first]
    if first != last or not isinstance(stated, str) or region.type == "textarea" or not text.isprintable():
        return None  # the editor shows line breaks in its own way
    found = _slice_utf16(text, start, end)
    if stated == found:
        return None
    unit = " (offsets count UTF-16 code units, of which an emoji has two)" if stated == text[start:end] else ""
    return f"text is {_quote(stated)}, but startOffset and endOffset mark {_quote(found or '')}{unit}"


def _check_sound_range(region: Region, obj: Object, data: Mapping[str, Any]) -> str | None:
    length, end = region.extra.get("original_length"), region.value.get("end")
    if is_number(length) and is_number(end) and end > length + LENGTH_TOLERANCE:
        return f"end is {end!r}, but original_length says that the sound has {length!r} seconds"
    return None


def _check_series_range(region: Region, obj: Object, data: Mapping[str, Any]) -> str | None:
    """Check that a range lies inside of the times of a series, if the task holds it itself."""
    times = _read_times(obj, data)
    if times is None:
        return None
    for name in ("start", "end"):
        position = region.value.get(name)
        if is_number(position) and not times[0] <= position <= times[1]:
            return f"{name} is {position!r}, but the times of {obj} lie in {times[0]!r}..{times[1]!r}"
    return None


_CHECKS: Mapping[str, Callable[[Region, Object, Mapping[str, Any]], str | None]] = {
    "text": _check_text_span,
    "hypertext": _check_hypertext_span,
    "paragraphs": _check_paragraph_span,
    "audio": _check_sound_range,
    "audioplus": _check_sound_range,
    "timeseries": _check_series_range,
}


# ---- the data of a task


def _read_value(obj: Object, data: Mapping[str, Any]) -> Any:
    """Return what an object shows if the task holds it as it stands; None otherwise."""
    is_address = obj.attrs.get("valueType", "").lower() == "url"
    is_encoded = obj.attrs.get("encoding", "none").lower() != "none"
    if is_address or is_encoded or (obj.data_key is None and "$" in obj.value):
        return None
    try:
        return obj.read(data)
    except ValueError:  # said elsewhere
        return None


def _read_text(obj: Object, data: Mapping[str, Any]) -> str | None:
    value = _read_value(obj, data)
    return value if isinstance(value, str) else None


def _read_turns(obj: Object, data: Mapping[str, Any]) -> list[str] | None:
    turns = _read_value(obj, data)
    key = obj.attrs.get("textKey") or "text"
    if not isinstance(turns, Sequence) or not all(isinstance(turn, Mapping) for turn in turns):
        return None
    texts = [turn.get(key) for turn in turns]
    return [text for text in texts if isinstance(text, str)] if all(isinstance(text, str) for text in texts) else None


def _read_times(obj: Object, data: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the first and last time of a series in the task; None if it is elsewhere, or its times are no numbers."""
    series, column = _read_value(obj, data), obj.attrs.get("timeColumn")
    times = series.get(column) if isinstance(series, Mapping) else None
    if not isinstance(times, Sequence) or not times or not is_number(times[0]) or not is_number(times[-1]):
        return None
    return min(times[0], times[-1]), max(times[0], times[-1])


def _parse_index(value: Any) -> int | None:
    """Return the index of a turn, which the editor writes as a text."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    return value if is_integer(value) else None


# ---- texts


def _utf16_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def _slice_utf16(text: str, start: int, end: int) -> str | None:
    """Return a slice by UTF-16 code units; None if it cuts a character in two."""
    if text.isascii():
        return text[start:end]
    units = text.encode("utf-16-le", "surrogatepass")[2 * start : 2 * end]
    try:
        return units.decode("utf-16-le")
    except UnicodeDecodeError:
        return None


def _quote(text: str) -> str:
    return repr(text if len(text) <= _MAX_QUOTED else text[: _MAX_QUOTED - 1] + "…")
