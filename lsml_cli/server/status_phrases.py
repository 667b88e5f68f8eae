"""HTTP statuses of our own: of a response with an error, Label Studio keeps nothing but the status and its phrase."""

from __future__ import annotations

from collections.abc import Mapping

LAST_TRAINING_FAILED = 470
LAST_TRAINING_MISSED = 471

STATUS_PHRASES: Mapping[int, str] = {
    LAST_TRAINING_FAILED: "A new training was requested; the last one failed (lsml jobs says why)",
    LAST_TRAINING_MISSED: "A new training was requested; the last one missed a gate (see lsml jobs)",
}
FAILURE_STATUSES: Mapping[str, int] = {"failed": LAST_TRAINING_FAILED, "missed": LAST_TRAINING_MISSED}  # by JobState


def status_line(status: int) -> bytes:
    """Return the first line of a response with a status of `STATUS_PHRASES`."""
    return f"HTTP/1.1 {status} {STATUS_PHRASES[status]}\r\n".encode("ascii")
