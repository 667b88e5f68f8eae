"""What `lsml fit` says: numbers on stdout, sentences on stderr."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from lsml_cli.commands.console.progress import emit
from lsml_cli.commands.console.tables import print_table
from lsml_cli.errors import format_list

if TYPE_CHECKING:
    from lsml_cli.training.fit import FitResult
    from lsml_cli.training.splits import DataSplit


def print_plan(plan: DataSplit) -> None:
    """What would be trained on, and measured with."""
    counts = plan.counts
    emit(f"{counts['train']:,} tasks to train on, {counts['holdout']:,} held out")
    for sentence in plan_lines(plan):
        emit(sentence)
    for control, labels in plan.classes.items():
        rows = [(label, f"{train:,}", f"{held_out:,}") for label, (train, held_out) in labels.items()]
        print_table((control, "train", "held out"), rows, right_aligned=(1, 2))


def plan_lines(plan: DataSplit) -> Iterator[str]:
    """What is remarkable about the tasks on both sides."""
    for side, several in plan.counts["annotations"].items():
        if several != plan.counts[side]:
            where = "train on" if side == "train" else "measure with"
            yield f"Every annotation counts: {several:,} to {where}."
    if plan.left_out:
        yield f"Left out: {_format_counts(plan.left_out)}."
    if plan.held_out_left_out:
        yield f"Left out of {plan.options['holdout_file']}: {_format_counts(plan.held_out_left_out)}."
    for control, names in plan.classes_without_holdout.items():
        yield f'Too small to be held out, so not measured, for "{control}": {", ".join(names)}.'
    for control, names in plan.classes_without_training.items():
        yield f'Only in held-out tasks, so never learned, for "{control}": {", ".join(names)}.'


def unreadable_lines(plan: DataSplit, export: str) -> Iterator[str]:
    """What could not be read, with the first places: nothing is swallowed. Nothing when everything was readable."""
    if plan.unreadable_count:
        places = "1 task" if plan.unreadable_count == 1 else f"{plan.unreadable_count:,} tasks"
        shown = plan.describe_unreadable("standard input" if export == "-" else export)
        more = f"; and {plan.unreadable_count - len(shown):,} more" if plan.unreadable_count > len(shown) else ""
        yield f"{places} could not be read: {'; '.join(shown)}{more}."


def truncation_lines(result: FitResult) -> Iterator[str]:
    """Why the version was not promoted although no gate was missed."""
    if result.split.truncated and not result.failed_gates:
        root, name = result.version.folder.parent, result.version.version
        yield "The new version was not promoted, because nobody knows how much is missing."
        yield f"It is kept in {result.version.folder}; to promote it anyhow: lsml versions {root} --promote {name}"


def summary_lines(result: FitResult, model: str) -> Iterator[str]:
    """What was done, and what to run next. `model` is what `--model` means the new version from now on."""
    version, counts = result.version, result.version.counts
    held_out = f"held out {counts['holdout']:,}"
    if version.refit:
        yield (
            f"Trained on {version.trained_on:,} tasks: the numbers are of a model that saw {counts['train']:,} of "
            f"them ({held_out}), which was then trained again on all (--refit)."
        )
    else:
        yield f"Trained on {counts['train']:,} tasks, {held_out}."
    yield from plan_lines(result.split)
    for reason, count in result.failed.items():
        yield f"{count:,} held-out tasks failed: {reason}."
    if result.evaluation.has_only_empty_predictions:
        yield f"The model found nothing at all in the {result.evaluation.tasks:,} held-out tasks."
    elif result.evaluation.empty_controls:
        yield f"Nothing was found, in any held-out task, for: {format_list(result.evaluation.empty_controls)}."
    if result.evaluation.unpredicted_controls:
        yield f"Nothing was predicted, so nothing measured, for: {format_list(result.evaluation.unpredicted_controls)}."
    elif not result.metrics:
        why = "no held-out task has an answer" if counts["holdout"] else "nothing was held out"
        yield f"Nothing was measured: {why}."
    yield from _gate_lines(result)
    if result.promoted:
        yield f"Wrote and promoted {version.folder}."
        yield f"Next: lsml predict TASKS --model {model} -o predictions.json"
    elif not result.failed_gates and not result.split.truncated:
        root, name = version.folder.parent, version.version
        yield f"Wrote {version.folder}, not promoted. To promote it: lsml versions {root} --promote {name}"


def _gate_lines(result: FitResult) -> Iterator[str]:
    for verdict in result.gate_results:
        if verdict.passed:
            yield f"Gate passed: {verdict}."


def _format_counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} ({count:,})" for reason, count in reasons.items())
