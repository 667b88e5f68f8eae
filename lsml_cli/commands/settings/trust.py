"""Decide which settings a `lsml.toml` beside the data may make: it may have come with the data, from a stranger.

It may name a model that runs no code but that of lsml and of installed packages (see `ModelLocation.code`), paths below
its own folder, and numbers up to what this machine can take. Everything else needs `--config FILE`, or the option.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lsml_cli.commands.media_options import parse_size
from lsml_cli.commands.settings.setting import RESTRICTED_OPTIONS, Option
from lsml_cli.errors import LsmlError, UsageError
from lsml_cli.models.spec import format_value
from lsml_cli.registry.param_safety import CODE_RUNNING_PARAMS, contains, path_exists
from lsml_cli.registry.project_file import PROJECT_FILE
from lsml_cli.registry.versions import is_model_folder
from lsml_cli.runtime import DEFAULT_FETCH_THREADS, available_cores

MAX_PARAM = 1 << 24  # number in a model's parameters: more features, epochs or pixels than any model needs
BUILT_IN_CACHE_BYTES = 10 << 30  # default of --media-cache-size
# The largest values of options that take cores, memory or time. No option of a command is numeric and not here, unless
# it can only make a run smaller or its result different.
MAX_VALUES: Mapping[str, Callable[[], int]] = {
    "workers": lambda: max(8, 2 * available_cores()),  # threads that wait for media may be more than the cores
    "fetch-concurrency": lambda: 4 * DEFAULT_FETCH_THREADS,
    "batch-size": lambda: 4096,
    "examples": lambda: 1000,
    "deadline": lambda: 600,  # seconds
    "max-tasks": lambda: 50_000,  # this and the next: as built in
    "max-body": lambda: 256,  # MB
}


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
    if option.is_unrestricted:
        return "is neither a name nor a number"
    return _find_size_objection(option.key, value, folder)


def _find_size_objection(key: str, value: Any, folder: Path) -> str | None:
    """Refuse what would take more of this machine than a stranger may decide."""
    most: int
    amount: float
    if key == "media-cache-size":
        most, amount, unit = _max_cache_bytes(folder), _parse_size(str(value)), " bytes"
    elif key in MAX_VALUES and _is_number(value):
        most, amount, unit = MAX_VALUES[key](), float(value), ""
    else:
        return None
    return f"is {value}, and more than {most:,}{unit} may use up this machine" if amount > most else None


def _parse_size(text: str) -> int:
    """Return a size in bytes, 0 for a text that is none, which the command refuses."""
    try:
        return parse_size(text)
    except UsageError:
        return 0


def _is_number(value: Any) -> bool:
    """Tell whether a value is a number, as one or as the text of one; "auto" is not."""
    return isinstance(value, int | float) or (isinstance(value, str) and value.isascii() and value.isdigit())


def _max_cache_bytes(folder: Path) -> int:
    """Return the largest size of a media cache: the built-in one, or half of what is free where there is more."""
    try:
        return max(BUILT_IN_CACHE_BYTES, shutil.disk_usage(folder).free // 2)
    except OSError:
        return BUILT_IN_CACHE_BYTES


def _find_model_objection(model: str) -> str | None:
    """Refuse what leads to code, or to parameters that may; a trained version is arrays and JSON.

    A name that leads nowhere gets no objection unless it is that of a class or script: the command refuses it anyway.
    """
    from lsml_cli.registry.model_location import locate_model

    try:
        location = locate_model(model)
    except LsmlError:
        is_code = model.endswith(".py") or (":" in model and not is_model_folder(model))
        return f"is {model}, which would run that code" if is_code else None
    if location.code is not None:
        is_spelled = model.startswith(f"{location.code}:")
        return f"is {model}, which would run {'that code' if is_spelled else f'the code in {location.code}'}"
    objection = _find_param_objection(location.params)
    return f"is {model}, whose {PROJECT_FILE} {objection}" if objection else None


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

    return _find_param_objection({key: orjson.loads(text) for key, _, text in (pair.partition("=") for pair in pairs)})


def _find_param_objection(params: Mapping[str, Any]) -> str | None:
    """Refuse parameters of a model that run code, may name a file, or are numbers without measure."""
    for key, value in params.items():
        if key in CODE_RUNNING_PARAMS:
            return f"has {key}, which may run code"
        text = format_value(value)
        if contains(value, _may_name_file):
            return f"has {key} = {text}, which may be a file"
        if contains(value, _is_immoderate):
            return f"has {key} = {text}, which is above {MAX_PARAM:,}"
    return None


def _may_name_file(value: Any) -> bool:
    return isinstance(value, str) and (path_exists(value) or "/" in value or "\\" in value or value.endswith(".py"))


def _is_immoderate(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) > MAX_PARAM
