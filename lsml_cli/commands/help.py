"""Lay out the help of a command: options in panels, the common ones first, and examples at the end."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from typer.core import TyperCommand, TyperGroup

from lsml_cli.commands.completion import name_models_hint
from lsml_cli.errors import UsageError

# The panels in the order in which help shows them, each with its options in their order.
PANELS: Mapping[str, tuple[str, ...]] = {
    "Input": (
        "--project",
        "--only",
        "--view",
        "--since",
        "--fields",
        "--tasks",
        "--annotated",
        "--predictions",
        "--what",
        "--annotation",
        "--from",
        "--data-key",
        "--label-column",
        "--score-column",
        "--media-prefix",
        "--id-column",
        "--limit",
        "--version",
    ),
    "Model": (
        "--model",
        "--script",
        "--label-config",
        "--with",
        "--threshold",
        "--label-map",
        "--model-version",
        "--predicted-by",
        "--versions",
    ),
    "Output": (
        "--to",
        "--output",
        "--format",
        "--shape",
        "--variant",
        "--images",
        "--keep-annotations",
        "--label-config-out",
        "--errors",
        "--report",
        "--summary",
        "--open",
        "--text",
        "--examples",
        "--json",
        "--force",
    ),
    "Training": (
        "--holdout",
        "--init-from",
        "--refit",
        "--fail-under",
        "--no-promote",
        "--skip-unchanged",
        "--dry-run",
        "--seed",
        "--train-every",
        "--jobs",
        "--burst",
        "--no-training",
    ),
    "Measurement": ("--held-out", "--include-trained", "--compare", "--fail-if-worse"),
    "Ranking": ("--by", "--accept-above", "--accepted"),
    "Versions": (
        "--promote",
        "--prune",
        "--existing",
        "--no-activate",
        "--keep-versions",
        "--delete",
        "--create-tasks",
    ),
    "Server": (
        "--host",
        "--port",
        "--basic-auth",
        "--secret-path",
        "--max-wait-ms",
        "--deadline",
        "--max-tasks",
        "--max-body",
    ),
    "Speed": ("--device", "--workers", "--batch-size", "--precision", "--fetch-concurrency"),
    "Media": (
        "--document-root",
        "--upload-root",
        "--media-root",
        "--label-studio-url",
        "--map",
        "--allow-host",
        "--media-cache",
        "--media-cache-size",
    ),
    "Reliability": (
        "--check",
        "--resume",
        "--retry-failed",
        "--skip-predicted",
        "--on-error",
        "--max-failures",
        "--timeout",
    ),
    "Settings": ("--quiet", "--verbose", "--interactive", "--config", "--show-settings", "--help"),
}
# Options that belong elsewhere in one command.
EXCEPTIONS: Mapping[tuple[str, str], str] = {
    ("pull", "--label-studio-url"): "Input",
    ("push", "--label-studio-url"): "Input",
    ("convert", "--holdout"): "Output",
    ("convert", "--seed"): "Output",
    ("rank", "--limit"): "Ranking",
    ("rank", "--include-trained"): "Ranking",
    ("evaluate", "--model-version"): "Input",
    ("evaluate", "--fail-under"): "Measurement",
    ("evaluate", "--seed"): "Measurement",
    ("show", "--model-version"): "Input",
    ("show", "--label-config"): "Input",
    ("show", "--seed"): "Output",
    ("push", "--dry-run"): "Reliability",
}

# What other programs call what a command does.
SYNONYMS: Mapping[str, str] = {
    "train": "fit",
    "retrain": "fit",
    "annotate": "predict",
    "label": "predict",
    "infer": "predict",
    "eval": "evaluate",
    "measure": "evaluate",
    "new": "init",
    "create": "init",
    "upload": "push",
    "import": "push",
    "export": "pull",
    "download": "pull",
}

_EXAMPLES = "Examples:"


class Command(TyperCommand):
    """A command whose help is laid out in panels, with the examples of its docstring at the end.

    The docstring is wrapped to the terminal, whatever its own line breaks are; a blank line begins a paragraph. Lines
    after "Examples:" are printed as they are; a further indented line continues the one before.
    """

    def __init__(self, name: str | None, **attributes: Any) -> None:
        super().__init__(name, **attributes)
        text, _, examples = inspect.cleandoc(self.help or "").partition(_EXAMPLES)
        self.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))
        if examples:
            self.epilog = "\n".join([_EXAMPLES, *_format_examples(examples)])
        self.params.sort(key=self._position)
        for param in self.params:
            if param.param_type_name == "option":
                param.rich_help_panel = self._find_panel(param)  # type: ignore[attr-defined]
                if getattr(param, "is_flag", False) and param.metavar is None:
                    param.metavar = ""  # or Typer shows <bool>

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters; --help, which click adds at the end, gets its panel too."""
        params = super().get_params(ctx)
        for param in params[len(self.params) :]:
            param.rich_help_panel, param.metavar = self._find_panel(param), ""  # type: ignore[attr-defined]
        return params

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line; if --model is missing, raise UsageError with the models that it could name."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if type(error).__name__ == "MissingParameter" and "--model" in getattr(error.param, "opts", ()):  # type: ignore[attr-defined]
                raise UsageError("Missing option '--model': which model?", name_models_hint()) from None
            raise

    def _find_panel(self, param: Any) -> str | None:
        spelling = next((spelling for spelling in param.opts if spelling.startswith("--")), "")
        if exception := EXCEPTIONS.get((str(self.name), spelling)):
            return exception
        return next((panel for panel, options in PANELS.items() if spelling in options), None)

    def _position(self, param: Any) -> tuple[int, int]:
        """Return what parameters are sorted by: arguments first, then by panel, then by the order within it."""
        panel = self._find_panel(param) if param.param_type_name == "option" else None
        if panel is None:
            return -1, 0
        options = [*PANELS[panel], *(option for (_, option), name in EXCEPTIONS.items() if name == panel)]
        return list(PANELS).index(panel), next(n for n, option in enumerate(options) if option in param.opts)


class Group(TyperGroup):
    """The group of all commands; its own options are shown like those of the commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, all of them flags, in the panel for options that are about no command."""
        params = super().get_params(ctx)
        for param in params:
            param.rich_help_panel, param.metavar = "Settings", ""  # type: ignore[attr-defined]
        return params

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that is named first; the error about an unknown one names what it is called here."""
        if args[0] in SYNONYMS and args[0] not in self.commands and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {SYNONYMS[args[0]]!r}?")
        return super().resolve_command(ctx, args)


def _format_examples(text: str) -> Iterator[str]:
    """Yield the lines of examples as one types them: with a prompt, and a backslash where a command goes on."""
    lines = [line for line in inspect.cleandoc(text).splitlines() if line]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        prompt = "" if line.startswith(" ") else "$ "
        yield f"{prompt}{line} \\" if following.startswith(" ") else f"{prompt}{line}"
