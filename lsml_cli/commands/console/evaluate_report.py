"""What `lsml evaluate` says: numbers on stdout, sentences on stderr."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lsml_cli.commands.console import metrics_tables
from lsml_cli.errors import GateMissed, listed

if TYPE_CHECKING:
    from lsml_cli.evaluation.evaluate import Evaluation
    from lsml_cli.evaluation.gates import Comparison, Verdict


def print_evaluation(found: Evaluation) -> None:
    metrics_tables.print_metrics(found.controls, "tasks", intervals=True)
    if found.compared is not None:
        metrics_tables.print_comparison(found.compared, found.controls)
    metrics_tables.print_calibration(found.controls)
    metrics_tables.print_agreement(found.controls)


def sentences(found: Evaluation, verdicts: Sequence[Verdict | Comparison]) -> Iterator[str]:
    """What was measured, what was not, and which gates were passed."""
    several = f" with {found.annotations:,} annotations" if found.annotations != found.tasks else ""
    yield f"Measured {found.name} on {found.tasks:,} annotated tasks{several}."
    if found.left_out:
        yield f"Left out: {reasons(found)}."
    for reason, count in found.failed.items():
        yield f"{count:,} {'task' if count == 1 else 'tasks'} failed, and count as wrong: {reason}."
    if found.compared is not None:
        for reason, count in found.compared.failed.items():
            yield f"{count:,} {'task' if count == 1 else 'tasks'} of {found.compared.name} failed: {reason}."
    if found.found_nothing:
        yield f"{found.name} found nothing at all in the {found.tasks:,} annotated tasks."
    elif found.blank:
        yield f"Nothing was found, in any task, for: {listed(found.blank)}."
    if found.silent:
        yield f"Nothing was predicted, so nothing measured, for: {listed(found.silent)}."
    if not found.controls:
        yield "Nothing was measured: people and predictions fill no control together."
    for verdict in verdicts:
        if verdict.passed:
            yield f"Gate passed: {verdict}."


def unread_sentences(found: Evaluation, annotated: str) -> Iterator[str]:
    """The first places where no task could be read."""
    for place in found.unreadable:
        where = "standard input" if annotated == "-" else annotated
        yield f"{where}, {place.place} could not be read: {place.reason}."


def reasons(found: Evaluation) -> str:
    """Why tasks were left out: "no annotation (5), skipped (2)"."""
    return ", ".join(f"{reason} ({count:,})" for reason, count in found.left_out.items()) or "there is no task at all"


def require_passed(found: Evaluation, verdicts: Sequence[Verdict | Comparison]) -> None:
    """Raises GateMissed that names every missed gate, and by how much."""
    missed = [str(verdict) for verdict in verdicts if not verdict.passed]
    if missed:
        count = f"{len(missed)} of {len(verdicts)} gates" if len(verdicts) > 1 else "its gate"
        raise GateMissed(f"{found.name} missed {count}: {'; '.join(missed)}.")
