"""How a run of `lsml predict` went, as JSON and as sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from lsml_cli.io.output_paths import STDOUT, is_stdout
from lsml_cli.schema.failure_causes import FailureCauses


@dataclass(frozen=True)
class PredictSummary:
    """How a run went.

    Attributes:
        model: Name and version of the model.
        tasks: Records of the input, whatever became of them.
        predicted: Tasks with a prediction, also an empty one.
        skipped: Tasks that had a prediction of this version already.
        failed: Tasks without a prediction.
        dropped: Older predictions that were left out because they do not fit the label config.
        resumed_at: Tasks that an earlier run had done.
        seconds: Duration of this run alone.
        tasks_per_second: Rate of this run alone.
        output: Where the records went, "-" for standard output.
        errors: The error file, if any.
        blank_lines: Lines of text that were skipped because nothing is in them.
        first_failures: The first few failures, as sentences.
        failure_causes: The failures of this run alone, by cause.
    """

    model: str
    tasks: int
    predicted: int
    skipped: int
    failed: int
    dropped: int
    resumed_at: int
    seconds: float
    tasks_per_second: float
    output: str
    errors: str | None
    blank_lines: int = 0
    first_failures: tuple[str, ...] = ()
    failure_causes: FailureCauses = field(default_factory=FailureCauses)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "output": _to_valid_utf8(self.output),
            "errors": self.errors and _to_valid_utf8(self.errors),
            "failure_causes": self.failure_causes.to_json(),
        }

    def summary_lines(self) -> Iterator[str]:
        """Yield the summary as sentences."""
        rate = f" in {self.seconds:,.1f} s ({self.tasks_per_second:,.0f}/s)"
        resumed = f", {self.resumed_at:,} of them before" if self.resumed_at else ""
        kept = f", {self.skipped:,} left as they were" if self.skipped else ""
        destination = f" -> {self.output}" if self.output != STDOUT else ""
        tasks = f"{self.tasks:,} task{'' if self.tasks == 1 else 's'}"
        yield f"{tasks}{resumed}: {self.predicted:,} predicted{kept}, {self.failed:,} failed{rate}{destination}"
        if self.blank_lines:
            yield blank_lines_sentence(self.blank_lines)
        if self.dropped:
            if self.dropped == 1:
                yield "1 older prediction was left out: it does not fit the label config."
            else:
                yield f"{self.dropped:,} older predictions were left out: they do not fit the label config."
        yield from self.failure_causes.lines()
        if before := self.failed - self.failure_causes.total:
            yield f"{before:,} {'task' if before == 1 else 'tasks'} failed before the run was resumed."
        if self.failed and self.errors:
            if not is_stdout(self.errors):
                yield f"All failures are in {self.errors}."
        elif self.failed > len(self.first_failures):
            yield "--errors FILE lists every failure."


def blank_lines_sentence(count: int) -> str:
    return f"{count:,} blank lines were skipped." if count > 1 else "1 blank line was skipped."


def _to_valid_utf8(path: str) -> str:
    """Return a path as text that JSON can hold; bytes that are not UTF-8 are replaced."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
