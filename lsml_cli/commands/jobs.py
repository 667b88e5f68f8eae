"""`lsml jobs`: list the training jobs of `lsml serve`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lsml_cli.commands import options
from lsml_cli.commands.console.stdout import print_json
from lsml_cli.commands.console.tables import Column, print_table

if TYPE_CHECKING:
    from lsml_cli.server.job_record import Job

COLUMNS = (
    Column("job"),
    Column("project", "number", drop=3),
    Column("state"),
    Column("why", "text"),
    Column("created", drop=1),  # the job's name begins with it
    Column("took", "number", drop=2),
    Column("version or reason", "text"),
)


def jobs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the versions: --versions of lsml serve.")],
    project: Annotated[
        int | None, typer.Option("--project", metavar="ID", help="Only the jobs of this Label Studio project.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array, for programs.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """List the training jobs of a server, newest first, each with its version or the reason why it failed.

    Reads files below DIR; neither the server nor its queue has to run. The last hundred finished jobs are kept.

    Examples:

        lsml jobs models/served

        lsml jobs models/served --json |
            jq -r '.[] | select(.state == "failed") | .reason'
    """
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.errors import UsageError
    from lsml_cli.server.job_record import job_to_dict
    from lsml_cli.server.job_store import JobStore

    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.", "Name the folder that `lsml serve --versions` was given.")
    with Console(quiet) as console:
        job_list = JobStore(folder).list_jobs(lambda sentence: console.note(sentence, important=True))
        job_list = [job for job in job_list if project in (None, job.project)]
        if as_json:
            print_json([job_to_dict(job) | {"seconds": job.seconds} for job in job_list])
        elif job_list:
            _print_jobs(job_list)
        else:
            console.note(f"There are no jobs in {folder}{f' for project {project}' if project is not None else ''}.")


def _print_jobs(job_list: Sequence[Job]) -> None:
    rows = [
        [
            job.id,
            str(job.project),
            job.state,
            job.why,
            job.created[:-5] + "Z",
            _format_duration(job),
            _format_outcome(job),
        ]
        for job in job_list
    ]
    print_table(COLUMNS, rows)


def _format_duration(job: Job) -> str:
    return f"{job.seconds:,.1f} s" if job.seconds is not None else "-"


def _format_outcome(job: Job) -> str:
    if job.state == "running":
        return job.progress or "-"
    return job.reason or job.version or "-"
