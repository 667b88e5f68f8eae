"""Give the options of a command their defaults from `lsml.toml`: options win, then the file, then built-in defaults.

    app.command(cls=SettingsCommand)(predict)        # in cli.py

    def predict(..., settings: options.SettingsFile = None, show_settings: options.ShowSettings = False) -> None:

The file becomes click's `default_map`, so a command's function sees values and never where they come from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from lsml_cli.commands.console.stdout import emit
from lsml_cli.commands.help import Command
from lsml_cli.commands.settings import settings_file
from lsml_cli.commands.settings.setting import Option, collect_options
from lsml_cli.commands.settings.settings_file import Settings
from lsml_cli.errors import UsageError
from lsml_cli.runtime import MAX_INTEGER

EMPTY_STRING = '""'  # in TOML
MAX_ALIGNED_WIDTH = 48  # columns; comments after longer settings are not aligned

# What an option means without its value, which Typer cannot express.
IMPLICIT_VALUES = {"--check": "tasks"}


class SettingsCommand(Command):
    """A command that reads defaults of its options from lsml.toml."""

    def make_parser(self, ctx: Any) -> Any:
        """Return the usual parser with --no-SWITCH for each switch, so that an option can win over `quiet = true`."""
        parser = super().make_parser(ctx)
        params: list[Any] = self.params
        for param in params:
            if getattr(param, "is_bool_flag", False) and not param.secondary_opts:
                off = [f"--no-{spelling[2:]}" for spelling in param.opts if spelling.startswith("--")]
                parser.add_option(obj=param, opts=off, dest=param.name, action="store_const", const=False)
        return parser

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse with the file's settings as defaults; raise UsageError if the file is invalid."""
        if ctx.resilient_parsing:  # a shell asks for completions
            return super().parse_args(ctx, args)
        args = [f"{arg}={IMPLICIT_VALUES[arg]}" if arg in IMPLICIT_VALUES else arg for arg in args]
        parsed = dict(self.make_parser(ctx).parse_args(list(args))[0])
        if parsed.get("help"):
            return super().parse_args(ctx, args)
        options = collect_options(self)
        settings = self._load_settings(ctx, parsed, options)
        ctx.default_map = {options[key].param_name: value for key, value in settings.values.items()}
        if parsed.get(self._param_name("--show-settings")):
            emit(*_format_settings(ctx, str(self.name), parsed, options, settings))
            raise typer.Exit
        rest = super().parse_args(ctx, args)
        self._require_usable_integers(ctx)
        for key, value in settings.values.items():
            if options[key].is_table and parsed.get(options[key].param_name):
                ctx.params[options[key].param_name] = _merge_pairs(value, parsed[options[key].param_name])
        _report_settings_file(ctx, parsed, options, settings)
        return rest

    def _require_usable_integers(self, ctx: Any) -> None:
        """Raise UsageError for a whole number that neither JSON, an array nor a counter could hold."""
        for param in self.params:
            value = ctx.params.get(param.name)
            if isinstance(value, int) and abs(value) > MAX_INTEGER:
                raise UsageError(f"{param.opts[0]} is {value}, which is beyond 64 bits.", "Give a smaller number.")

    def _load_settings(self, ctx: Any, parsed: Mapping[str, Any], options: Mapping[str, Option]) -> Settings:
        arguments = [parsed.get(param.name) for param in self.params if param.param_type_name == "argument"]
        data = next((argument for argument in arguments if isinstance(argument, str)), None)
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
    """Check the values that the command line does not override."""
    from lsml_cli.commands.settings.trust import require_safe_value

    if option.is_table:
        require_safe_value(option, _drop_overridden(value, flag or []), path, error_location)
    elif flag is None:
        require_safe_value(option, value, path, error_location)


def _merge_pairs(defaults: list[str], flags: list[str]) -> list[str]:
    return _drop_overridden(defaults, flags) + flags


def _drop_overridden(defaults: list[str], flags: list[str]) -> list[str]:
    """Return the KEY=VALUE pairs whose keys the command line does not give."""
    keys = {pair.partition("=")[0] for pair in flags}
    return [pair for pair in defaults if pair.partition("=")[0] not in keys]


def _report_settings_file(
    ctx: Any, parsed: Mapping[str, Any], options: Mapping[str, Option], settings: Settings
) -> None:
    """Print which options come from a settings file that was not named with --config."""
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
    """Format the settings as TOML, one per line with its origin; the output is a valid lsml.toml."""
    lines: list[tuple[str, str]] = []
    tables: dict[str, list[tuple[str, str]]] = {}
    for key, option in options.items():
        value, source = option.param.consume_value(ctx, parsed)
        if value is not None:
            value = option.param.process_value(ctx, value)  # 0 for a float becomes 0.0; invalid values are rejected
        origin = _describe_origin(source.name, option, settings)
        if option.is_table:
            tables[key] = list(
                _format_pairs(settings.values.get(key, []), parsed.get(option.param_name) or [], settings.path)
            )
        elif value is None or value in ([], ()):
            lines.append((f"# {key} is not set", "required" if option.param.required else origin))
        else:
            lines.append((f"{key} = {to_toml(option.parse_number(value))}", origin))
    yield f"# {settings.path}: {'read' if settings.exists else 'does not exist'}"
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

    overrides = parse_params(flags)
    for key, value in (parse_params(defaults) | overrides).items():
        text = to_toml(value)
        yield (
            f"{_toml_key(key)} = {text}" if text else f"# {_toml_key(key)} is null",
            "command line" if key in overrides else str(path),
        )


def _align_comments(lines: list[tuple[str, str]]) -> Iterator[str]:
    width = max((len(setting) for setting, _ in lines if len(setting) <= MAX_ALIGNED_WIDTH), default=0)
    for setting, origin in lines:
        yield f"{setting:{width}}  # {origin}"


def to_toml(value: Any) -> str | None:
    """Format a value as TOML on one line; None for null, which TOML cannot express."""
    if isinstance(value, dict):
        inner = [f"{_toml_key(key)} = {to_toml(item)}" for key, item in value.items() if item is not None]
        return f"{{ {', '.join(inner)} }}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(to_toml(item) or EMPTY_STRING for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if value is None:
        return None
    # JSON's escapes are TOML's, except for DEL. Bytes of a file name that are not UTF-8 are shown escaped.
    import orjson

    text = str(value).encode("utf-8", "backslashreplace").decode()
    return orjson.dumps(text).decode().replace("\x7f", "\\u007f")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else to_toml(key) or EMPTY_STRING
