"""Read the documentation: its code blocks, and the commands of lsml in them."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer
from markdown_it import MarkdownIt

from lsml_cli.cli import app
from lsml_cli.models.loading import load_class
from lsml_cli.registry.model_location import BUILT_IN
from lsml_cli.registry.resolve import parse_params
from tests.helpers.cli import ROOT, build_command

DOCS = ROOT / "docs"
PLACEHOLDER = "…"  # stands for what a reader puts there
_ASSIGNMENT = re.compile(r"\w+=")


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        language: That of a fenced block, "" for an indented one.
        code: The text, without fences and indentation.
        line: Where it begins, from 1.
    """

    language: str
    code: str
    line: int

    @property
    def shell(self) -> str:
        """The commands in the block, without what they print; empty for other languages."""
        if self.language == "console":
            return "".join(re.findall(r"^\$ ((?:.*\\\n)*.*\n)", self.code, re.MULTILINE))
        return self.code if self.language in ("", "sh") else ""


def read_pages() -> dict[str, str]:
    """Return the text of README.md and of the pages of docs/, by their paths below the repository."""
    paths = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths}


def read_blocks(text: str) -> Iterator[Block]:
    """Yield the code blocks of a page, also those within lists."""
    for token in MarkdownIt().parse(text):
        if token.type in ("fence", "code_block"):
            yield Block(token.info.strip(), token.content, (token.map or [0])[0] + 1)


def read_inline_code(text: str) -> Iterator[str]:
    """Yield what stands between backquotes in the sentences, lists and tables of a page."""
    for token in MarkdownIt().enable("table").parse(text):
        for child in token.children or ():
            if child.type == "code_inline":
                yield child.content


def read_examples(page: str, heading: str) -> dict[str, str]:
    """Return the code blocks below a heading of a page of docs/ by their language; each has one."""
    text = (DOCS / page).read_text("utf-8").split(f"\n{heading}\n")[1]
    section = re.split(r"^#+ ", text, maxsplit=1, flags=re.MULTILINE)[0]
    return dict(re.findall(r"^```(\w+)\n(.*?)^```", section, re.MULTILINE | re.DOTALL))


def split_commands(shell: str) -> Iterator[list[str]]:
    """Yield the words of each command of lsml in some lines of shell, from its name on.

    Placeholders are left out, and so are the brackets around what is optional.
    """
    lines = re.sub(r"\\\n", " ", shell)
    lines = re.sub(r"(^|\s)#.*$", "", lines, flags=re.MULTILINE)
    lexer = shlex.shlex(lines, posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t\r", "", True
    command: list[str] = []
    for word in [*lexer, "\n"]:
        if not set(word) <= set("();<>|&\n"):
            command.append(word)
            continue
        words = list(itertools.dropwhile(_ASSIGNMENT.match, command))
        if words[:1] == ["lsml"]:
            shown = [word for word in words if word != PLACEHOLDER]
            yield [word.strip("[]") if word[0] == "[" or word[-1] == "]" else word for word in shown]
        command = []


def find_mistake(words: list[str], *, is_complete: bool = True) -> str | None:
    """Return what lsml would object to in a command line before it does anything; None if it would not.

    Args:
        words: "lsml", the name of a command, its arguments and options.
        is_complete: Whether nothing is left out: what is required is there, and every option has its value.
    """
    group: Any = build_command(app)
    if len(words) < 2 or words[1].startswith("-"):
        known = {option for param in group.params for option in param.opts} | {"--help", "--install-completion"}
        unknown = [word for word in words[1:] if word not in known | {"--show-completion"}]
        return f"No such option: {unknown[0]}" if unknown else None
    if words[1] not in group.commands:
        return f"No such command: {words[1]}"
    command = group.commands[words[1]]
    if not is_complete:
        known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)} | {"--help"}
        unknown = [word for word in words[2:] if re.match("--?[a-z]", word) and word.partition("=")[0] not in known]
        return f"No such option: {unknown[0]}" if unknown else None
    try:
        with command.make_context(words[1], words[2:]) as context:
            return _find_wrong_param(context.params)
    except typer.Exit:  # --help
        return None
    except Exception as error:
        return getattr(error, "format_message", error.__str__)()


def _find_wrong_param(values: dict[str, Any]) -> str | None:
    """Return what is wrong with the parameters that --with gives to a built-in model."""
    if values.get("model") not in BUILT_IN:
        return None
    declared = load_class(BUILT_IN[values["model"]]).declared_params() or {}
    for name, value in parse_params(list(values.get("model_params") or values.get("params") or ())).items():
        if name not in declared:
            return f"{values['model']} has no parameter {name}"
        if not declared[name].accepts(value):
            return f"{name}={value!r} is not allowed"
    return None
