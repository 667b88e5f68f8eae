"""`lsml try`: predict a few texts or files that are named on the command line, and print the answers to read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lsml_cli.commands import options

if TYPE_CHECKING:
    from lsml_cli.models.base import Model
    from lsml_cli.schema.label_config import LabelConfig
    from lsml_cli.schema.predictions import Outcome, Region

MAX_TEXT = 48  # characters of an item or of a value in the table


def try_model(
    items: Annotated[
        list[str],
        typer.Argument(
            metavar="ITEM...", help="Texts, or paths and URLs of images and other media; - reads texts from stdin."
        ),
    ],
    model: options.ModelName,
    label_config: options.LabelConfigFile = None,
    device: options.Devices = "auto",
    threshold: options.Threshold = None,
    label_map: options.LabelMap = None,
    model_params: options.ModelParams = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON line for each item, for programs.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Predict single items, and print labels and scores to read: a look at a model that was just trained.

    Exit code 0: all predicted; 3: an item failed; 1: the model cannot be used; 2: wrong usage.

    Examples:

        lsml try --model models/sms "You have won a prize" "Lunch at noon?"

        lsml try --model models/rooms kitchen.jpg
    """
    _try(
        TryArguments(
            items=tuple(items),
            model=model,
            label_config=label_config,
            device=device,
            threshold=threshold,
            label_map=label_map,
            params=tuple(model_params or ()),
            as_json=as_json,
            quiet=quiet,
        )
    )


@dataclass(frozen=True)
class TryArguments:
    """What `lsml try` was called with; each field is the option of that name."""

    items: tuple[str, ...]
    model: str
    label_config: Path | None
    device: str
    threshold: float | None
    label_map: Path | None
    params: tuple[str, ...]
    as_json: bool
    quiet: bool


def _try(arguments: TryArguments) -> None:
    import orjson

    from lsml_cli.commands.console.progress import Console
    from lsml_cli.commands.console.stdout import emit
    from lsml_cli.inference.loaded_model import load_model
    from lsml_cli.inference.plan import read_label_map
    from lsml_cli.io.reserved_stdout import reserve_stdout
    from lsml_cli.media.fetcher import Media
    from lsml_cli.registry import resolve
    from lsml_cli.schema.predictions import Failure

    spec = resolve.find_model(arguments.model, resolve.parse_params(list(arguments.params)))
    config = options.load_label_config(arguments.label_config, spec, arguments.model)
    items = tuple(_read_items(arguments.items))
    tasks = [{"data": _make_data(item, config, spec.model_class())} for item in items]
    outcomes: list[Outcome] = []
    with reserve_stdout(), Console(arguments.quiet) as console:
        for warning in config.warnings:
            console.note(warning)
        with load_model(
            spec,
            config,
            label_map=read_label_map(arguments.label_map) if arguments.label_map else {},
            threshold=arguments.threshold,
            device=arguments.device,
            media=Media(Path(), confined=False),
        ) as loaded:
            for note in loaded.notes:
                console.note(note)
            outcomes = [outcome for _, outcome in loaded.predict(tasks)]
    if arguments.as_json:
        emit(*(orjson.dumps(_to_json(*pair)).decode() for pair in zip(items, outcomes, strict=True)))
    else:
        _print_outcomes(items, outcomes)
    if any(isinstance(outcome, Failure) for outcome in outcomes):
        raise typer.Exit(3)


def _read_items(items: Sequence[str]) -> Iterator[str]:
    """Return the items of the command line, with the lines of standard input in the place of "-"."""
    for item in items:
        if item == "-":
            yield from (line for line in map(str.rstrip, sys.stdin) if line)
        else:
            yield item


def _make_data(item: str, config: LabelConfig, model_class: type[Model]) -> dict[str, Any]:
    """Return the data of the task that an item makes: a path or a URL for an object that shows media, else a text."""
    from lsml_cli.errors import UsageError
    from lsml_cli.registry.param_safety import path_exists
    from lsml_cli.schema.data_key import MEDIA_TAGS, TEXT_TAGS, find_data_key, find_text_key

    tags = {shown.tag.lower() for shown in config.objects.values() if shown.data_key is not None}
    is_file = "://" in item or path_exists(item)
    if tags & MEDIA_TAGS and (is_file or not tags & TEXT_TAGS):
        if not is_file:
            raise UsageError(f"There is no file {item}.", "The label config shows media: name a file or a URL.")
        return {find_data_key(config, model_class.supported_controls): item}
    return {find_text_key(config, model_class.supported_controls): item}


def _to_json(item: str, outcome: Outcome) -> Mapping[str, Any]:
    from lsml_cli.schema.predictions import prediction_record

    record = prediction_record(None, outcome)
    del record["task"]
    return {"item": item, **record}


def _print_outcomes(items: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    """Print a table with a row for each region."""
    from lsml_cli.commands.console.tables import Column, print_table
    from lsml_cli.schema.predictions import Failure, Prediction

    rows: list[tuple[str, ...]] = []
    for item, outcome in zip(items, outcomes, strict=True):
        shown = _abbreviate(item)
        if isinstance(outcome, Failure):
            rows.append((shown, "-", f"failed: {outcome.reason}", "-", "-"))
        elif isinstance(outcome, Prediction):
            rows += [(shown, region.from_name, *_describe_region(region)) for region in outcome.result]
            if not outcome.result:
                rows.append((shown, "-", "nothing found", "-", "-"))
    columns = (
        Column("item", "text"),
        Column("control"),
        Column("answer", "text"),
        Column("score", "number"),
        Column("where", "text"),
    )
    print_table(columns, rows)


def _describe_region(region: Region) -> tuple[str, str, str]:
    """Return the answer, the score and the place of a region, as text."""
    value = region.value
    score = "-" if region.score is None else f"{region.score:.2f}"
    labels = value.get(region.type, [])
    answer = ", ".join(map(str, labels)) if isinstance(labels, list) else str(labels)
    place = "-"
    if "start" in value and "end" in value:
        text = value.get("text")
        place = f"{value['start']}-{value['end']}" + (f" {_abbreviate(text)!r}" if isinstance(text, str) else "")
    elif "width" in value and "height" in value:
        place = " ".join(f"{name} {float(value[name]):.1f} %" for name in ("x", "y", "width", "height"))
    elif "points" in value:
        place = f"{len(value['points'])} points"
    elif "rle" in value:
        place = "a mask"
    return _abbreviate(answer), score, place


def _abbreviate(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."
