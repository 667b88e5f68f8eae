"""Pages of the site that are made when it is built: the command line from the app, others from files of the repository.

mkdocs calls the functions `on_…` (see `hooks` in mkdocs.yml).
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = {
    "development/contributing.md": "CONTRIBUTING.md",
    "development/security.md": "SECURITY.md",
    "development/changelog.md": "CHANGELOG.md",
}
INLINE_CODE = re.compile(r"<code>[^<\n]+</code>")
OPTION_NAME = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")
# Where links of these files lead on the site.
SITE_LINKS = {"docs/development/architecture.md": "architecture.md", "SECURITY.md": "security.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {name: _adapt_links((ROOT / source).read_text("utf-8")) for name, source in ROOT_PAGES.items()}
    pages["reference/cli.md"] = "\n".join(_render_cli())
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace `--8<-- "session"` by the session of README.md, and `--8<-- "parameters MODEL"` by a table of them."""
    [session] = re.findall(r"^```console\n.*?^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    markdown = markdown.replace('--8<-- "session"', session)
    return re.sub(r'^--8<-- "parameters (.+)"$', lambda match: render_params(match[1]), markdown, flags=re.MULTILINE)


def render_params(model: str) -> str:
    """Return a table of the parameters of a model that comes with lsml, as `lsml models NAME` prints it."""
    from lsml_cli.registry.catalog import get_model

    rows = ["| `--with` | default | meaning | allowed |", "|---|---|---|---|"]
    for param in get_model(model).params or ():
        default = json.dumps(param.default)
        rows.append(f"| `{param.name}` | `{default}` | {_escape(param.help)} | {_escape(param.allowed)} |")
    return "\n".join(rows)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Tell browsers where inline code may be broken: not after the hyphens of an option, but between alternatives."""

    def mark_breaks(code: re.Match[str]) -> str:
        return OPTION_NAME.sub(r'<span class="option">\g<0></span>', code.group()).replace("|", "|<wbr>")

    return INLINE_CODE.sub(mark_breaks, html)


def _adapt_links(text: str) -> str:
    for target, page in SITE_LINKS.items():
        text = text.replace(f"]({target})", f"]({page})")
    return text


def _render_cli() -> Iterator[str]:
    """Yield the lines of the page about the command line."""
    from lsml_cli.cli import app

    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    yield "# Command line\n"
    yield "`lsml COMMAND --help` prints the same. `lsml --version` prints the version, `lsml --install-completion`"
    yield "teaches the shell to complete commands, options and names of models.\n"
    for name, command in commands.items():
        yield f"## lsml {name}\n"
        yield f"```text\nlsml {name} {_render_usage(command)}\n```\n"
        yield f"{_escape(command.help)}\n"
        yield from _render_options(command)
        if command.epilog:
            lines = command.epilog.splitlines()[1:]
            yield "\n```sh\n" + "\n".join(line.removeprefix("$ ") for line in lines) + "\n```\n"


def _render_usage(command: Any) -> str:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    names = [param.display_name_raw.strip("[]{}") for param in arguments]
    shown = [name if param.required else f"[{name}]" for name, param in zip(names, arguments, strict=True)]
    return " ".join([*shown, "[OPTIONS]"])


def _render_options(command: Any) -> Iterator[str]:
    """Yield the arguments and the panels of options as tables."""
    panels: dict[str, list[Any]] = {}
    for param in command.params:
        if not getattr(param, "hidden", False):
            title = "Arguments" if param.param_type_name == "argument" else param.rich_help_panel
            panels.setdefault(title, []).append(param)
    context = typer.Context(command)
    for title, params in panels.items():
        yield f"\n**{title}**\n"
        is_argument = title == "Arguments"
        yield f"| {'argument' if is_argument else 'option'} | meaning |\n|---|---|"
        for param in params:
            value = "" if is_argument else param.display_type_rich(context) or ""
            names = [param.display_name_raw.strip("[]{}")] if is_argument else [*param.opts, *param.secondary_opts]
            shown = ", ".join(f"`{name}`" for name in names) + (f" `{value}`" if value else "")
            yield f"| {shown} | {_describe(param, is_argument)} |"


def _describe(param: Any, is_argument: bool) -> str:
    """Return the help of a parameter and its default."""
    text = _escape(inspect.cleandoc(param.help or "")).replace("|", "\\|").replace("\n", " ")
    if param.required and not is_argument:
        text += " Required."
    default = param.default
    if default is not None and not isinstance(default, bool | list | tuple) and not callable(default):
        text += f" Default: `{default}`."
    return text


def _escape(text: str) -> str:
    """Escape what Markdown would take for markup; code in backquotes stays as it is."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_<>\[\]])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)
