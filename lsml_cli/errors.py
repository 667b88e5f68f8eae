"""Every error that lsml raises on purpose.

    LsmlError                exit 1   the run failed
    ├── UsageError           exit 2   an option, a name or a combination that makes no sense
    │   ├── UnknownModel              no model of that name; lists the closest ones
    │   └── ResumeRefused             the unfinished run was started with something else
    ├── InputError           exit 1   the tasks cannot be read at all
    ├── OutputError          exit 1   the result cannot be written
    ├── LabelConfigError     exit 1   the labelling XML is broken
    ├── ModelError           exit 1   a model is damaged, or breaks its contract
    │   └── LabelMismatch             model and label config have nothing in common
    ├── RunStopped           exit 1   --on-error fail, --max-failures
    ├── GateMissed           exit 4   --fail-under: the new version is worse than it has to be
    ├── Interrupted          exit 130 ctrl-C
    ├── OutputClosed         exit 0   whoever read our standard output has enough (`| head`); nothing is printed
    └── TransientError                worth another try: raised by fetching and by models, never shown as is

`message` is one sentence that says what is wrong and where; `hint` is one that says what to do next.
Only `cli.main` catches these to print them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class LsmlError(Exception):
    """Base of the tree above. Survives pickling, because replicas raise it in other processes."""

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
        super().__init__("Nobody reads standard output any more.")

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


class TransientError(LsmlError):
    pass


MAX_LISTED_NAMES = 10  # names listed in a sentence before "and N more"


def format_list(names: Iterable[str], max_items: int = MAX_LISTED_NAMES) -> str:
    """The names with commas between them, after `most` of them how many more there are: "a, b and 7 more"."""
    every = list(names)
    more = len(every) - max_items
    return ", ".join(every[:max_items]) + (f" and {more:,} more" if more > 0 else "")


def sort_by_similarity(name: str, candidates: Iterable[str]) -> list[str]:
    """`known`, the names most like `name` first, the rest in alphabetical order."""
    rest = sorted(candidates)
    near = difflib.get_close_matches(name, rest, n=3, cutoff=0.6)
    return near + [other for other in rest if other not in near]
