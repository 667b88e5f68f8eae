"""Report an evaluation: numbers on stdout, sentences on stderr."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lsml_cli.commands.console import metrics_tables
from lsml_cli.commands.console.tables import emit_folded
from lsml_cli.errors import GateMissed, InputError, format_list

if TYPE_CHECKING:
    from lsml_cli.evaluation.gates import ComparisonResult, GateResult
    from lsml_cli.evaluation.results import Evaluation


def print_evaluation(evaluation: Evaluation) -> None:
    """Print warnings, metrics, comparison, calibration and agreement."""
    for warning in evaluation.warnings:
        emit_folded(warning)
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
    yield from evaluation.failed.lines(note="counted as wrong")
    if evaluation.comparison is not None:
        yield from evaluation.comparison.failed.lines(f"of {evaluation.comparison.name} failed")
    if evaluation.has_only_empty_predictions:
        yield f"{evaluation.name} found nothing at all in the {evaluation.tasks:,} annotated tasks."
    elif evaluation.empty_controls:
        yield f"Nothing was found, in any task, for: {format_list(evaluation.empty_controls)}."
    if evaluation.controls and evaluation.unpredicted_controls:
        yield f"Nothing was predicted, so nothing measured, for: {format_list(evaluation.unpredicted_controls)}."
    if evaluation.controls and evaluation.unmeasurable_controls:
        yield f"Cannot be measured yet: {format_list(evaluation.unmeasurable_controls)}."
    for gate_result in gate_results:
        if gate_result.passed:
            yield f"Gate passed: {gate_result}."


def format_exclusions(evaluation: Evaluation) -> str:
    """Format why tasks were left out: "no annotation (5), skipped (2)"."""
    return ", ".join(f"{reason} ({count:,})" for reason, count in evaluation.left_out.items()) or "it holds no tasks"


def require_measured(evaluation: Evaluation) -> None:
    """Raise InputError if no control could be measured."""
    reason = evaluation.why_nothing_was_measured()
    if reason is not None:
        measurable = "<Choices> about whole tasks, labelled regions of images, and <TextArea>"
        raise InputError(reason, f"What can be measured: {measurable}, where annotations and predictions fill them.")


def no_tasks_error(evaluation: Evaluation) -> InputError:
    """Return the error of an evaluation without a single task."""
    trained_on = evaluation.training_data.left_out
    if trained_on:
        return InputError(
            f"There is no task left to measure with: {format_exclusions(evaluation)}.",
            "Measure with other tasks; --include-trained measures with these, and its numbers are too good.",
        )
    return InputError(
        f"There is no task to measure with: {format_exclusions(evaluation)}.",
        "Export tasks that have been annotated, from the project that was predicted.",
    )


def require_gates_passed(evaluation: Evaluation, gate_results: Sequence[GateResult | ComparisonResult]) -> None:
    """Raise GateMissed, naming every missed gate and by how much, if there is one."""
    missed = [str(result) for result in gate_results if not result.passed]
    if missed:
        count = f"{len(missed)} of {len(gate_results)} gates" if len(gate_results) > 1 else "its gate"
        raise GateMissed(f"{evaluation.name} missed {count}: {'; '.join(missed)}.")
