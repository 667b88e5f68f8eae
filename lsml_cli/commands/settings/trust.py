"""Decide which settings a `lsml.toml` beside the data may make: it may have come with the data, from a stranger."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lsml_cli.commands.settings.setting import RESTRICTED_OPTIONS, Option
from lsml_cli.errors import UsageError
from lsml_cli.registry.versions import is_model_folder


def require_safe_value(option: Option, value: Any, path: Path, error_location: str) -> None:
    """Raise UsageError if a value could run code, touch files elsewhere, or send data somewhere.

    Args:
        option: The option that the value is for.
        value: The value, as `settings_file.resolve_relative_paths` returned it.
        path: The lsml.toml.
        error_location: How the error message begins.
    """
    objection = _find_objection(option, value, path.parent)
    if objection is not None:
        raise UsageError(
            f"{error_location} {option.key} {objection}; a settings file beside the data may not set that.",
            f"Give --{option.key} on the command line or, if the file is your own, --config {path}.",
        )


def _find_objection(option: Option, value: Any, folder: Path) -> str | None:
    is_file = option.is_path and Path(str(value)).is_file() and not str(value).endswith(".py")  # of predictions
    if option.is_model and not is_file:
        return _find_model_objection(value)
    if option.is_path:
        paths = [pair.rpartition("=")[2] for pair in value] if isinstance(value, list) else [value]
        objections = (_find_path_objection(Path(path), folder) for path in paths if option.is_path_value(path))
        return next(filter(None, objections), None)
    if option.is_table:
        return _find_table_objection(value)
    if option.key in RESTRICTED_OPTIONS:
        return RESTRICTED_OPTIONS[option.key]
    return "is neither a name nor a number" if option.is_unrestricted else None


def _find_model_objection(model: str) -> str | None:
    """A class in a file is code; a trained version is arrays and JSON of a registered class."""
    from lsml_cli.registry.project_file import runs_user_code

    if runs_user_code(model):
        return f"is {model}, which would run the code there"
    return f"is {model}, which would run that code" if ":" in model and not is_model_folder(model) else None


def _find_path_objection(path: Path, folder: Path) -> str | None:
    """Refuse paths that lead out of the folder, through links too, and hidden files such as .bashrc or .git."""
    # Unlike Path.resolve, realpath raises no error for a loop of links.
    root, target = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    if not target.is_relative_to(root):
        return f"is {path}, outside of its folder"
    hidden = any(part.startswith(".") for part in target.relative_to(root).parts)
    return f"is {path}, a hidden file" if hidden else None


def _find_table_objection(pairs: list[str]) -> str | None:
    """Refuse model parameters that may name a file: a checkpoint, or a config that is Python."""
    import orjson

    for pair in pairs:
        key, _, text = pair.partition("=")
        if key in _CODE_RUNNING_PARAMS:
            return f"has {key}, which may run code"
        if _may_name_file(orjson.loads(text)):
            return f"has {key} = {text}, which may be a file"
    return None


_CODE_RUNNING_PARAMS = frozenset({"trust_checkpoint", "launch"})  # parameters of models that run code


def _may_name_file(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_may_name_file, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and ("/" in value or value.endswith(".py") or Path(value).exists())
