"""Find, read and check the settings of one command in `lsml.toml`, and resolve the paths in them.

    [predict]
    model = "models/news"      # relative to this file
    batch-size = 64            # or batch_size

    [predict.with]             # --with KEY=VALUE
    ngrams = [1, 2]

A file named with `--config` is trusted. One that lies beside the data may have come with the data, from a stranger. So
it may set only harmless options: its paths stay below its folder; its model is built in, an installed plug-in, or a
version trained by one of these; an option that is not known to be harmless (an address, a token) is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from lsml_cli.commands.settings import setting
from lsml_cli.commands.settings.setting import COMMAND_LINE_ONLY, Option
from lsml_cli.errors import UsageError, sort_by_similarity
from lsml_cli.registry.versions import is_model_folder

FILE_NAME = "lsml.toml"
MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Settings:
    """The settings of one command.

    Args:
        path: The file.
        is_explicit: Whether --config named it.
        exists: Whether it exists.
        values: Option key -> value as click takes it.
    """

    path: Path
    is_explicit: bool
    exists: bool
    values: Mapping[str, Any]


def find_settings_file(config_option: str | Path | None, data: str | None) -> tuple[Path, bool]:
    """Return the settings file and whether --config named it.

    Without --config it is lsml.toml beside the data, or in the working folder for standard input.
    """
    if config_option is not None:
        return Path(config_option), True
    return (Path() if data in (None, "-") else Path(str(data)).parent) / FILE_NAME, False


def read_toml(path: Path, is_explicit: bool) -> dict[str, Any] | None:
    """Read the TOML document; None if there is no file beside the data.

    Raises:
        UsageError: The file cannot be read, or is not TOML.
    """
    import tomllib

    if not is_explicit and not path.is_file():
        return None
    try:
        with path.open("rb") as file:  # with --config also a pipe, or /dev/null
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageError(f"The settings {path} are larger than {MAX_BYTES:,} bytes.", _FIX_FILE_HINT)
        return tomllib.loads(content.decode())
    except FileNotFoundError:
        raise UsageError(f"There is no file {path} (--config).", "Name a TOML file with the settings.") from None
    except OSError as error:
        raise UsageError(f"The settings {path} cannot be read: {error.strerror}.", _FIX_FILE_HINT) from None
    except (ValueError, RecursionError) as error:  # of tomllib, of decoding, and of a number with thousands of digits
        raise UsageError(f"The settings {path} are not TOML: {error}.", _FIX_FILE_HINT) from None


_FIX_FILE_HINT = "Correct the file, or name another with --config (--config /dev/null for none)."


def get_command_table(document: Mapping[str, Any], path: Path, command: str, commands: Iterable[str]) -> dict[str, Any]:
    """Return the table of a command; raise UsageError if the document holds anything but tables of commands."""
    known = list(commands)
    for name, value in document.items():
        if name not in known and not isinstance(value, dict):
            raise UsageError(
                f"{path}: {name} is outside of a table.",
                f"Move it into the table of its command: {_format_table_names(known)}.",
            )
        if name not in known:
            raise UsageError(
                f"{path}: [{name}] is not a command that takes settings.",
                f"Those that do: {_format_table_names(sort_by_similarity(name, known))}.",
            )
        if not isinstance(value, dict):
            raise UsageError(f"{path}: {name} is not a table.", f"Write [{name}], and the settings below it.")
    return dict(document.get(command, {}))


def _format_table_names(names: Iterable[str]) -> str:
    return ", ".join(f"[{name}]" for name in names)


def check_table(table: Mapping[str, Any], error_location: str, options: Mapping[str, Option]) -> dict[str, Any]:
    """Return the settings by option key.

    Args:
        table: The table of the command; keys may be spelled with hyphens or underscores.
        error_location: How an error message begins: "data/lsml.toml: [predict]".
        options: The options of the command.

    Raises:
        UsageError: A key is unknown or given twice, or a value has the wrong type.
    """
    settings: dict[str, Any] = {}
    for spelled, value in table.items():
        key = spelled.replace("_", "-")
        if key in COMMAND_LINE_ONLY:
            raise UsageError(
                f"{error_location} {spelled} is not a setting.", f"Give --{key} on the command line, for one run."
            )
        if key not in options:
            known = ", ".join(sort_by_similarity(key, options))
            raise UsageError(f"{error_location} has no setting {spelled!r}.", f"It has: {known}.")
        if key in settings:
            raise UsageError(f"{error_location} {key} is given twice.", "Spell it with hyphens only.")
        settings[key] = setting.convert_value(options[key], value, f"{error_location} {spelled}")
    return settings


def resolve_relative_paths(option: Option, value: Any, folder: Path) -> Any:
    """Return the value with relative paths resolved against the folder of the file."""
    if isinstance(value, list) and option.is_path:
        return [f"{prefix}={folder / path}" if equals else path for prefix, equals, path in map(_split_map, value)]
    if not isinstance(value, str):
        return value
    if option.is_model:
        is_file = option.is_path and (folder / value).is_file()  # --compare takes a file of predictions as well
        return str(folder / value) if is_file else _resolve_model(value, folder)
    return str(folder / value) if option.is_path_value(value) else value


def _split_map(pair: str) -> tuple[str, str, str]:
    """Split PREFIX=DIR at the last "="."""
    return pair.rpartition("=")


def _resolve_model(value: str, folder: Path) -> str:
    """Return a model name that means what `value` means in `folder`."""
    from lsml_cli.registry.model_location import is_registered_name, split_class

    path = folder / value
    if is_registered_name(value):
        return value
    if not is_model_folder(str(path)) and (class_and_folder := split_class(value)) is not None:
        return f"{_resolve_model(class_and_folder[0], folder)}@{folder / class_and_folder[1]}"
    file, colon, _ = value.rpartition(":")
    is_script = (file if colon else value).endswith(".py")
    # A plain name that is no folder here must not be taken for a folder of the working directory.
    is_folder = is_model_folder(str(path)) or (not colon and ("/" in value or is_model_folder(value)))
    return str(path) if is_script or is_folder else value


def validate_value(option: Option, value: Any, ctx: Any, error_location: str) -> None:
    """Check the value against the option's range or choices; raise UsageError that names the file."""
    try:
        option.param.process_value(ctx, value)
    except typer.BadParameter as error:
        raise UsageError(f"{error_location} {option.key}: {error.message}", "Correct the file.") from None
