"""Declare the parameters of a model, and check the values that `--with NAME=VALUE` gives them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from lsml_cli.errors import UsageError
from lsml_cli.models.spec import Json

Kind = Literal["any", "bool", "int", "float", "str", "list", "object"]

_KIND_NAMES: dict[Kind, str] = {
    "any": "any JSON value",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "list": "a list",
    "object": "an object",
}
_KIND_OF_TYPE: dict[type, Kind] = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    list: "list",
    tuple: "list",
    dict: "object",
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model: its default, what it is for, and which values it takes.

    `Model.params` holds these by name. A value that is not allowed is a usage error before any task is read.

    Args:
        default: The value where `--with` gives none.
        help: One line about what it does, shown by `lsml models NAME`.
        kind: The JSON type; taken from `default` where it is not given. A `default` of None means "float" with a range,
            "any" without one.
        minimum: The smallest number that is allowed.
        above: A number that the value has to be greater than.
        maximum: The largest number that is allowed.
        choices: The only values that are allowed.
        nullable: Whether null is allowed; it always is where `default` is None.
        check: A further test of a value that has the right type and range.
        expected: What an error says that the value must be, instead of what follows from the fields above.

    Example:
        class Keywords(Model):
            params = {"words": Parameter(3, "words to look at", minimum=1), "language": "en"}
    """

    default: Json = None
    help: str = ""
    kind: Kind | None = None
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    choices: Sequence[Json] = ()
    nullable: bool = False
    check: Callable[[Any], bool] | None = None
    expected: str | None = None

    @property
    def has_range(self) -> bool:
        """Tell whether the value is bounded by `minimum`, `above` or `maximum`."""
        return not (self.minimum is None and self.above is None and self.maximum is None)

    @property
    def value_kind(self) -> Kind:
        """Return the JSON type of the values other than null."""
        if self.kind is not None:
            return self.kind
        if self.default is None and self.has_range:
            return "float"
        return _KIND_OF_TYPE.get(type(self.default), "any")

    def accepts(self, value: Json) -> bool:
        """Tell whether `value` is allowed."""
        if value is None and self._allows_null:
            return True
        if self.choices:
            return any(_is_same_scalar(value, choice) for choice in self.choices)
        return self._has_kind(value) and self._is_in_range(value) and (self.check is None or self.check(value))

    def describe(self) -> str:
        """Describe the allowed values: "a whole number from 1 to 5, or null"."""
        if self.expected is not None:
            return self.expected
        if self.choices:
            *others, last = [_to_json(choice) for choice in (*self.choices, *([None] if self._allows_null else []))]
            return f"{', '.join(others)} or {last}" if others else last
        text = _KIND_NAMES[self.value_kind] + self._describe_range()
        return f"{text}, or null" if self._allows_null and self.value_kind != "any" else text

    @property
    def _allows_null(self) -> bool:
        return self.nullable or self.default is None

    def _has_kind(self, value: Json) -> bool:
        match self.value_kind:
            case "bool":
                return isinstance(value, bool)
            case "int":
                return isinstance(value, int) and not isinstance(value, bool)
            case "float":
                return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            case "str":
                return isinstance(value, str)
            case "list":
                return isinstance(value, list | tuple)
            case "object":
                return isinstance(value, dict)
            case _:
                return True

    def _is_in_range(self, value: Any) -> bool:
        return not self.has_range or (
            _is_number(value)
            and (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
        )

    def _describe_range(self) -> str:
        lower = ""
        if self.minimum is not None:
            lower = f" from {_to_json(self.minimum)}"
        elif self.above is not None:
            lower = f" above {_to_json(self.above)}"
        if self.maximum is None:
            return lower
        if self.minimum is not None:
            return f"{lower} to {_to_json(self.maximum)}"
        return f"{lower} and at most {_to_json(self.maximum)}" if lower else f" of at most {_to_json(self.maximum)}"


def require_valid(name: str, parameter: Parameter, value: Json) -> None:
    """Check one value of a parameter.

    Raises:
        UsageError: The value has another type or is out of range; the message says what it must be.
    """
    if parameter.accepts(value):
        return
    hint = None
    if parameter.value_kind == "str" and not isinstance(value, str) and not parameter.choices:
        quoted = shlex.quote(_to_json(_to_json(value)))
        hint = f"A text that looks like JSON needs quotes: --with {name}={quoted}"
    raise UsageError(f"{name} must be {parameter.describe()}, not {value!r}.", hint)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_same_scalar(value: Json, choice: Json) -> bool:
    """Compare as JSON does: 1 equals 1.0, but true is not 1."""
    return value == choice and isinstance(value, bool) == isinstance(choice, bool)


def _to_json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return repr(value)
