"""`lsml pull`: write the tasks of a Label Studio project to a pipe or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lsml_cli.commands import options


def pull(
    project: options.Project,
    label_studio_url: options.LabelStudioUrl = None,
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to write; - is stdout. A file appears when it is complete."
        ),
    ] = "-",
    format: Annotated[
        Literal["json", "jsonl"] | None,
        typer.Option("--format", help="Default: by the suffix of --output; stdout is jsonl."),
    ] = None,
    only: Annotated[
        Literal["all", "annotated", "unlabelled", "unpredicted"],
        typer.Option(
            "--only",
            metavar="WHICH",
            help="all; annotated: with an annotation; unlabelled: without one (a skipped one is none); or "
            "unpredicted: without any prediction.",
        ),
    ] = "all",
    view: Annotated[
        int | None,
        typer.Option(
            "--view",
            min=1,
            metavar="N",
            help="Only the tasks of a Data Manager tab: the number behind ?tab= in its address.",
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="DATE",
            help="Only tasks changed or annotated since then: 2026-11-21, 2026-11-21T08:30:00Z.",
        ),
    ] = None,
    fields: Annotated[
        str | None,
        typer.Option(
            "--fields",
            metavar="NAMES",
            help="all: as in the JSON export; data: ids and data, much faster; or id,data,meta,...",
        ),
    ] = None,
    label_config_out: Annotated[
        Path | None,
        typer.Option("--label-config-out", metavar="FILE", help="Also write the project's label config; - is stdout."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run after its last task.")] = False,
    summary: options.SummaryFile = None,
    quiet: options.Quiet = False,
    settings: options.SettingsFile = None,
    show_settings: options.ShowSettings = False,
) -> None:
    """Write the tasks of a project, one JSON object per line, ordered by id.

    The output is input for `lsml predict -` and `lsml fit -`. Annotated tasks come as in the JSON export, with their
    annotations; tasks that are only to be predicted come with id and data alone.
    The key comes from LABEL_STUDIO_API_KEY: a personal access token or a legacy token.

    Examples:

        lsml pull --project 3 --only annotated
            --label-config-out config.xml -o annotated.jsonl

        lsml pull --project 3 --only unlabelled |
            lsml predict - --model models/news | head -3
    """
    from lsml_cli import label_studio
    from lsml_cli.commands.console import summary as summary_file
    from lsml_cli.commands.console.progress import Console, is_on_terminal
    from lsml_cli.io.output_paths import require_different_files, require_one_stdout
    from lsml_cli.label_studio import pull as pulling

    summary_file.require_writable(summary)
    require_one_stdout({"--output": output, "--label-config-out": label_config_out, "--summary": summary})
    require_different_files(
        {},
        {
            "--output": output,
            "--label-config-out": str(label_config_out) if label_config_out else None,
            "--summary": str(summary) if summary else None,
        },
    )
    pull_options = pulling.PullOptions(
        project=project,
        task_filter=only,
        view=view,
        since=pulling.parse_date(since) if since else None,
        fields=fields,
        output=output,
        format=format,
        resume=resume,
    )
    url = options.require_label_studio_url(label_studio_url)
    with Console(quiet, allows_bar=not is_on_terminal(output)) as console, label_studio.connect(url) as client:
        if label_config_out is not None:
            pulling.write_label_config(client, project, label_config_out)
        result = pulling.pull_to_output(client, pull_options, console)
        console.end_progress()
        summary_file.write_summary(summary, result.to_json())
        console.note(result.summary_line())
