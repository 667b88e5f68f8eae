"""Decide which parameters of a model data may set: a `lsml.toml` or a project that nobody named, and any version."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lsml_cli.models.base import Model
from lsml_cli.models.spec import Json

CODE_RUNNING_PARAMS = frozenset({"trust_checkpoint", "launch"})  # of models that run code


def find_unconfirmed_params(
    model_class: type[Model], stored: Mapping[str, Json], confirmed: Mapping[str, Json]
) -> dict[str, Json]:
    """Return the parameters of a version that may run code or open a file, unless the user gives the same for this run.

    A version is data and may come from a stranger, who could name a config that is Python, or trust a checkpoint.

    Args:
        model_class: The class of the version.
        stored: The parameters that the version records.
        confirmed: The parameters that the user gives: `--with`, or [with] of a project that is named.
    """
    defaults = model_class.default_params()
    declares_all = model_class.declared_params() is not None
    unconfirmed: dict[str, Json] = {}
    for name, value in stored.items():
        if (name in confirmed and confirmed[name] == value) or value == defaults.get(name):
            continue
        is_file_param = name in model_class.file_params or not declares_all
        is_file = partial(_is_file, is_file_param=is_file_param)
        if name in CODE_RUNNING_PARAMS or contains(value, is_file):
            unconfirmed[name] = value
    return unconfirmed


def contains(value: Any, test: Callable[[Any], bool]) -> bool:
    """Tell whether a JSON value, or one inside of it, meets a test."""
    if isinstance(value, dict | list):
        items = [*value, *value.values()] if isinstance(value, dict) else value
        return any(contains(item, test) for item in items)
    return test(value)


def path_exists(value: str) -> bool:
    """Tell whether a text is the name of something in the file system, also of a broken link."""
    try:
        # Unlike Path.exists, this raises no error for a name that is too long.
        return bool(value) and os.path.lexists(value)
    except ValueError:  # it holds a NUL
        return False


def _is_file(value: Any, is_file_param: bool) -> bool:
    """Tell whether a value names a file that exists. A plain word does so only where a file is expected."""
    return isinstance(value, str) and (is_file_param or bool(set("/\\.") & set(value))) and path_exists(value)
