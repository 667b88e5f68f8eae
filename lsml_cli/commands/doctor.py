"""`lsml doctor`: what is installed, and whether it works."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer


def doctor(
    extras: Annotated[
        list[str] | None,
        typer.Argument(metavar="[EXTRA]...", help="Look at these alone, and insist on them: vision, openmmlab, redis."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array, for programs.")] = False,
) -> None:
    """Say which extras are installed, whether they work, and what to run where they do not.

    Exits with 1 when something is broken, or when an extra that was asked for is not there. What was never installed is
    no fault. Heavy toolkits are imported and tried, which takes some seconds.

    Examples:

        lsml doctor

        lsml doctor openmmlab && lsml fit boxes.json --model object-detector --output models/boxes
    """
    from lsml_cli.commands.console.progress import emit
    from lsml_cli.commands.console.tables import print_table
    from lsml_cli.registry.extras import check_installation

    found = list(check_installation(extras or ()))
    if as_json:
        import orjson

        emit(orjson.dumps([asdict(finding) for finding in found], option=orjson.OPT_INDENT_2).decode())
    else:
        rows = [
            (each.part, each.state, each.what, each.detail if each.state != "not installed" else each.remedy or "")
            for each in found
        ]
        print_table(("part", "state", "for", "remarks"), rows)
        for each in found:
            if each.state == "broken" and each.remedy:
                emit("", f"To mend {each.part}, run:  {each.remedy}")
    if any(each.state == "broken" for each in found):
        raise typer.Exit(1)
