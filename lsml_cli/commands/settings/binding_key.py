"""An option of a command as a setting: what its values in a TOML file may be, and how click takes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lsml_cli.errors import UsageError

# Options about one run, or about the settings themselves.
NOT_SETTINGS = frozenset(
    {
        "config",
        "show-settings",
        "help",
        "version",
        "resume",
        "retry-failed",
        "check",
        "dry-run",
        "promote",
        "prune",
        "delete",
    }
)

# What the metavar of an option says about a string. Whatever is in none of these is not taken from beside the data.
PATHS = frozenset({"FILE", "DIR", "ERRORS"})
MODELS = frozenset({"MODEL"})
HARMLESS = frozenset(
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
    }
)
# What is not, though it is a choice or a number: with `from = "paths"` the lines of a file may lead anywhere on this
# machine, and a project is somewhere to send things, or to change what is there.
OPEN_CHOICES = {
    "from": "says what is read, and from where",
    "project": "says where something is sent, or comes from",
    "existing": "says what becomes of predictions that are there",
    "create-tasks": "says what is sent",
}
NUMBERS = frozenset({"SHARE", "FRACTION", "N", "SIZE"})  # a string option that may be a number

_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    Path: "a path in quotes",
}


@dataclass(frozen=True)
class Option:
    """An option of a command as a setting.

    key    "batch-size", its long spelling; `name` is the parameter of the command's function
    param  click's own object
    kinds  what its values may be: bool, int, float, str, Path, list, or the strings of a Literal
    words  of its metavar: {"FILE"}, {"KEY", "VALUE"}
    table  whether it is repeated as KEY=VALUE, and so a table of its own in the file. PREFIX=DIR is none: a prefix may
           hold "=", so that is a list of strings there as on the command line
    """

    key: str
    name: str
    param: Any
    kinds: tuple[Any, ...]
    words: frozenset[str]
    table: bool

    @property
    def is_path(self) -> bool:
        return Path in self.kinds or bool(self.words & PATHS)

    def means_path(self, value: str) -> bool:
        """Whether this value is one: "-" is standard output, and --holdout takes a share as well as a file."""
        return self.is_path and value != "-" and not (self.words & NUMBERS and _is_number(value))

    def as_number(self, value: Any) -> Any:
        """A whole number where that is what the text of such an option says."""
        written = isinstance(value, str) and bool(self.words & NUMBERS) and value.isascii() and value.isdigit()
        return int(value) if written else value

    @property
    def is_model(self) -> bool:
        return bool(self.words & MODELS)

    @property
    def is_open(self) -> bool:
        """Whether what could stand here may be more than a name or a text."""
        if self.key in OPEN_CHOICES:
            return True
        return bool({str, list} & set(self.kinds)) and not (self.words and self.words <= HARMLESS)


def options_of(command: Any) -> dict[str, Option]:
    """Every option of a click command that is a setting, by its key."""
    hints = get_type_hints(command.callback)
    found = {}
    for param in command.params:
        long = [spelling[2:] for spelling in param.opts if spelling.startswith("--")]
        if param.param_type_name != "option" or not long or long[0] in NOT_SETTINGS:
            continue
        metavar = param.metavar or ""
        words = frozenset(re.findall(r"[A-Z]+", metavar))
        found[long[0]] = Option(
            long[0], param.name, param, _kinds(hints[param.name]), words, "=" in metavar and not words & PATHS
        )
    return found


def _kinds(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (list, Literal):
        return (list,) if get_origin(hint) is list else (hint,)
    members = get_args(hint) or (hint,)
    if len(members) == 1:
        return members
    return tuple(kind for each in members if each is not NoneType for kind in _kinds(each))


def typed(option: Option, value: Any, where: str) -> Any:
    """The value as click takes it. Raises UsageError when it is of the wrong type.

    where  "data/lsml.toml: [predict] workers", how sentences about it begin
    """
    if option.table:
        # A model's parameter may itself be a table; elsewhere one only stands for a dot: category.macro-f1 = 0.8
        flat = _flat(value) if isinstance(value, dict) and "KEY" not in option.words else value
        return _pairs(flat, where)
    if NUMBERS & option.words and str in option.kinds and isinstance(value, int | float) and not _is(bool, value):
        return str(value)
    if isinstance(value, str) and "\0" in value:
        raise UsageError(f"{where} holds a NUL character.", "Correct the file.")
    if not any(_is(kind, value) for kind in option.kinds):
        wanted = " or ".join(_said(kind) for kind in option.kinds)
        raise UsageError(f"{where} must be {wanted}, not {_shown(value)}.", "Correct the file.")
    return value


def _is(kind: Any, value: Any) -> bool:
    if kind is list:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if get_origin(kind) is Literal:
        return value in get_args(kind) and isinstance(value, str)
    wanted = str if kind is Path else kind
    return isinstance(value, wanted) and (kind is bool or not isinstance(value, bool))


def _said(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f'"{each}"' for each in get_args(kind))
    return "a list of strings" if kind is list else _WORDS[kind]


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)


def _pairs(value: Any, where: str) -> list[str]:
    """A table as KEY=VALUE, the values as JSON, which is how a command line is read: "3" stays a string."""
    import orjson

    if not isinstance(value, dict):
        raise UsageError(f"{where} must be a table of names and values.", "Write it as a table: { name = value }.")
    pairs = []
    for key, each in value.items():
        if not key or "=" in key or not _is_json(each):
            raise UsageError(f"{where} cannot hold {key} = {each}.", "It takes numbers, strings, true, false, lists.")
        pairs.append(f"{key}={orjson.dumps(each).decode()}")
    return pairs


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        below = _flat(value) if isinstance(value, dict) else None
        found |= {key: value} if below is None else {f"{key}.{rest}": each for rest, each in below.items()}
    return found


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
