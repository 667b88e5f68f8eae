"""What `lsml fit` says: numbers on stdout, sentences on stderr."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from lsml_cli.commands.console.progress import emit
from lsml_cli.commands.console.tables import print_table
from lsml_cli.errors import listed

if TYPE_CHECKING:
    from lsml_cli.training.fit import FitResult
    from lsml_cli.training.splits import Plan


def print_plan(plan: Plan) -> None:
    """What would be trained on, and measured with."""
    counts = plan.counts
    emit(f"{counts['train']:,} tasks to train on, {counts['holdout']:,} held out")
    for sentence in plan_sentences(plan):
        emit(sentence)
    for control, labels in plan.classes.items():
        rows = [(label, f"{train:,}", f"{held_out:,}") for label, (train, held_out) in labels.items()]
        print_table((control, "train", "held out"), rows, right=(1, 2))


def plan_sentences(plan: Plan) -> Iterator[str]:
    """What is remarkable about the tasks on both sides."""
    for side, several in plan.counts["annotations"].items():
        if several != plan.counts[side]:
            where = "train on" if side == "train" else "measure with"
            yield f"Every annotation counts: {several:,} to {where}."
    if plan.left_out:
        yield f"Left out: {_counted(plan.left_out)}."
    if plan.held_out_left_out:
        yield f"Left out of {plan.asked['holdout_file']}: {_counted(plan.held_out_left_out)}."
    for control, names in plan.too_small.items():
        yield f'Too small to be held out, so not measured, for "{control}": {", ".join(names)}.'
    for control, names in plan.never_seen.items():
        yield f'Only in held-out tasks, so never learned, for "{control}": {", ".join(names)}.'


def unread_sentences(plan: Plan, export: str) -> Iterator[str]:
    """What could not be read, with the first places: nothing is swallowed. Nothing when everything was readable."""
    if plan.unread:
        places = "1 task" if plan.unread == 1 else f"{plan.unread:,} tasks"
        shown = plan.unread_places("standard input" if export == "-" else export)
        more = f"; and {plan.unread - len(shown):,} more" if plan.unread > len(shown) else ""
        yield f"{places} could not be read: {'; '.join(shown)}{more}."


def torn_sentences(found: FitResult) -> Iterator[str]:
    """Why the version was not promoted although no gate was missed."""
    if found.plan.torn and not found.missed:
        root, name = found.version.folder.parent, found.version.version
        yield "The new version was not promoted, because nobody knows how much is missing."
        yield f"It is kept in {found.version.folder}; to promote it anyhow: lsml versions {root} --promote {name}"


def result_sentences(found: FitResult, model: str) -> Iterator[str]:
    """What was done, and what to run next. `model` is what `--model` means the new version from now on."""
    version, counts = found.version, found.version.counts
    held_out = f"held out {counts['holdout']:,}"
    if version.refit:
        yield (
            f"Trained on {version.trained_on:,} tasks: the numbers are of a model that saw {counts['train']:,} of "
            f"them ({held_out}), which was then trained again on all (--refit)."
        )
    else:
        yield f"Trained on {counts['train']:,} tasks, {held_out}."
    yield from plan_sentences(found.plan)
    for reason, count in found.failed.items():
        yield f"{count:,} held-out tasks failed: {reason}."
    if found.evaluation.found_nothing:
        yield f"The model found nothing at all in the {found.evaluation.tasks:,} held-out tasks."
    elif found.evaluation.blank:
        yield f"Nothing was found, in any held-out task, for: {listed(found.evaluation.blank)}."
    if found.evaluation.silent:
        yield f"Nothing was predicted, so nothing measured, for: {listed(found.evaluation.silent)}."
    elif not found.metrics:
        why = "no held-out task has an answer" if counts["holdout"] else "nothing was held out"
        yield f"Nothing was measured: {why}."
    yield from _gates(found)
    if found.promoted:
        yield f"Wrote and promoted {version.folder}."
        yield f"Next: lsml predict TASKS --model {model} -o predictions.json"
    elif not found.missed and not found.plan.torn:
        root, name = version.folder.parent, version.version
        yield f"Wrote {version.folder}, not promoted. To promote it: lsml versions {root} --promote {name}"


def _gates(found: FitResult) -> Iterator[str]:
    for verdict in found.verdicts:
        if verdict.passed:
            yield f"Gate passed: {verdict}."


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} ({count:,})" for reason, count in reasons.items())
