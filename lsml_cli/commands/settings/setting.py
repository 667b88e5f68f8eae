"""Describe an option of a command as a setting, and convert its TOML value for click."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lsml_cli.errors import UsageError

# Options about one run, or about the settings themselves: no settings.
COMMAND_LINE_ONLY = frozenset(
    {
        "config",
        "show-settings",
        "help",
        "version",
        "resume",
        "retry-failed",
        "check",
        "dry-run",
        "open",
        "promote",
        "prune",
        "delete",
    }
)

# What the metavar of an option says about its value. A file beside the data may not set an option whose metavar is in
# none of these.
PATH_METAVARS = frozenset({"FILE", "DIR", "ERRORS"})
MODEL_METAVARS = frozenset({"MODEL"})
SAFE_METAVARS = frozenset(
    {
        "TEXT",
        "NAME",
        "NAMES",
        "DATE",
        "DEVICE",
        "SHARE",
        "FRACTION",
        "N",
        "METRIC",
        "VALUE",
        "MARGIN",
        "KEY",
        "LIST",
        "SIZE",
        "FORMAT",
    }
)
# Options that a file beside the data may not set although they are choices or numbers: with `from = "paths"` the lines
# of a file may name any file of this machine, and `project` decides what is changed in Label Studio.
RESTRICTED_OPTIONS = {
    "from": "decides what is read, and from where",
    "project": "decides which project is read or changed",
    "existing": "decides what happens to existing predictions",
    "create-tasks": "decides what is sent",
    "keep-versions": "deletes predictions",
}
NUMBER_METAVARS = frozenset({"SHARE", "FRACTION", "N", "SIZE"})  # a string option that may be a number

_TYPE_NAMES: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    Path: "a path in quotes",
}


@dataclass(frozen=True)
class Option:
    """An option of a command that lsml.toml may set.

    Args:
        key: Its long spelling without the dashes: "batch-size".
        param_name: The parameter of the command's function.
        param: Click's object.
        value_types: Types that its value may have: bool, int, float, str, Path, list, or a Literal.
        metavar_words: Words of its metavar: {"FILE"}, {"KEY", "VALUE"}.
        is_table: Whether it is repeated as KEY=VALUE, and so a table in the file. PREFIX=DIR is not: a prefix may hold
            "=", so it is a list of strings in the file too.
    """

    key: str
    param_name: str
    param: Any
    value_types: tuple[Any, ...]
    metavar_words: frozenset[str]
    is_table: bool

    @property
    def is_path(self) -> bool:
        return Path in self.value_types or bool(self.metavar_words & PATH_METAVARS)

    def is_path_value(self, value: str) -> bool:
        """Tell whether `value` is a path: "-" is standard output, and --holdout takes a fraction as well as a file."""
        return self.is_path and value != "-" and not (self.metavar_words & NUMBER_METAVARS and _is_number(value))

    def parse_number(self, value: Any) -> Any:
        """Return the integer that the text of a numeric option spells, or `value` itself."""
        is_integer_text = (
            isinstance(value, str)
            and bool(self.metavar_words & NUMBER_METAVARS)
            and value.isascii()
            and value.isdigit()
        )
        return int(value) if is_integer_text else value

    @property
    def is_model(self) -> bool:
        return bool(self.metavar_words & MODEL_METAVARS)

    @property
    def is_unrestricted(self) -> bool:
        """Tell whether a value could be more than a name or a text, so that a file beside the data may not set it."""
        if self.key in RESTRICTED_OPTIONS:
            return True
        return bool({str, list} & set(self.value_types)) and not (
            self.metavar_words and self.metavar_words <= SAFE_METAVARS
        )


def collect_options(command: Any) -> dict[str, Option]:
    """Return the options of a click command that are settings, by key."""
    hints = get_type_hints(command.callback)
    options = {}
    for param in command.params:
        long = [spelling[2:] for spelling in param.opts if spelling.startswith("--")]
        if param.param_type_name != "option" or not long or long[0] in COMMAND_LINE_ONLY:
            continue
        metavar = param.metavar or ""
        words = frozenset(re.findall(r"[A-Z]+", metavar))
        options[long[0]] = Option(
            long[0],
            param.name,
            param,
            _value_types(hints[param.name]),
            words,
            "=" in metavar and not words & PATH_METAVARS,
        )
    return options


def _value_types(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (list, Literal):
        return (list,) if get_origin(hint) is list else (hint,)
    members = get_args(hint) or (hint,)
    if len(members) == 1:
        return members
    return tuple(kind for member in members if member is not NoneType for kind in _value_types(member))


def convert_value(option: Option, value: Any, error_location: str) -> Any:
    """Convert a TOML value to what click takes.

    Args:
        option: The option that the value is for.
        value: The value as tomllib returned it.
        error_location: How an error message begins: "data/lsml.toml: [predict] workers".

    Raises:
        UsageError: The value has the wrong type.
    """
    if option.is_table:
        # A model's parameter may itself be a table; elsewhere a table is how TOML reads a dot: category.macro-f1 = 0.8
        flat = _flatten(value) if isinstance(value, dict) and "KEY" not in option.metavar_words else value
        return _to_key_value_pairs(flat, error_location)
    if (
        NUMBER_METAVARS & option.metavar_words
        and str in option.value_types
        and isinstance(value, int | float)
        and not _is_of_type(bool, value)
    ):
        return str(value)
    if isinstance(value, str) and "\0" in value:
        raise UsageError(f"{error_location} holds a NUL character.", "Correct the file.")
    if not any(_is_of_type(kind, value) for kind in option.value_types):
        wanted = " or ".join(_describe_type(kind) for kind in option.value_types)
        raise UsageError(f"{error_location} must be {wanted}, not {_describe_value(value)}.", "Correct the file.")
    return value


def _is_of_type(value_type: Any, value: Any) -> bool:
    if value_type is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if value_type is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if get_origin(value_type) is Literal:
        return value in get_args(value_type) and isinstance(value, str)
    wanted = str if value_type is Path else value_type
    return isinstance(value, wanted) and (value_type is bool or not isinstance(value, bool))


def _describe_type(value_type: Any) -> str:
    if get_origin(value_type) is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(value_type))
    return "a list of strings" if value_type is list else _TYPE_NAMES[value_type]


def _describe_value(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)


def _to_key_value_pairs(value: Any, error_location: str) -> list[str]:
    """Convert a table to KEY=VALUE texts with JSON values, as a command line spells them: "3" stays a string."""
    import orjson

    if not isinstance(value, dict):
        raise UsageError(
            f"{error_location} must be a table of names and values.", "Write it as a table: { name = value }."
        )
    pairs = []
    for key, item in value.items():
        if not key or "=" in key or not _is_json(item):
            raise UsageError(
                f"{error_location} cannot hold {key} = {item}.", "It takes numbers, strings, true, false, lists."
            )
        pairs.append(f"{key}={orjson.dumps(item).decode()}")
    return pairs


def _flatten(table: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner_key}": inner for inner_key, inner in _flatten(value).items()}
        else:
            flat[key] = value
    return flat


def _is_json(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_is_json, value.values() if isinstance(value, dict) else value))
    # JSON knows neither infinity nor dates, and numbers beyond 64 bits are read as floats.
    if isinstance(value, float):
        return value - value == 0
    return isinstance(value, str | bool) or (isinstance(value, int) and -(2**63) <= value < 2**64)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
