"""Parse and write JSON: orjson wherever it can, Python's own module for the numbers and depths that it cannot.

The JSON of a task may hold what no other program could store: a float beyond the range of floats, thousands of nested
brackets. `loads` refuses that with a ValueError whose message is a sentence; whatever it accepts, `dumps` can write.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import orjson

MAX_DEPTH = 500  # nested brackets; Python's parser, and with it Label Studio, gives up at a little under 1,000
MAX_INTEGER_DIGITS = 4300  # Python's own limit: the time to convert an integer grows with the square of its digits

TOO_DEEP = f"not usable: brackets are nested more than {MAX_DEPTH} deep"
LONE_SURROGATE = "not JSON: it holds one half of a surrogate pair (\\ud800 to \\udfff), which is no Unicode text"

_LARGE_INTEGER = re.compile(rb"(?:[\[:,\s]|\A)-?\d{19,}\s*(?:[,}\]]|\Z)")
_BEYOND_FLOATS = re.compile(rb"\d{300}|[eE]\+?\d{3}")  # may be what orjson rejects although it is JSON
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # one that is never closed is passed over once
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
# How orjson writes the exponent of a large float, which tells where an integer may have become one.
_LARGE_FLOAT_MARK = b"e+" if b"e+" in orjson.dumps(1e300) else b"e"


def loads(body: bytes) -> Any:
    """Parse JSON. Integers beyond 64 bits become floats, as long as they are in the range of floats.

    Raises:
        ValueError: It is not JSON, or not usable; the message is a sentence.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if _BEYOND_FLOATS.search(body):
            return loads_exactly(body)
        raise ValueError(_describe_error(body, error)) from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        _require_depth(body)
    return value


def loads_exactly(body: bytes) -> Any:
    """Parse JSON like `loads`, but keep integers of any size; several times slower.

    Raises:
        ValueError: It is not JSON, or not usable; the message is a sentence.
    """
    _require_depth(body)
    try:
        value = json.loads(
            body.decode(), parse_int=_parse_int, parse_float=_parse_float, parse_constant=_reject_constant
        )
        if _SURROGATE_ESCAPE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(_describe_error(body, error)) from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except UnicodeDecodeError:
        raise ValueError(_NOT_UTF8) from None
    except UnicodeEncodeError:
        raise ValueError(LONE_SURROGATE) from None
    return value


def dumps(value: Any, *, sort_keys: bool = False) -> bytes:
    """Return a value, numpy numbers included, as JSON on one line.

    Raises:
        TypeError, ValueError: It cannot be written as JSON.
    """
    options = orjson.OPT_SERIALIZE_NUMPY | (orjson.OPT_SORT_KEYS if sort_keys else 0)
    try:
        return orjson.dumps(value, option=options)
    except TypeError:  # integers beyond 64 bits, deep nesting, or no JSON at all
        text = json.dumps(
            value,
            ensure_ascii=False,
            allow_nan=False,
            separators=(",", ":"),
            sort_keys=sort_keys,
            default=lambda part: orjson.loads(orjson.dumps(part, option=options)),
        )
        return text.encode()


def has_rounded_integers(body: bytes, written: bytes) -> bool:
    """Return whether `loads` may have turned integers of `body` into floats, given what was written after it."""
    return _LARGE_FLOAT_MARK in written and has_large_integers(body)


def has_large_integers(body: bytes) -> bool:
    """Return whether JSON may hold integers beyond 64 bits, which `loads` reads as floats."""
    return _LARGE_INTEGER.search(body) is not None


def _require_depth(body: bytes) -> None:
    """Raise ValueError if brackets are nested deeper than `MAX_DEPTH`; those in strings do not count."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _STRING.sub(b"", body).translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(TOO_DEEP)


class _UnusableNumber(ValueError):
    """A number that JSON allows, but nothing here can hold; the message is a sentence."""


def _parse_int(text: str) -> int:
    digits = len(text.lstrip("-"))
    if digits > MAX_INTEGER_DIGITS:
        raise _UnusableNumber(
            f"not usable: it holds a number of {digits:,} digits, and {MAX_INTEGER_DIGITS:,} is the most"
        )
    return int(text)


def _parse_float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        shown = text if len(text) <= 30 else f"{text[:30]}..."
        raise _UnusableNumber(f"not usable: the number {shown} is beyond the range of floats, which ends at 1.8e308")
    return number


def _reject_constant(name: str) -> NoReturn:
    raise _UnusableNumber(_NAN)


_NAN = "not JSON: NaN and Infinity are no JSON numbers, write null instead"
_NOT_UTF8 = "not UTF-8 text: convert the file first, for example with iconv -f LATIN1 -t UTF-8"


def _describe_error(body: bytes, error: json.JSONDecodeError) -> str:
    """Return an error of a parser as a sentence, a better one for what occurs in exports."""
    text = str(error).split(":")[0]
    if "surrogate" in text and b"\\u" in body:
        return LONE_SURROGATE
    if "UTF-8" in text or "surrogate" in text:
        return _NOT_UTF8
    if "depth" in text or "recursion" in text:
        return TOO_DEEP
    if error.doc.startswith(("NaN", "Infinity"), error.pos):
        return _NAN
    return f"not JSON: {text}, {error.pos:,} characters into the task"
