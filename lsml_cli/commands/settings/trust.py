"""What a `lsml.toml` that lies beside the data may decide: it may have come with the data, from somebody else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lsml_cli.commands.settings.setting import RESTRICTED_OPTIONS, Option
from lsml_cli.errors import UsageError
from lsml_cli.registry.versions import is_model_folder


def require_safe_value(option: Option, value: Any, path: Path, error_location: str) -> None:
    """Raises UsageError when a value could run code, touch files elsewhere, or send something somewhere.

    value  as `settings_file.placed` returned it
    path   of the lsml.toml
    """
    why = _find_objection(option, value, path.parent)
    if why is not None:
        raise UsageError(
            f"{error_location} {option.key} {why}; a file that merely lies beside the data may not decide that.",
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
    """A class in a file is code. A version is arrays and JSON, and by itself never more than a registered model."""
    from lsml_cli.registry.project_file import runs_user_code

    if runs_user_code(model):
        return f"is {model}, which would run the code there"
    return f"is {model}, which would run that code" if ":" in model and not is_model_folder(model) else None


def _find_path_objection(path: Path, folder: Path) -> str | None:
    """Links are followed; and .bashrc or .git are nobody's predictions."""
    root, target = (Path(os.path.realpath(each)) for each in (folder, path))  # unlike resolve, no error for a loop
    if not target.is_relative_to(root):
        return f"is {path}, outside of its folder"
    hidden = any(part.startswith(".") for part in target.relative_to(root).parts)
    return f"is {path}, a hidden file" if hidden else None


def _find_table_objection(pairs: list[str]) -> str | None:
    """A parameter of a model may be the path of a checkpoint, or of a config that is Python."""
    import orjson

    for pair in pairs:
        key, _, text = pair.partition("=")
        if key in _CODE_RUNNING_PARAMS:
            return f"has {key}, which may run code"
        if _may_name_file(orjson.loads(text)):
            return f"has {key} = {text}, which may be a file"
    return None


_CODE_RUNNING_PARAMS = frozenset({"trust_checkpoint", "launch"})  # parameters of models by which somebody's code is run


def _may_name_file(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_may_name_file, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and ("/" in value or value.endswith(".py") or Path(value).exists())
