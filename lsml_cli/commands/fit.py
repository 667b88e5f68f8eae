"""`lsml fit`: annotated tasks in, a new version of a model out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lsml_cli.commands import options

if TYPE_CHECKING:
    from lsml_cli.metrics import Metrics
    from lsml_cli.training import FitResult


def fit(
    export: Annotated[str, typer.Argument(metavar="EXPORT", help="A file of annotated tasks, or - for stdin.")],
    model: options.Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the versions of this model live.")
    ],
    label_config: options.LabelConfigFile = None,
    holdout: Annotated[
        float, typer.Option("--holdout", metavar="SHARE", help="Share of the tasks to measure with, 0 for none.")
    ] = 0.2,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Changes which tasks are held out.")] = 0,
    params: options.With = None,
    quiet: options.Quiet = False,
) -> None:
    """Train a model on the annotations of EXPORT, measure it on a hold-out, and write a new version.

    The version is promoted: DIR means it from now on wherever a model is named, and DIR@VERSION an older one.
    Accuracy, macro F1 and a table of the classes go to stdout, everything else to stderr.

    Example:

        lsml fit export.json --model text-classifier --label-config config.xml --output models/news
    """
    from lsml_cli import registry, tasks, training
    from lsml_cli.commands.console import Console
    from lsml_cli.errors import UsageError
    from lsml_cli.label_config import LabelConfig

    spec = registry.find_model(model, registry.parse_params(params or []))
    config = LabelConfig.load(label_config) if label_config else registry.trained_config(spec)
    if config is None:
        raise UsageError(f"{model} needs a label config.", "Name the labelling XML with --label-config FILE.")
    with Console(quiet) as console:
        for warning in config.warnings:
            console.note(warning)
        found = training.fit_version(
            spec,
            tasks.read_tasks(export, controls=frozenset(config.controls)),
            config,
            output,
            holdout=holdout,
            seed=seed,
            progress=console.note,
        )
        report(found)
        for sentence in sentences(found, output):
            console.note(sentence)


def report(found: FitResult) -> None:
    """Print the metrics of each control: the data of this command, so on stdout."""
    from rich.console import Console

    # Where there is no terminal, nothing may be cut off to fit one.
    console = Console(soft_wrap=True, highlight=False)
    for name, metrics in found.metrics.items():
        console.print(
            f"{name}: accuracy {metrics.accuracy:.4f}, macro F1 {metrics.macro_f1:.4f} "
            f"on {metrics.count:,} held-out tasks",
            markup=False,
        )
        console.print(_table(metrics, plain=not console.is_terminal))


def _table(metrics: Metrics, plain: bool) -> object:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None if plain else box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", no_wrap=True)
    for heading in ("precision", "recall", "F1", "support", "predicted"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in metrics.classes:
        numbers = [f"{value:.4f}" for value in (each.precision, each.recall, each.f1)]
        table.add_row(Text(each.name), *numbers, f"{each.support:,}", f"{each.predicted:,}")
    return table


def sentences(found: FitResult, output: Path) -> Iterator[str]:
    """What else there is to say, and what to run next."""
    counts = found.version.counts
    yield f"Trained on {counts['train']:,} tasks, held out {counts['holdout']:,}."
    if counts["left_out"]:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in counts["left_out"].items())
        yield f"Left out: {reasons}."
    for control, names in found.too_small.items():
        yield f'Too small to be held out, so not measured, for "{control}": {", ".join(names)}.'
    for reason, count in found.failed.items():
        yield f"{count:,} held-out tasks failed: {reason}."
    if not found.metrics:
        yield "Nothing was measured: no held-out task has an answer."
    yield f"Wrote and promoted {found.version.folder}."
    yield f"Next: lsml predict TASKS --model {output} -o predictions.json"
