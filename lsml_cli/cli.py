"""The `lsml` command. `main` is the only place where an error becomes a message and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from lsml_cli import __version__
from lsml_cli.commands.fit import fit
from lsml_cli.commands.predict import predict
from lsml_cli.errors import LsmlError, OutputClosed

app = typer.Typer(
    name="lsml",
    help="Pre-annotate Label Studio tasks in bulk, and retrain from the annotations that come back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(predict)
app.command()(fit)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"lsml {__version__}")
        raise typer.Exit


@app.callback()
def _lsml(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. An error is one sentence and the next action; LSML_DEBUG=1 shows the traceback as well."""
    try:
        app()
    except OutputClosed as closed:
        sys.exit(closed.exit_code)
    except LsmlError as error:
        _explain(error.message, error.hint)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _explain("Interrupted.", None)
        sys.exit(130)
    except Exception as error:
        _explain(
            f"This is a bug in lsml: {type(error).__name__}: {error}",
            "Run it again with LSML_DEBUG=1 for the traceback, and please report it.",
        )
        sys.exit(1)


def _explain(message: str, hint: str | None) -> None:
    if os.environ.get("LSML_DEBUG"):
        import traceback

        traceback.print_exc()
    print(f"lsml: {message}" + (f"\n      {hint}" if hint else ""), file=sys.stderr)
