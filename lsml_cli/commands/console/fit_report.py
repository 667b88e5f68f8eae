"""Report the result of `lsml fit`: numbers on stdout, sentences on stderr."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from lsml_cli.commands.console.stdout import emit
from lsml_cli.commands.console.tables import Column, emit_folded, print_table
from lsml_cli.errors import format_list

if TYPE_CHECKING:
    from lsml_cli.registry.versions import Version
    from lsml_cli.training.fit import FitResult
    from lsml_cli.training.splits import DataSplit


MAX_LISTED_CLASSES = 30  # in a sentence; the table of the plan has all


def print_plan(split: DataSplit) -> None:
    """Print what would be trained on and what measured on."""
    counts = split.counts
    emit(f"{counts['train']:,} tasks to train on, {counts['holdout']:,} held out")
    for line in plan_lines(split):
        emit_folded(line)
    for control, labels in split.classes.items():
        rows = [(label, f"{train:,}", f"{held_out:,}") for label, (train, held_out) in labels.items()]
        print_table((Column(control), Column("train", "number"), Column("held out", "number", drop=2)), rows)


def plan_lines(split: DataSplit) -> Iterator[str]:
    """Describe left-out tasks, and classes that are missing on one side of the split."""
    for side, annotation_count in split.counts["annotations"].items():
        if annotation_count != split.counts[side]:
            purpose = "train on" if side == "train" else "measure with"
            yield f"Every annotation counts: {annotation_count:,} to {purpose}."
    if split.left_out:
        yield f"Left out: {_format_counts(split.left_out)}."
    if split.held_out_left_out:
        yield f"Left out of {split.options['holdout_file']}: {_format_counts(split.held_out_left_out)}."
    for control, names in split.classes_without_holdout.items():
        yield f'Too small to be held out, so not measured, for "{control}": {format_list(names, MAX_LISTED_CLASSES)}.'
    for control, names in split.classes_without_training.items():
        yield f'Only in held-out tasks, so never learned, for "{control}": {format_list(names, MAX_LISTED_CLASSES)}.'


def unchanged_line(version: Version) -> str:
    """Say that the version in use is what a fit would train."""
    return (
        f"Nothing to train: {version.name}@{version.version}, which is in use, was trained on the same annotations in"
        " the same way."
    )


def truncation_lines(result: FitResult) -> Iterator[str]:
    """Explain why a version was not promoted although it passed every gate."""
    if result.split.truncated and not result.failed_gates:
        root, name = result.version.folder.parent, result.version.version
        yield "The new version was not promoted, because the export ends too early."
        yield f"It is kept in {result.version.folder}; to promote it anyway: lsml versions {root} --promote {name}"


def summary_lines(result: FitResult, model: str) -> Iterator[str]:
    """Describe the training and say what to run next.

    Args:
        result: What `fit_version` returned.
        model: What to give to `--model` for the new version.
    """
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
    yield from result.failed.lines(noun="held-out task", note="counted as wrong")
    if result.evaluation.has_only_empty_predictions:
        yield f"The model found nothing at all in the {result.evaluation.tasks:,} held-out tasks."
    elif result.evaluation.empty_controls:
        yield f"Nothing was found, in any held-out task, for: {format_list(result.evaluation.empty_controls)}."
    if result.evaluation.unpredicted_controls:
        yield f"Nothing was predicted, so nothing measured, for: {format_list(result.evaluation.unpredicted_controls)}."
    if result.evaluation.unmeasurable_controls:
        yield f"Cannot be measured yet: {format_list(result.evaluation.unmeasurable_controls)}."
    elif not result.metrics and not result.evaluation.unpredicted_controls:
        reason = "no held-out task has an answer" if counts["holdout"] else "nothing was held out"
        yield f"Nothing was measured: {reason}."
    yield from result.evaluation.warnings
    yield from _gate_lines(result)
    if result.promoted:
        yield f"Wrote and promoted {version.folder}."
        yield f"Next: lsml predict TASKS --model {model} -o predictions.json"
    elif not result.failed_gates and not result.split.truncated:
        root, name = version.folder.parent, version.version
        yield f"Wrote {version.folder}, not promoted. To promote it: lsml versions {root} --promote {name}"


def _gate_lines(result: FitResult) -> Iterator[str]:
    for gate_result in result.gate_results:
        if gate_result.passed:
            yield f"Gate passed: {gate_result}."


def _format_counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} ({count:,})" for reason, count in reasons.items())
