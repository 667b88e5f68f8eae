"""Every error that lsml raises on purpose.

    LsmlError                exit 1   the run failed
    ├── UsageError           exit 2   an invalid option, name or combination
    │   ├── UnknownModel              no model has that name; lists the closest ones
    │   └── ResumeRefused             the unfinished run was started with other options
    ├── InputError           exit 1   the tasks cannot be read at all
    ├── OutputError          exit 1   the result cannot be written
    ├── LabelConfigError     exit 1   the labelling XML is broken
    ├── ModelError           exit 1   a model is damaged, or breaks its contract
    │   └── LabelMismatch             model and label config have nothing in common
    ├── RunStopped           exit 1   --on-error fail, --max-failures
    ├── GateMissed           exit 4   --fail-under: the new version misses its threshold
    ├── Interrupted          exit 130 ctrl-C
    ├── OutputClosed         exit 0   the reader of standard output has closed it (`| head`); nothing is printed
    └── TransientError                worth a retry: raised by fetching and by models, never shown as is

`message` is one sentence that says what is wrong and where; `hint` is one sentence that says what to do next.
Only `cli.main` catches these errors to print them.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable
from typing import ClassVar


class LsmlError(Exception):
    """Base class of every error that lsml raises on purpose. It can be pickled, because replicas raise it as well.

    Args:
        message: One sentence that says what is wrong and where.
        hint: One sentence that says what to do next.

    Attributes:
        exit_code: Exit code of the command that ends with this error.

    Example:
        >>> try:
        ...     load_model("models/news")
        ... except LsmlError as error:
        ...     print(error.message, error.hint)
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} {self.hint}"


class UsageError(LsmlError):
    exit_code = 2


class UnknownModel(UsageError):
    pass


class ResumeRefused(UsageError):
    pass


class InputError(LsmlError):
    pass


class OutputError(LsmlError):
    pass


class LabelConfigError(LsmlError):
    pass


class ModelError(LsmlError):
    pass


class LabelMismatch(ModelError):
    pass


class RunStopped(LsmlError):
    pass


class GateMissed(LsmlError):
    exit_code = 4


class Interrupted(LsmlError):
    exit_code = 130


class OutputClosed(LsmlError):
    exit_code = 0

    def __init__(self) -> None:
        super().__init__("Standard output was closed by its reader.")

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


class TransientError(LsmlError):
    """An error after which another try may succeed, such as a server that is overloaded.

    Raise it in a step of a model: lsml tries the step again after `Model.retry_delays`, and then records a transient
    failure of the task.

    Example:
        >>> def encode(self, task, binding, media):
        ...     if self.service.is_overloaded():
        ...         raise TransientError("The service is overloaded.")
        ...     return task.data["text"]
    """


MAX_LISTED_NAMES = 10  # names in a message before "and N more"
MAX_SUGGESTED_NAMES = 30  # the same in a hint about an unknown name, which is where users learn what there is
MAX_COMPARED_NAMES = 2000  # names that are compared letter by letter; of more, those with the same first letters


def format_list(names: Iterable[str], max_items: int = MAX_LISTED_NAMES) -> str:
    """Join names with commas, and count those beyond `max_items`: "a, b and 7 more"."""
    listed = list(names)
    more = len(listed) - max_items
    return ", ".join(listed[:max_items]) + (f" and {more:,} more" if more > 0 else "")


def suggest_names(name: str, known: Iterable[str], label: str) -> str:
    """Return the hint of an error about an unknown name: the closest known one first, then the others.

    Example:
        >>> suggest_names("batchsize", ["batch-size", "seed"], "It has")
        "Did you mean 'batch-size'? It has: batch-size, seed."
    """
    ordered = sort_by_similarity(name, set(known))
    if not ordered:
        return f"{label}: none."
    closest = difflib.get_close_matches(name.casefold(), [ordered[0].casefold()], n=1, cutoff=0.6)
    question = f"Did you mean {ordered[0]!r}? " if closest else ""
    return f"{question}{label}: {format_list(ordered, MAX_SUGGESTED_NAMES)}."


def sort_by_similarity(name: str, candidates: Iterable[str]) -> list[str]:
    """Return the candidates, the three most like `name` first, the rest in alphabetical order."""
    ordered = sorted(candidates)
    by_folded: dict[str, list[str]] = {}
    for candidate in ordered:
        by_folded.setdefault(candidate.casefold(), []).append(candidate)
    compared: Iterable[str] = by_folded
    if len(by_folded) > MAX_COMPARED_NAMES:  # comparing takes seconds for 50,000 labels
        alike = (folded for folded in by_folded if folded[:2] == name.casefold()[:2])
        compared = itertools.islice(alike, MAX_COMPARED_NAMES)
    matches = difflib.get_close_matches(name.casefold(), compared, n=3, cutoff=0.6)
    closest = [candidate for match in matches for candidate in by_folded[match]][:3]
    return closest + [candidate for candidate in ordered if candidate not in closest]
