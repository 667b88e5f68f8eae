"""`lsml doctor`: check which extras are installed and whether they work."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lsml_cli.registry.extras import CheckResult


def doctor(
    extras: Annotated[
        list[str] | None,
        typer.Argument(metavar="[EXTRA]...", help="Check only these, and require them: vision, openmmlab, redis."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array, for programs.")] = False,
) -> None:
    """Check which extras are installed and whether they work, and print the command that repairs them.

    Exit code 1: something is broken, or a named extra is missing. An extra that was never installed is not an error.
    Heavy toolkits are imported and tried, which takes some seconds.

    Examples:

        lsml doctor

        lsml doctor openmmlab &&
            lsml fit boxes.json --model object-detector --output models/boxes
    """
    from lsml_cli.commands.console.stdout import emit, print_json
    from lsml_cli.commands.console.tables import Column, print_table
    from lsml_cli.registry.extras import check_installation
    from lsml_cli.runtime import is_one_file

    findings = list(check_installation(extras or ()))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        rows = [(finding.part, finding.state, finding.what, _format_remarks(finding)) for finding in findings]
        columns = (Column("part"), Column("state"), Column("for", "text"), Column("remarks", "text"))
        print_table(columns, rows)
        for finding in findings:
            if finding.state == "broken" and finding.remedy:
                beginning = f"{finding.part}: " if is_one_file() else f"To repair {finding.part}, run:  "
                emit("", beginning + finding.remedy)
        missing = [finding for finding in findings if finding.state == "not installed" and finding.remedy]
        if missing and not is_one_file():
            emit("", "To install what is missing, run:")
            emit(*(f"  {command}" for command in dict.fromkeys(finding.remedy for finding in missing)))
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


def _format_remarks(finding: CheckResult) -> str:
    """Return what was found. A command stands below the table, where it can be copied, and never in a narrow column."""
    from lsml_cli.runtime import is_one_file

    if finding.state != "not installed":
        return finding.detail
    return (finding.remedy or "") if is_one_file() else "see below" if finding.remedy else ""
