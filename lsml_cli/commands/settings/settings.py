"""How a command takes part in `lsml.toml`: flags win, then the file, then what is built in.

    app.command(cls=SettingsCommand)(predict)        # in cli.py

    def predict(..., config: options.Config = None, show_settings: options.ShowSettings = False) -> None:

That is all: the file is click's `default_map`, so a command's function sees values and never where they come from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from lsml_cli.commands.console.progress import emit
from lsml_cli.commands.settings import settings_file
from lsml_cli.commands.settings.setting import Option, collect_options
from lsml_cli.commands.settings.settings_file import Settings

EMPTY_STRING = '""'  # in TOML
MAX_ALIGNED_WIDTH = 48  # columns of a value before the place it comes from is no longer aligned


# What an option means without its value, which Typer itself knows no way to say.
IMPLICIT_VALUES = {"--check": "tasks"}


class SettingsCommand(TyperCommand):
    """A command whose options have their defaults in lsml.toml."""

    def make_parser(self, ctx: Any) -> Any:
        """The usual parser, and --no-SWITCH for each switch: without it a flag could not win against `quiet = true`."""
        parser = super().make_parser(ctx)
        params: list[Any] = self.params
        for param in params:
            if getattr(param, "is_bool_flag", False) and not param.secondary_opts:
                off = [f"--no-{spelling[2:]}" for spelling in param.opts if spelling.startswith("--")]
                parser.add_option(obj=param, opts=off, dest=param.name, action="store_const", const=False)
        return parser

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, with the file's settings as defaults. Raises UsageError when something is wrong with the file."""
        if ctx.resilient_parsing:  # a shell asks for completions
            return super().parse_args(ctx, args)
        args = [f"{each}={IMPLICIT_VALUES[each]}" if each in IMPLICIT_VALUES else each for each in args]
        given = dict(self.make_parser(ctx).parse_args(list(args))[0])
        if given.get("help"):
            return super().parse_args(ctx, args)
        options = collect_options(self)
        settings = self._load_settings(ctx, given, options)
        ctx.default_map = {options[key].param_name: value for key, value in settings.values.items()}
        if given.get(self._param_name("--show-settings")):
            emit(*_format_settings(ctx, str(self.name), given, options, settings))
            raise typer.Exit
        rest = super().parse_args(ctx, args)
        for key, value in settings.values.items():
            if options[key].is_table and given.get(options[key].param_name):
                ctx.params[options[key].param_name] = _merge_pairs(value, given[options[key].param_name])
        _report_settings_file(ctx, given, options, settings)
        return rest

    def _load_settings(self, ctx: Any, parsed: Mapping[str, Any], options: Mapping[str, Option]) -> Settings:
        arguments = [parsed.get(param.name) for param in self.params if param.param_type_name == "argument"]
        data = next((each for each in arguments if isinstance(each, str)), None)
        path, named = settings_file.find_settings_file(parsed.get(self._param_name("--config")), data)
        document = settings_file.read_toml(path, named)
        if document is None:
            return Settings(path, named, False, {})
        siblings = ctx.parent.command.commands.items() if ctx.parent else [(self.name, self)]
        commands = [str(name) for name, command in siblings if isinstance(command, SettingsCommand)]
        where = f"{path}: [{self.name}]"
        table = settings_file.get_command_table(document, path, str(self.name), commands)
        values = {}
        for key, value in settings_file.check_table(table, where, options).items():
            option = options[key]
            values[key] = settings_file.resolve_relative_paths(option, value, path.parent)
            settings_file.validate_value(option, values[key], ctx, where)
            if not named:
                _require_safe(option, values[key], parsed.get(option.param_name), path, where)
        return Settings(path, named, True, values)

    def _param_name(self, spelling: str) -> str:
        return next((param.name for param in self.params if spelling in param.opts), "")


def _require_safe(option: Option, value: Any, flag: Any, path: Path, error_location: str) -> None:
    """Look at what the command line leaves to the file."""
    from lsml_cli.commands.settings.trust import require_safe_value

    if option.is_table:
        require_safe_value(option, _drop_overridden(value, flag or []), path, error_location)
    elif flag is None:
        require_safe_value(option, value, path, error_location)


def _merge_pairs(defaults: list[str], flags: list[str]) -> list[str]:
    return _drop_overridden(defaults, flags) + flags


def _drop_overridden(defaults: list[str], flags: list[str]) -> list[str]:
    """KEY=VALUE pairs of the file, but for the keys that the command line gives."""
    keys = {pair.partition("=")[0] for pair in flags}
    return [pair for pair in defaults if pair.partition("=")[0] not in keys]


def _report_settings_file(
    ctx: Any, parsed: Mapping[str, Any], options: Mapping[str, Option], settings: Settings
) -> None:
    """Say which settings a file that nobody named has decided."""
    from lsml_cli.commands.console.progress import Console

    def decides(option: Option, value: Any) -> bool:
        flag = parsed.get(option.param_name)
        return bool(_drop_overridden(value, flag or [])) if option.is_table else flag is None

    used = [key for key, value in settings.values.items() if decides(options[key], value)]
    if used and not settings.is_explicit:
        Console(bool(ctx.params.get("quiet"))).note(f"Settings from {settings.path} ({', '.join(used)}).")


def _format_settings(
    ctx: Any, command: str, parsed: Mapping[str, Any], options: Mapping[str, Option], settings: Settings
) -> Iterator[str]:
    """The settings as TOML, a line each, with where they come from: what is printed is a lsml.toml itself."""
    lines: list[tuple[str, str]] = []
    tables: dict[str, list[tuple[str, str]]] = {}
    for key, option in options.items():
        value, source = option.param.consume_value(ctx, parsed)
        if value is not None:
            value = option.param.process_value(ctx, value)  # 0 for a float is 0.0; nonsense is refused
        place = _describe_origin(source.name, option, settings)
        if option.is_table:
            tables[key] = list(
                _format_pairs(settings.values.get(key, []), parsed.get(option.param_name) or [], settings.path)
            )
        elif value is None or value in ([], ()):
            lines.append((f"# {key} is not set", "required" if option.param.required else place))
        else:
            lines.append((f"{key} = {to_toml(option.parse_number(value))}", place))
    yield f"# {settings.path}: {'read' if settings.exists else 'not there'}"
    yield f"[{command}]"
    yield from _align_comments(lines)
    for key, pairs in tables.items():
        if pairs:
            yield from ("", f"[{command}.{key}]", *_align_comments(pairs))


def _describe_origin(source: str, option: Option, settings: Settings) -> str:
    if source == "DEFAULT_MAP":
        return str(settings.path)
    return {"COMMANDLINE": "command line", "ENVIRONMENT": f"${option.param.envvar}"}.get(source, "built in")


def _format_pairs(defaults: list[str], flags: list[str], path: Path) -> Iterator[tuple[str, str]]:
    from lsml_cli.registry.resolve import parse_params

    mine = parse_params(flags)
    for key, value in (parse_params(defaults) | mine).items():
        text = to_toml(value)
        yield (
            f"{_toml_key(key)} = {text}" if text else f"# {_toml_key(key)} is null",
            "command line" if key in mine else str(path),
        )


def _align_comments(lines: list[tuple[str, str]]) -> Iterator[str]:
    width = max((len(left) for left, _ in lines if len(left) <= MAX_ALIGNED_WIDTH), default=0)
    for left, place in lines:
        yield f"{left:{width}}  # {place}"


def to_toml(value: Any) -> str | None:
    """A value as TOML on one line, None when TOML has nothing for it (null)."""
    if isinstance(value, dict):
        inner = [f"{_toml_key(key)} = {to_toml(each)}" for key, each in value.items() if each is not None]
        return f"{{ {', '.join(inner)} }}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(to_toml(each) or EMPTY_STRING for each in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if value is None:
        return None
    # JSON's escapes are TOML's, but for DEL. A file name that is no UTF-8 can only be hinted at.
    import orjson

    text = str(value).encode("utf-8", "backslashreplace").decode()
    return orjson.dumps(text).decode().replace("\x7f", "\\u007f")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else to_toml(key) or EMPTY_STRING
