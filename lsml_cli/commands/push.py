"""`lsml push`: predictions into a Label Studio project."""

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
        str | None, typer.Option("--version", metavar="TEXT", help="Only this model version, of several in FILE.")
    ] = None,
    existing: Annotated[
        Literal["skip", "replace"],
        typer.Option("--existing", help="What becomes of predictions of the same version that a task has."),
    ] = "skip",
    no_activate: Annotated[
        bool, typer.Option("--no-activate", help="Leave the version that the project shows as it is.")
    ] = False,
    create_tasks: Annotated[
        bool, typer.Option("--create-tasks", help="Import whole tasks with their predictions, as new ones.")
    ] = False,
    delete: Annotated[
        str | None,
        typer.Option("--delete", metavar="VERSION", help="Take a version back: delete its predictions, push nothing."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, count, and send nothing.")] = False,
    errors: Annotated[
        Path | None, typer.Option("--errors", metavar="FILE", help="JSON Lines about each prediction rejected.")
    ] = None,
    summary: options.SummaryFile = None,
    quiet: options.Quiet = False,
    settings: options.SettingsFile = None,
    show_settings: options.ShowSettings = False,
) -> None:
    """Push predictions to the tasks of a project, each once: run again, it adds what is missing and nothing else.

    Everything is checked against the project's label config and its tasks before anything is sent.
    The key comes from LABEL_STUDIO_API_KEY: a personal access token or a legacy token.
    Exit code 0: all there; 3: finished, but some were rejected; 1: stopped; 2: wrong usage.

    Examples:

        lsml push predictions.json --project 3 --dry-run

        lsml pull --project 3 --only unpredicted | lsml predict - --model models/news | lsml push - --project 3

        lsml push --delete news@20261121T013000 --project 3
    """
    from lsml_cli import label_studio
    from lsml_cli.commands.console import summary as summary_file
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.errors import UsageError
    from lsml_cli.io.output_paths import require_different_files
    from lsml_cli.label_studio import push as pushing
    from lsml_cli.label_studio.push_options import PushOptions

    if delete is not None and (file is not None or create_tasks or version is not None):
        raise UsageError("--delete takes a version back and pushes nothing.", "Leave out FILE and the other options.")
    if delete is None and file is None:
        raise UsageError("What should be pushed?", "Name the file that `lsml predict` wrote, or - for standard input.")
    if create_tasks and existing == "replace":
        raise UsageError("--create-tasks makes new tasks, which have nothing to replace.", "Leave out --existing.")
    summary_file.require_writable(summary)
    require_different_files(
        {"the input": file},
        {"--errors": str(errors) if errors else None, "--summary": str(summary) if summary else None},
    )
    url = options.require_label_studio_url(label_studio_url)
    with Console(quiet) as console, label_studio.connect(url) as there:
        if file is None:
            count = pushing.delete_pushed_version(there, project, str(delete), dry_run)
            summary_file.write_summary(
                summary, {"project": project, "version": delete, "deleted": count, "dry_run": dry_run}
            )
            done = "would be deleted" if dry_run else "were deleted"
            console.note(f"{count:,} predictions of {delete} {done} from project {project}.")
            return
        asked = PushOptions(file, project, version, existing, not no_activate, create_tasks, dry_run, errors)
        pushed = pushing.push(there, asked, console)
        summary_file.write_summary(summary, pushed.to_json())
        for sentence in pushed.summary_lines():
            console.note(sentence, important=pushed.rejected > 0)
    if pushed.rejected:
        raise typer.Exit(3)
