"""Count failures by cause: hundreds of tasks fail for one reason that names each task in other words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

MAX_SHOWN_CAUSES = 10
ALL_FAILED_COUNT = 200  # tasks from the start; if all of them failed, it is not the tasks
MAX_CAUSES = 200  # causes that are counted apart, so that memory does not grow with the tasks
MAX_QUOTED_VARIANTS = (
    5  # causes that differ in quoted words only; where there are more, the words are data of the tasks
)
OTHER_REASONS = "other reasons"
MAX_COMPARED = 300  # characters of a reason that are compared

# Words with a digit or a slash, and names of files, differ from task to task; a status is kept: 404 and 503 are two
# causes.
_SUFFIXES = "png|jpe?g|gif|webp|bmp|tiff?|svg|wav|mp3|flac|ogg|m4a|mp4|webm|avi|mov|mkv|txt|csv|tsv|jsonl?|html?|pdf"
_WORD = re.compile(r"(?<!\S)(?P<status>\W?(?:answers|answered|status|code|errno|HTTP)\W{1,3}\d{1,3}\b)|(?<!\S)\S+")
_TASK_SPECIFIC = re.compile(rf"[\d/\\]|\.(?:{_SUFFIXES})\b", re.IGNORECASE)
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|“[^”]*”|`[^`]*`")
_FETCHED = re.compile(r"\A.*?: ")  # a reason of the stage "fetch" begins with what was fetched


@dataclass
class FailureCause:
    """Why tasks failed.

    Attributes:
        stage: The step that failed, see `Failure`; "" where it is not known.
        reason: The reason of the first of them.
        example: Which task that was: "tasks.json, line 4, task 3".
        count: How many failed.
    """

    stage: str
    reason: str
    example: str
    count: int = 0

    def describe(self, failed: str = "failed", *, noun: str = "task", note: str = "", source: str = "") -> str:
        """Say how many tasks failed, and why: "46 tasks failed (fetch), such as task 3: no such file.".

        Args:
            failed: What happened.
            noun: What it happened to, in the singular.
            note: What else there is to know.
            source: The file of the example, unless that names it.
        """
        facts = ", ".join(filter(None, (self.stage, note)))
        where = f" ({facts})" if facts else ""
        example = f"{source}, {self.example}" if source else self.example
        reason = f"{example}: {self.reason.rstrip('.')}."
        if self.count == 1:
            return f"1 {noun} {failed}{where}: {reason}"
        return f"{self.count:,} {noun}s {failed}{where}, such as {reason}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class FailureCauses:
    """Counts failures by stage and reason; ids, numbers, paths and URLs in a reason do not matter.

    Attributes:
        total: All failures.
        uncounted: Those of causes beyond the first `MAX_CAUSES`.
    """

    def __init__(self) -> None:
        self.total = 0
        self.uncounted = 0
        self._causes: dict[tuple[str, str], FailureCause] = {}
        self._variants: dict[tuple[str, str], list[tuple[str, str]]] = {}  # keys that are equal but for quoted words

    def __len__(self) -> int:
        return len(self.most_common())

    def add(self, stage: str, reason: str, example: str) -> FailureCause | None:
        """Count a failure.

        Args:
            stage: The step that failed.
            reason: Why.
            example: Which task it is.

        Returns:
            Its cause, whose count is 1 if it is new; None if there are too many causes to count this one apart.
        """
        self.total += 1
        key = (stage, _generalize(stage, reason))
        cause = self._causes.get(key) or self._find_variant(key)
        if cause is None:
            if len(self._causes) >= MAX_CAUSES:
                self.uncounted += 1
                return None
            cause = self._causes[key] = FailureCause(stage, reason, example)
            self._variants.setdefault(_without_quotes(key), []).append(key)
        cause.count += 1
        return cause

    def most_common(self) -> list[FailureCause]:
        """Return the causes, the most frequent first."""
        causes = {id(cause): cause for cause in self._causes.values()}  # merged variants have one cause
        return sorted(causes.values(), key=lambda cause: -cause.count)

    def by_reason(self) -> dict[str, int]:
        """Return the number of failures by the reason of the first of each cause, for JSON."""
        counts = Counter[str]()
        for cause in self.most_common():
            counts[cause.reason] += cause.count
        if self.uncounted:
            counts[OTHER_REASONS] += self.uncounted
        return dict(counts)

    def lines(self, failed: str = "failed", *, noun: str = "task", note: str = "", source: str = "") -> Iterator[str]:
        """Yield a sentence for each of the most frequent causes, see `FailureCause.describe`, and one for the rest."""
        causes = self.most_common()
        for cause in causes[:MAX_SHOWN_CAUSES]:
            yield cause.describe(failed, noun=noun, note=note, source=source)
        if rest := self.total - sum(cause.count for cause in causes[:MAX_SHOWN_CAUSES]):
            number = "other" if self.uncounted else f"{len(causes) - MAX_SHOWN_CAUSES:,} more"
            others = f"{number} {'cause' if number == '1 more' else 'causes'}"
            yield f"And {others}, of {rest:,} {noun}{'' if rest == 1 else 's'}."

    def to_json(self) -> list[dict[str, Any]]:
        return [cause.to_json() for cause in self.most_common()]

    def _find_variant(self, key: tuple[str, str]) -> FailureCause | None:
        """Return the cause of an unknown key that differs from too many others in quoted words only."""
        variants = self._variants.get(_without_quotes(key), [])
        if len(variants) < MAX_QUOTED_VARIANTS:
            return None
        first = self._causes[variants[0]]
        for variant in variants[1:]:
            if (other := self._causes[variant]) is not first:
                first.count += other.count
                self._causes[variant] = first
        return first


def not_learned_lines(causes: FailureCauses, noun: str) -> Iterator[str]:
    """Yield sentences about what a training leaves out; `noun` says what that is: "image"."""
    shown = causes.most_common()[:MAX_SHOWN_CAUSES]
    for cause in shown:
        which = cause.example if cause.count == 1 else f"{cause.count:,} {noun}s, such as {cause.example}"
        yield f"Not learned from {which}: {cause.reason.rstrip('.')}."
    if rest := causes.total - sum(cause.count for cause in shown):
        yield f"Nor from {rest:,} more, for other reasons."


class FailureNotes:
    """Tells of failures while a run goes on: the first of each cause at once, then how many there are now and then.

    Args:
        note: Shows a sentence.
        warn: Shows a sentence that nobody may miss, and what to do next.
        hint: What to do when everything fails.
    """

    def __init__(self, note: Callable[[str], None], warn: Callable[[str, str], None], hint: str) -> None:
        self._note = note
        self._warn = warn
        self._hint = hint

    def add(self, causes: FailureCauses, cause: FailureCause | None, *, all_failed: bool) -> None:
        """Tell of a failure that `causes` has counted as `cause`; `all_failed`: no task was predicted so far."""
        if cause is not None and cause.count == 1 and len(causes) <= MAX_SHOWN_CAUSES:
            self._note(f"failed: {cause.example}: {cause.reason}")
        elif cause is not None and cause.count >= 10 and str(cause.count).rstrip("0") == "1":
            self._note(cause.describe("have failed so far"))
        if all_failed and causes.total == ALL_FAILED_COUNT:
            most_common, *others = causes.most_common()
            facts = f" ({most_common.stage})" if most_common.stage else ""
            reason = f"{most_common.reason.rstrip('.')}{facts}"
            why = f"most of them for this reason: {reason}" if others else f"for one reason: {reason}"
            self._warn(f"WARNING: all of the first {causes.total:,} tasks failed, {why}.", self._hint)


def _generalize(stage: str, reason: str) -> str:
    """Return a reason without what differs from task to task."""
    reason = reason[:MAX_COMPARED]
    return _WORD.sub(_generalize_word, _FETCHED.sub("…", reason, count=1) if stage == "fetch" else reason)


def _generalize_word(match: re.Match[str]) -> str:
    word = match.group()
    return word if match["status"] or not _TASK_SPECIFIC.search(word) else "…"


def _without_quotes(key: tuple[str, str]) -> tuple[str, str]:
    return key[0], _QUOTED.sub("…", key[1])
