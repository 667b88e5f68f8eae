"""`lsml serve`: a model behind Label Studio's ML-backend protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsml_cli.commands import completion, options
from lsml_cli.commands.media_options import MediaOptions


def serve(
    folder: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="The model, instead of --model: a folder that lsml init wrote."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            autocompletion=completion.complete_models,
            help="A built-in model, a trained version, or path/to/file.py:Class.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="Address to listen on; 0.0.0.0 for other machines and Docker.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, metavar="N", help="Port to listen on; 0 for any free one.")
    ] = 9090,
    model_params: options.ModelParams = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = None,
    workers: Annotated[
        int, typer.Option("--workers", "-w", min=1, metavar="N", help="Threads that fetch and encode images ahead.")
    ] = 4,
    threshold: options.Threshold = None,
    label_map: options.LabelMap = None,
    max_wait_ms: Annotated[
        float,
        typer.Option(
            "--max-wait-ms", min=0.0, max=1000.0, metavar="N", help="How long a task waits for others to fill a batch."
        ),
    ] = 2.0,
    deadline: Annotated[
        float,
        typer.Option(
            "--deadline",
            min=0.1,
            metavar="SECONDS",
            help="Answer after this long with what is done; Label Studio gives up after 100.",
        ),
    ] = 90.0,
    max_tasks: Annotated[
        int,
        typer.Option("--max-tasks", min=1, metavar="N", help="Largest number of tasks in one request; the rest wait."),
    ] = 50_000,
    max_body: Annotated[
        int, typer.Option("--max-body", min=1, metavar="MB", help="Largest size of one request.")
    ] = 256,
    basic_auth: Annotated[
        str | None,
        typer.Option(
            "--basic-auth",
            metavar="USER:PASS",
            envvar="LSML_BASIC_AUTH",
            show_envvar=False,
            help="User and password that are required; safer in the variable LSML_BASIC_AUTH.",
        ),
    ] = None,
    secret_path: Annotated[
        str | None,
        typer.Option(
            "--secret-path",
            metavar="PATH",
            envvar="LSML_SECRET_PATH",
            show_envvar=False,
            help="Answer only below /PATH/, which also admits webhooks: they carry no password.",
        ),
    ] = None,
    label_studio_url: options.LabelStudioUrl = None,
    versions: Annotated[
        Path | None,
        typer.Option("--versions", metavar="DIR", help="Turn training on: the versions of each project go here."),
    ] = None,
    jobs: Annotated[
        str,
        typer.Option(
            "--jobs", metavar="embedded|redis://…", help="Where training runs: on this machine, or on RQ workers."
        ),
    ] = "embedded",
    train_every: Annotated[
        int | None,
        typer.Option("--train-every", min=1, metavar="N", help="Train after N new or changed annotations."),
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under",
            metavar="METRIC=VALUE",
            help="Do not promote a version below this; the old one stays in use. Repeat.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="HOST",
            help="Also fetch media from this host; '*' for any public one. Repeat.",
        ),
    ] = None,
    document_root: options.DocumentRoot = None,
    upload_root: options.UploadRoot = None,
    maps: options.MediaMaps = None,
    media_cache: options.MediaCache = None,
    media_cache_size: options.MediaCacheSize = "10G",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log a line for each request.")] = False,
    settings: options.SettingsFile = None,
    show_settings: options.ShowSettings = False,
) -> None:
    """Serve a model over Label Studio's ML-backend protocol: predictions while people label, and training.

    In Label Studio: project, Settings, Model, Connect Model, this server's URL. Since 1.23 it refuses servers on
    private addresses unless it was started with USE_DEFAULT_BANNED_SUBNETS=false.
    Runs until ctrl-C or SIGTERM; requests that have begun are finished. The log goes to stderr.

    Examples:

        lsml serve --model models/news

        lsml serve --model models/news --versions models/served
            --label-studio-url http://localhost:8080
    """
    from lsml_cli.errors import UsageError
    from lsml_cli.inference import plan
    from lsml_cli.media.fetcher import AllowedHosts
    from lsml_cli.registry import resolve
    from lsml_cli.server import runner
    from lsml_cli.server.serve_options import ServeOptions

    if model is not None and folder is not None:
        raise UsageError(f"Which model should be served, {folder} or {model}?", "Leave out one of them.")
    model = folder if model is None else model
    if model is None:
        raise UsageError("Which model should be served?", completion.name_models_hint())
    runner.serve(
        ServeOptions(
            model=model,
            params=resolve.parse_params(model_params or []),
            host=host,
            port=port,
            device=device,
            batch_size=batch_size,
            workers=workers,
            threshold=threshold,
            label_map=plan.read_label_map(label_map) if label_map else {},
            max_wait=max_wait_ms / 1000,
            deadline=deadline,
            max_tasks=max_tasks,
            max_body_bytes=max_body << 20,
            basic_auth=basic_auth,
            secret_path=secret_path,
            label_studio_url=label_studio_url,
            versions=versions,
            jobs=jobs,
            train_every=train_every,
            fail_under=tuple(fail_under or ()),
            media=MediaOptions(
                document_root,
                upload_root,
                label_studio_url,
                tuple(maps or ()),
                media_cache,
                media_cache_size if media_cache else None,
            ).build(
                root=None,  # no path of a request is ever read
                allowed_hosts=AllowedHosts(tuple(allow_host or ())),
            ),
            verbose=verbose,
        )
    )
