"""Keep the tasks on which model and people disagree most."""

from __future__ import annotations

import heapq

from lsml_cli.evaluation.results import Disagreement
from lsml_cli.evaluation.scorers import RegionList
from lsml_cli.schema.annotations import strip_annotations
from lsml_cli.schema.tasks import Task


class TopDisagreements:
    """A heap of the tasks with the highest severity; of equally severe ones the first are kept."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._heap: list[tuple[tuple[float, ...], int, Disagreement]] = []
        self._count = 0

    def add(self, severity: tuple[float, ...], task: Task, truth: RegionList, prediction: RegionList) -> None:
        self._count += 1
        if len(self._heap) == self._max_size and (not self._max_size or severity <= self._heap[0][0]):
            return
        entry = severity, -self._count, Disagreement(strip_annotations(task), truth, prediction, severity)
        if len(self._heap) < self._max_size:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heapreplace(self._heap, entry)

    def to_list(self) -> list[Disagreement]:
        """Return the disagreements, the most severe first."""
        entries = sorted(self._heap, key=lambda entry: entry[:2], reverse=True)
        return [disagreement for *_, disagreement in entries]
