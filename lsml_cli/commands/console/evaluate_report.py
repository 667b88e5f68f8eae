"""Report an evaluation: numbers on stdout, sentences on stderr."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lsml_cli.commands.console import metrics_tables
from lsml_cli.errors import GateMissed, format_list

if TYPE_CHECKING:
    from lsml_cli.evaluation.gates import ComparisonResult, GateResult
    from lsml_cli.evaluation.results import Evaluation


def print_evaluation(evaluation: Evaluation) -> None:
    """Print metrics, comparison, calibration and agreement."""
    metrics_tables.print_metrics(evaluation.controls, "tasks", intervals=True)
    if evaluation.comparison is not None:
        metrics_tables.print_comparison(evaluation.comparison, evaluation.controls)
    metrics_tables.print_calibration(evaluation.controls)
    metrics_tables.print_agreement(evaluation.controls)


def summary_lines(evaluation: Evaluation, gate_results: Sequence[GateResult | ComparisonResult]) -> Iterator[str]:
    """Say what was measured, what was not, and which gates were passed."""
    annotations = f" with {evaluation.annotations:,} annotations" if evaluation.annotations != evaluation.tasks else ""
    yield f"Measured {evaluation.name} on {evaluation.tasks:,} annotated tasks{annotations}."
    if evaluation.left_out:
        yield f"Left out: {format_exclusions(evaluation)}."
    for reason, count in evaluation.failed.items():
        yield f"{count:,} {'task' if count == 1 else 'tasks'} failed, and count as wrong: {reason}."
    if evaluation.comparison is not None:
        for reason, count in evaluation.comparison.failed.items():
            yield f"{count:,} {'task' if count == 1 else 'tasks'} of {evaluation.comparison.name} failed: {reason}."
    if evaluation.has_only_empty_predictions:
        yield f"{evaluation.name} found nothing at all in the {evaluation.tasks:,} annotated tasks."
    elif evaluation.empty_controls:
        yield f"Nothing was found, in any task, for: {format_list(evaluation.empty_controls)}."
    if evaluation.unpredicted_controls:
        yield f"Nothing was predicted, so nothing measured, for: {format_list(evaluation.unpredicted_controls)}."
    if not evaluation.controls:
        yield "Nothing was measured: people and predictions fill no control together."
    for gate_result in gate_results:
        if gate_result.passed:
            yield f"Gate passed: {gate_result}."


def unreadable_lines(evaluation: Evaluation, annotated: str) -> Iterator[str]:
    """Say where the first unreadable records are, and why."""
    source = "standard input" if annotated == "-" else annotated
    for record in evaluation.unreadable:
        yield f"{source}, {record.location} could not be read: {record.reason}."


def format_exclusions(evaluation: Evaluation) -> str:
    """Format why tasks were left out: "no annotation (5), skipped (2)"."""
    return ", ".join(f"{reason} ({count:,})" for reason, count in evaluation.left_out.items()) or "it holds no tasks"


def require_gates_passed(evaluation: Evaluation, gate_results: Sequence[GateResult | ComparisonResult]) -> None:
    """Raise GateMissed, naming every missed gate and by how much, if there is one."""
    missed = [str(result) for result in gate_results if not result.passed]
    if missed:
        count = f"{len(missed)} of {len(gate_results)} gates" if len(gate_results) > 1 else "its gate"
        raise GateMissed(f"{evaluation.name} missed {count}: {'; '.join(missed)}.")
