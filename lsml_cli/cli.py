"""Define the `lsml` command; `main` is the only place that turns errors into messages and exit codes."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from lsml_cli._version import __version__
from lsml_cli.commands.check import check
from lsml_cli.commands.console.stdout import emit
from lsml_cli.commands.convert import convert
from lsml_cli.commands.doctor import doctor
from lsml_cli.commands.evaluate import evaluate
from lsml_cli.commands.fit import fit
from lsml_cli.commands.help import Command, Group
from lsml_cli.commands.init import init
from lsml_cli.commands.jobs import jobs
from lsml_cli.commands.models import models
from lsml_cli.commands.predict import predict
from lsml_cli.commands.pull import pull
from lsml_cli.commands.push import push
from lsml_cli.commands.rank import rank
from lsml_cli.commands.serve import serve
from lsml_cli.commands.settings.settings import SettingsCommand
from lsml_cli.commands.show import show
from lsml_cli.commands.try_model import try_model
from lsml_cli.commands.versions import versions
from lsml_cli.commands.worker import worker
from lsml_cli.errors import LsmlError, OutputClosed
from lsml_cli.terminal import escape_controls, print_details, print_message

EXIT_INTERRUPTED = 130


class _EscapingGroup(Group):
    """Show control characters of values escaped in the usage errors that Typer prints itself."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if hasattr(error, "format_message"):  # the errors of a command line
                error.message = escape_controls(error.message)  # type: ignore[attr-defined]
            raise


app = typer.Typer(
    name="lsml",
    cls=_EscapingGroup,
    help="Pre-annotate Label Studio tasks in bulk, and retrain from the annotations that come back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=SettingsCommand)(predict)
app.command("try", cls=Command)(try_model)
app.command(cls=SettingsCommand)(fit)
app.command(cls=SettingsCommand)(evaluate)
app.command(cls=SettingsCommand)(rank)
app.command(cls=SettingsCommand)(show)
app.command(cls=SettingsCommand)(convert)
app.command(cls=SettingsCommand)(serve)
app.command(cls=SettingsCommand)(pull)
app.command(cls=SettingsCommand)(push)
app.command(cls=Command)(init)
app.command(cls=Command)(check)
app.command(cls=Command)(versions)
app.command(cls=Command)(jobs)
app.command(cls=Command)(worker)
app.command(cls=Command)(models)
app.command(cls=Command)(doctor)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        emit(f"lsml {__version__}")
        raise typer.Exit


@app.callback()
def _root_callback(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line.

    An error is printed as one sentence and the next action; LSML_DEBUG=1 adds the traceback.
    """
    _reopen_standard_streams()
    try:
        app()
    except OutputClosed as closed:
        sys.exit(closed.exit_code)
    except LsmlError as error:
        _print_error(error.message, error.hint)
        if error.exit_code == EXIT_INTERRUPTED:
            _exit_immediately()
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        _exit_without_module(error)
    except OSError as error:
        _print_error(_describe_system_error(error), None)
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == EXIT_INTERRUPTED:  # Typer prints nothing after ctrl-C
            _print_error("Interrupted.", None)
            _exit_immediately()
        if _is_closed_pipe(ended):  # which is not a failure
            sys.exit(0)
        raise
    except Exception as error:
        _exit_after_bug(error)


def _describe_system_error(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.filename:
        return f"{error.filename}: {reason}."
    if error.errno == errno.ENOSPC:
        return "No space is left on a disk that lsml writes to."
    return f"The operating system refused: {reason}."


def _is_closed_pipe(ended: SystemExit) -> bool:
    """Tell whether the reader of standard output has closed it, as `| head` does, while Typer or Rich printed."""
    if type(sys.stdout).__name__ == "PacifyFlushWrapper":  # how Typer marks it
        return True
    cause = ended.__context__  # Rich prints the help, and ends with 1; a usage error would be the cause's own context
    return isinstance(cause, BrokenPipeError) and cause.__context__ is None


def _exit_without_module(error: ModuleNotFoundError) -> NoReturn:
    """Name the extra that has the module a built-in model asked for."""
    from lsml_cli.registry import extras

    module = (error.name or "").partition(".")[0]
    extra = extras.find_extra(module)
    if extra is None:
        _exit_after_bug(error)
    _print_error(f"This model needs {module}, which is not installed.", extras.install_command(extra))
    sys.exit(1)


def _exit_after_bug(error: Exception) -> NoReturn:
    _print_error(
        f"This is a bug in lsml: {type(error).__name__}: {error}",
        "Run it again with LSML_DEBUG=1 for the traceback, and please report it.",
    )
    sys.exit(1)


def _exit_immediately() -> NoReturn:
    """Exit without waiting for threads that still encode or fetch; cleaning up is done by now."""
    sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED)


def _reopen_standard_streams() -> None:
    """Open descriptors 0 to 2 if they are closed, or the first file that is opened would become standard output."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, PTH123


def _print_error(message: str, hint: str | None) -> None:
    if os.environ.get("LSML_DEBUG"):
        import traceback

        print_details(traceback.format_exc())
    print_message(message, hint)
