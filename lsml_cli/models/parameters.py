"""Declare the parameters of a model, and check the values that `--with NAME=VALUE` gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from lsml_cli.errors import UsageError
from lsml_cli.models.spec import Json

Kind = Literal["any", "bool", "int", "float", "str", "list", "object"]

_NAMES: dict[str, str] = {
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

    Args:
        default: The value where `--with` gives none.
        help: One line about what it does, shown by `lsml models`.
        kind: The JSON type; taken from `default` where it is not given, and "any" for a default of None.
        minimum: The smallest number that is allowed.
        above: A number that the value has to be greater than.
        maximum: The largest number that is allowed.
        choices: The only values that are allowed.
        nullable: Whether null is allowed; it is where `default` is None.
        check: A further test of a value that has the right type.
        expected: What to say that the value must be, instead of what follows from the fields above.

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

    def accepts(self, value: Json) -> bool:
        """Tell whether `value` is allowed."""
        if value is None and (self.nullable or self.default is None):
            return True
        if self.choices:
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        return self._has_kind(value) and self._is_in_range(value) and (self.check is None or self.check(value))

    def describe(self) -> str:
        """Say in words which values are allowed: "a whole number from 1 to 5, or null"."""
        if self.expected is not None:
            return self.expected
        if self.choices:
            words = [f'"{choice}"' if isinstance(choice, str) else _to_json(choice) for choice in self.choices]
            text = ", ".join(words[:-1]) + (" or " if words[:-1] else "") + words[-1]
        else:
            text = _NAMES[self._kind]
            if self.above is not None:
                text += f" above {self.above:g}"
            if self.minimum is not None:
                text += f" from {self.minimum:g}"
            if self.maximum is not None:
                text += f" to {self.maximum:g}"
        may_be_null = (self.nullable or self.default is None) and self._kind != "any"
        return f"{text}, or null" if may_be_null else text

    @property
    def _kind(self) -> Kind:
        return self.kind or _KIND_OF_TYPE.get(type(self.default), "any")

    def _has_kind(self, value: Json) -> bool:
        match self._kind:
            case "bool":
                return isinstance(value, bool)
            case "int":
                return isinstance(value, int) and not isinstance(value, bool)
            case "float":
                return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
            case "str":
                return isinstance(value, str)
            case "list":
                return isinstance(value, list | tuple)
            case "object":
                return isinstance(value, dict)
            case _:
                return True

    def _is_in_range(self, value: Any) -> bool:
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
        )


def require_valid(name: str, parameter: Parameter, value: Json) -> None:
    """Check one value of a parameter.

    Raises:
        UsageError: The value has another type or is out of range; the sentence says what it must be.
    """
    if parameter.accepts(value):
        return
    hint = None
    if parameter._kind == "str" and not isinstance(value, str):
        hint = f"""A text that looks like JSON needs quotes: --with {name}='"{value}"'"""
    raise UsageError(f"{name} must be {parameter.describe()}, not {value!r}.", hint)


def _to_json(value: Json) -> str:
    return orjson.dumps(value).decode()
