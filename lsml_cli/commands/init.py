"""`lsml init`: the folder of a new model."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lsml_cli.commands import options

if TYPE_CHECKING:
    from lsml_cli import scaffold


def init(
    folder: Annotated[
        Path | None, typer.Argument(metavar="NAME", help="The folder to write; its name is the project's.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="A built-in model; if not given, a model of your own: model.py, one small class.",
        ),
    ] = None,
    script: Annotated[
        str | None,
        typer.Option(
            "--script",
            metavar="FILE[:CLASS]",
            help="Copy an existing backend with what it imports, and run it as it is.",
        ),
    ] = None,
    label_config: Annotated[
        Path | None,
        typer.Option(
            "--label-config", "-c", metavar="FILE", help="Your labelling XML: a model of your own fills its controls."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files; nothing is removed.")] = False,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Ask for what is not given.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a folder with a model that runs at once: sample tasks, tests, README, Dockerfile, compose file, workflow.

    Every command accepts the folder as `--model NAME`. Works offline, and asks nothing without --interactive.

    Examples:

        lsml init moods

        lsml init parts --label-config config.xml

        lsml init rooms --model image-classifier

        lsml init tickets --script ../old-backend/model.py
    """
    from lsml_cli import scaffold
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.errors import UsageError, suggest_names

    if interactive:
        folder = folder or Path(_ask("Name of the project, which is that of its folder"))
        if model is None and script is None:
            model, script = _ask_for_kind()
    if folder is None:
        raise UsageError("The project has no name.", "Give it one: lsml init moods; `lsml init -i` asks for it.")
    if model is not None and script is not None:
        raise UsageError("--model and --script are two kinds of project.", "Leave out one of them.")
    if model is not None and model not in scaffold.PROJECT_KINDS:
        raise UsageError(
            f"There is no kind of project {model!r}.",
            f"{suggest_names(model, scaffold.PROJECT_KINDS, 'There is')} Without --model you get a model of your own.",
        )
    kind = model or (scaffold.BACKEND_SCRIPT if script else scaffold.OWN_MODEL)
    project = scaffold.ProjectOptions(folder, kind, _resolve_script(script) if script else None, label_config, force)
    with Console(quiet) as console:
        written = scaffold.write_project(project)
        console.note(f"Wrote {folder} ({len(written.files)} files): {', '.join(written.files)}.")
        for control, reason in written.plan.empty if written.plan is not None else ():
            console.note(f"Left empty: {control}: {reason}.")
        for step in _next_steps(project, written):
            console.note(f"Next: {step}")


def _next_steps(project: scaffold.ProjectOptions, written: scaffold.WrittenProject) -> list[str]:
    """Return what to do next; files and commands that exist."""
    from lsml_cli import scaffold

    steps = []
    enter = f"cd {shlex.quote(str(project.folder))} && "
    if written.missing_modules and written.install_extra is not None:
        steps.append(
            f"lsml doctor {written.install_extra}   # says how to install {', '.join(written.missing_modules)}"
        )
    if "annotated.json" in written.files:
        steps.append(f"{enter}lsml fit annotated.json --model . -c label_config.xml -o models/{project.name}")
    elif written.plan is not None or project.script is not None:
        steps.append(f"{enter}lsml predict tasks.json --model . -c label_config.xml -o predictions.json")
    else:
        steps.append(
            f"export annotated tasks of your project; {project.folder / 'README.md'} says how to train on them"
        )
    if written.plan is not None:
        steps.append(f"replace the rules in {project.folder / 'model.py'}")
    if project.kind == scaffold.OWN_MODEL:
        steps.append(f"lsml check {shlex.quote(str(project.folder))}   # says whether the model keeps lsml's contract")
    return steps


def _ask(question: str, default: str | None = None) -> str:
    """Return the answer to a question.

    Raises:
        UsageError: stdin ends without an answer.
    """
    from lsml_cli.errors import UsageError

    try:
        return str(typer.prompt(question, default=default, err=True))
    except typer.Abort:
        if sys.stdin.isatty():  # ctrl-C
            raise
        raise UsageError(
            "--interactive asks questions, and stdin ended without an answer.",
            "Answer in a terminal, or give everything as options: lsml init moods --model MODEL",
        ) from None


def _ask_for_kind() -> tuple[str | None, str | None]:
    """Ask for the kind of project; return the values of --model and --script."""
    from lsml_cli import scaffold

    kinds = [scaffold.OWN_MODEL, scaffold.BACKEND_SCRIPT, *scaffold.PROJECT_KINDS]
    kind = _ask("What kind of model? " + ", ".join(kinds), default=scaffold.OWN_MODEL)
    if kind == scaffold.BACKEND_SCRIPT:
        return None, _ask("Which file, and which class in it (path/to/model.py:Class)?")
    return (None if kind == scaffold.OWN_MODEL else kind), None


def _resolve_script(script: str) -> tuple[Path, str]:
    """Return the file and the class of `--script`.

    Raises:
        UsageError: there is no such file.
        UnknownModel: the file has no such class, or several.
    """
    from lsml_cli.errors import UsageError
    from lsml_cli.registry.project_file import find_single_class

    name = find_single_class(script) or script
    file, _, class_name = name.rpartition(":")
    if not file.endswith(".py") or not Path(file).is_file():
        raise UsageError(f"There is no script {script}.", "Name a Python file: --script path/to/model.py[:Class]")
    return Path(file), class_name
