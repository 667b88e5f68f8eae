"""`lsml push`: push predictions to a Label Studio project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lsml_cli.commands import options


def push(
    project: options.Project,
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="What `lsml predict` wrote, in either shape; - for stdin.")
    ] = None,
    label_studio_url: options.LabelStudioUrl = None,
    version: Annotated[
        str | None,
        typer.Option("--version", metavar="TEXT", help="Push only this model version; needed if FILE has several."),
    ] = None,
    existing: Annotated[
        Literal["skip", "replace"],
        typer.Option(
            "--existing", help="If a task has a prediction of this version: skip the task, or replace the prediction."
        ),
    ] = "skip",
    no_activate: Annotated[
        bool, typer.Option("--no-activate", help="Do not make this the version that the project shows.")
    ] = False,
    create_tasks: Annotated[
        bool, typer.Option("--create-tasks", help="Import whole tasks as new ones, together with their predictions.")
    ] = False,
    delete: Annotated[
        str | None,
        typer.Option("--delete", metavar="VERSION", help="Delete the predictions of this version, and push nothing."),
    ] = None,
    keep_versions: Annotated[
        int | None,
        typer.Option(
            "--keep-versions",
            metavar="N",
            min=1,
            help="After a complete push, delete the predictions of older versions of this model, except the newest N.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and count everything, but send nothing.")] = False,
    errors: Annotated[
        Path | None,
        typer.Option(
            "--errors",
            metavar="FILE",
            help="Write a JSON line about each rejected prediction: task, place, stage, reason; - is stdout.",
        ),
    ] = None,
    summary: options.SummaryFile = None,
    quiet: options.Quiet = False,
    settings: options.SettingsFile = None,
    show_settings: options.ShowSettings = False,
) -> None:
    """Push predictions to the tasks of a project. Running it again adds only those that are missing.

    All predictions are checked against the project's label config and tasks before the first is sent.
    The key comes from LABEL_STUDIO_API_KEY: a personal access token or a legacy token.
    Exit code 0: all are there; 3: finished, but some were rejected; 1: stopped; 2: wrong usage.

    Examples:

        lsml push predictions.json --project 3 --dry-run

        lsml pull --project 3 --only unpredicted |
            lsml predict - --model models/news | lsml push - --project 3

        lsml push --delete news@20261121T013000 --project 3
    """
    from lsml_cli import label_studio
    from lsml_cli.commands.console import summary as summary_file
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.errors import UsageError
    from lsml_cli.io.output_paths import require_different_files, require_one_stdout
    from lsml_cli.label_studio import push as pushing
    from lsml_cli.label_studio.push_options import PushOptions

    if delete is not None and (file is not None or create_tasks or version is not None or keep_versions is not None):
        raise UsageError("--delete deletes a version and pushes nothing.", "Leave out FILE and the other options.")
    if delete is None and file is None:
        raise UsageError("What should be pushed?", "Name the file that `lsml predict` wrote, or - for standard input.")
    if create_tasks and existing == "replace":
        raise UsageError(
            "--create-tasks creates new tasks, which have no predictions to replace.", "Leave out --existing."
        )
    if create_tasks and keep_versions is not None:
        raise UsageError(
            "--create-tasks pushes to new tasks only, so --keep-versions would delete what the others have.",
            "Leave out --keep-versions.",
        )
    summary_file.require_writable(summary)
    require_one_stdout({"--errors": errors, "--summary": summary})
    require_different_files(
        {"the input": file},
        {"--errors": str(errors) if errors else None, "--summary": str(summary) if summary else None},
    )
    url = options.require_label_studio_url(label_studio_url)
    with Console(quiet) as console, label_studio.connect(url) as client:
        if file is None:
            console.start_phase("deleting", "predictions")
            count = pushing.delete_pushed_version(client, project, str(delete), dry_run)
            console.end_progress()
            summary_file.write_summary(
                summary, {"project": project, "version": delete, "deleted": count, "dry_run": dry_run}
            )
            done = "would be deleted" if dry_run else "were deleted"
            console.note(f"{count:,} predictions of {delete} {done} from project {project}.")
            return
        push_options = PushOptions(
            file, project, version, existing, not no_activate, create_tasks, dry_run, errors, keep_versions
        )
        result = pushing.push(client, push_options, console)
        console.end_progress()
        summary_file.write_summary(summary, result.to_json())
        for line in result.summary_lines():
            console.note(line, important=result.rejected > 0)
    if result.rejected:
        raise typer.Exit(3)
