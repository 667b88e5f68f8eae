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
from lsml_cli.commands.settings.binding_key import Option, options_of
from lsml_cli.commands.settings.settings_file import Settings

EMPTY = '""'  # in TOML
WIDEST = 48  # columns of a value before the place it comes from is no longer aligned


# What an option means without its value, which Typer itself knows no way to say.
ALONE = {"--check": "tasks"}


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
        args = [f"{each}={ALONE[each]}" if each in ALONE else each for each in args]
        given = dict(self.make_parser(ctx).parse_args(list(args))[0])
        if given.get("help"):
            return super().parse_args(ctx, args)
        options = options_of(self)
        settings = self._settings(ctx, given, options)
        ctx.default_map = {options[key].name: value for key, value in settings.values.items()}
        if given.get(self._name_of("--show-settings")):
            emit(*_shown(ctx, str(self.name), given, options, settings))
            raise typer.Exit
        rest = super().parse_args(ctx, args)
        for key, value in settings.values.items():
            if options[key].table and given.get(options[key].name):
                ctx.params[options[key].name] = _merged(value, given[options[key].name])
        _tell(ctx, given, options, settings)
        return rest

    def _settings(self, ctx: Any, given: Mapping[str, Any], options: Mapping[str, Option]) -> Settings:
        arguments = [given.get(param.name) for param in self.params if param.param_type_name == "argument"]
        data = next((each for each in arguments if isinstance(each, str)), None)
        path, named = settings_file.find(given.get(self._name_of("--config")), data)
        document = settings_file.read(path, named)
        if document is None:
            return Settings(path, named, False, {})
        siblings = ctx.parent.command.commands.items() if ctx.parent else [(self.name, self)]
        commands = [str(name) for name, command in siblings if isinstance(command, SettingsCommand)]
        where = f"{path}: [{self.name}]"
        table = settings_file.table_of(document, path, str(self.name), commands)
        values = {}
        for key, value in settings_file.checked(table, where, options).items():
            option = options[key]
            values[key] = settings_file.placed(option, value, path.parent)
            settings_file.validated(option, values[key], ctx, where)
            if not named:
                _require_harmless(option, values[key], given.get(option.name), path, where)
        return Settings(path, named, True, values)

    def _name_of(self, spelling: str) -> str:
        return next((param.name for param in self.params if spelling in param.opts), "")


def _require_harmless(option: Option, value: Any, flag: Any, path: Path, where: str) -> None:
    """Look at what the command line leaves to the file."""
    from lsml_cli.commands.settings.trust import require_harmless

    if option.table:
        require_harmless(option, _left(value, flag or []), path, where)
    elif flag is None:
        require_harmless(option, value, path, where)


def _merged(defaults: list[str], flags: list[str]) -> list[str]:
    return _left(defaults, flags) + flags


def _left(defaults: list[str], flags: list[str]) -> list[str]:
    """KEY=VALUE pairs of the file, but for the keys that the command line gives."""
    keys = {pair.partition("=")[0] for pair in flags}
    return [pair for pair in defaults if pair.partition("=")[0] not in keys]


def _tell(ctx: Any, given: Mapping[str, Any], options: Mapping[str, Option], settings: Settings) -> None:
    """Say which settings a file that nobody named has decided."""
    from lsml_cli.commands.console.progress import Console

    def decides(option: Option, value: Any) -> bool:
        flag = given.get(option.name)
        return bool(_left(value, flag or [])) if option.table else flag is None

    used = [key for key, value in settings.values.items() if decides(options[key], value)]
    if used and not settings.named:
        Console(bool(ctx.params.get("quiet"))).note(f"Settings from {settings.path} ({', '.join(used)}).")


def _shown(
    ctx: Any, command: str, given: Mapping[str, Any], options: Mapping[str, Option], settings: Settings
) -> Iterator[str]:
    """The settings as TOML, a line each, with where they come from: what is printed is a lsml.toml itself."""
    lines: list[tuple[str, str]] = []
    tables: dict[str, list[tuple[str, str]]] = {}
    for key, option in options.items():
        value, source = option.param.consume_value(ctx, given)
        if value is not None:
            value = option.param.process_value(ctx, value)  # 0 for a float is 0.0; nonsense is refused
        place = _place(source.name, option, settings)
        if option.table:
            tables[key] = list(_pairs(settings.values.get(key, []), given.get(option.name) or [], settings.path))
        elif value is None or value in ([], ()):
            lines.append((f"# {key} is not set", "required" if option.param.required else place))
        else:
            lines.append((f"{key} = {to_toml(option.as_number(value))}", place))
    yield f"# {settings.path}: {'read' if settings.there else 'not there'}"
    yield f"[{command}]"
    yield from _aligned(lines)
    for key, pairs in tables.items():
        if pairs:
            yield from ("", f"[{command}.{key}]", *_aligned(pairs))


def _place(source: str, option: Option, settings: Settings) -> str:
    if source == "DEFAULT_MAP":
        return str(settings.path)
    return {"COMMANDLINE": "command line", "ENVIRONMENT": f"${option.param.envvar}"}.get(source, "built in")


def _pairs(defaults: list[str], flags: list[str], path: Path) -> Iterator[tuple[str, str]]:
    from lsml_cli.registry.resolve import parse_params

    mine = parse_params(flags)
    for key, value in (parse_params(defaults) | mine).items():
        text = to_toml(value)
        yield (
            f"{_toml_key(key)} = {text}" if text else f"# {_toml_key(key)} is null",
            "command line" if key in mine else str(path),
        )


def _aligned(lines: list[tuple[str, str]]) -> Iterator[str]:
    width = max((len(left) for left, _ in lines if len(left) <= WIDEST), default=0)
    for left, place in lines:
        yield f"{left:{width}}  # {place}"


def to_toml(value: Any) -> str | None:
    """A value as TOML on one line, None when TOML has nothing for it (null)."""
    if isinstance(value, dict):
        inner = [f"{_toml_key(key)} = {to_toml(each)}" for key, each in value.items() if each is not None]
        return f"{{ {', '.join(inner)} }}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(to_toml(each) or EMPTY for each in value) + "]"
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
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else to_toml(key) or EMPTY
