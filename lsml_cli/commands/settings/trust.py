"""What a `lsml.toml` that lies beside the data may decide: it may have come with the data, from somebody else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lsml_cli.commands.settings.binding_key import OPEN_CHOICES, Option
from lsml_cli.errors import UsageError
from lsml_cli.registry.versions import is_folder


def require_harmless(option: Option, value: Any, path: Path, where: str) -> None:
    """Raises UsageError when a value could run code, touch files elsewhere, or send something somewhere.

    value  as `settings_file.placed` returned it
    path   of the lsml.toml
    """
    why = _objection(option, value, path.parent)
    if why is not None:
        raise UsageError(
            f"{where} {option.key} {why}; a file that merely lies beside the data may not decide that.",
            f"Give --{option.key} on the command line or, if the file is your own, --config {path}.",
        )


def _objection(option: Option, value: Any, folder: Path) -> str | None:
    is_file = option.is_path and Path(str(value)).is_file() and not str(value).endswith(".py")  # of predictions
    if option.is_model and not is_file:
        return _model_objection(value)
    if option.is_path:
        paths = [pair.rpartition("=")[2] for pair in value] if isinstance(value, list) else [value]
        objections = (_path_objection(Path(path), folder) for path in paths if option.means_path(path))
        return next(filter(None, objections), None)
    if option.table:
        return _table_objection(value)
    if option.key in OPEN_CHOICES:
        return OPEN_CHOICES[option.key]
    return "is neither a name nor a number" if option.is_open else None


def _model_objection(model: str) -> str | None:
    """A class in a file is code. A version is arrays and JSON, and by itself never more than a registered model."""
    from lsml_cli.registry.project_file import runs_code

    if runs_code(model):
        return f"is {model}, which would run the code there"
    return f"is {model}, which would run that code" if ":" in model and not is_folder(model) else None


def _path_objection(path: Path, folder: Path) -> str | None:
    """Links are followed; and .bashrc or .git are nobody's predictions."""
    root, target = (Path(os.path.realpath(each)) for each in (folder, path))  # unlike resolve, no error for a loop
    if not target.is_relative_to(root):
        return f"is {path}, outside of its folder"
    hidden = any(part.startswith(".") for part in target.relative_to(root).parts)
    return f"is {path}, a hidden file" if hidden else None


def _table_objection(pairs: list[str]) -> str | None:
    """A parameter of a model may be the path of a checkpoint, or of a config that is Python."""
    import orjson

    for pair in pairs:
        key, _, text = pair.partition("=")
        if key in _RUNS_CODE:
            return f"has {key}, which may run code"
        if _names_file(orjson.loads(text)):
            return f"has {key} = {text}, which may be a file"
    return None


_RUNS_CODE = frozenset({"trust_checkpoint", "launch"})  # parameters of models by which somebody's code is run


def _names_file(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_names_file, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and ("/" in value or value.endswith(".py") or Path(value).exists())
