"""Transcriptions: how many characters and words are wrong, and how many of the regions with text were found.

CER and WER are Levenshtein distances (characters, words) divided by the length of what is true, as in jiwer. A region
that was missed counts with all its characters, one that was invented with all it says. Regions meet as in ICDAR 2015:
one to one, with an IoU above 0.5, whatever they say.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from lsml_cli.errors import UsageError
from lsml_cli.evaluation.metrics.geometry import iou_matrix
from lsml_cli.schema.shapes import Shape

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

IOU_THRESHOLD = 0.5

# What is counted for each task.
COUNT_COLUMNS = (
    *("examples", "true", "found", "matched", "exact"),
    *("edits", "characters", "word_edits", "words"),
    *("matched_edits", "matched_characters", "matched_word_edits", "matched_words"),
)


class Transcription(NamedTuple):
    """What is written, and where; without a shape it is about the whole task."""

    text: str
    shape: Shape | None = None


@dataclass(frozen=True)
class TextMetrics:
    """How well texts were read, over `count` tasks. Less is better of the four error rates.

    cer, wer              of everything that is written
    cer_found, wer_found  of the regions that were found only
    precision, recall, hmean  of the regions, whatever they say; None for texts about whole tasks
    exact                 share of the texts that are right to the last character
    """

    kind: ClassVar[str] = "texts"
    count: int
    cer: float | None
    wer: float | None
    cer_found: float | None
    wer_found: float | None
    precision: float | None
    recall: float | None
    hmean: float | None
    exact: float | None
    support: int
    predicted: int
    classes: tuple[()] = ()

    def values(self) -> dict[str, float | None]:
        return {
            "cer": self.cer,
            "wer": self.wer,
            "cer-found": self.cer_found,
            "wer-found": self.wer_found,
            "precision": self.precision,
            "recall": self.recall,
            "hmean": self.hmean,
            "exact": self.exact,
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"classes": []}


class TextErrors(NamedTuple):
    """How well one task was read: wrong characters and those there are, regions missed and invented."""

    edits: int
    characters: int
    false_negatives: int
    false_positives: int


class TextCounts:
    """The texts of one control, task by task, in a few numbers each."""

    def __init__(self) -> None:
        self._rows = array("i")
        self._has_regions = False

    def add(
        self,
        truths: Sequence[Sequence[Transcription]],
        predicted: Sequence[Transcription],
        image_size: tuple[int, int] | None = None,
    ) -> TextErrors:
        """The next task: true texts by annotation that counts (none where it does not count here), found ones."""
        totals = [0] * len(COUNT_COLUMNS)
        worst = TextErrors(0, 0, 0, 0)
        for truth in truths:
            pairs, missed, invented = match_texts(truth, predicted, image_size)
            self._has_regions = self._has_regions or any(each.shape for each in truth)
            row = _count_row(pairs, missed, invented)
            totals = [total + each for total, each in zip(totals, row, strict=True)]
            reading = TextErrors(row[5], row[6], len(missed), len(invented))
            worst = max(worst, reading)
        self._rows.extend(totals)
        return worst

    @property
    def has_truth(self) -> bool:
        return bool(self._column("true").any())

    @property
    def has_predictions(self) -> bool:
        return bool(self._column("found").any())

    def metrics(self) -> TextMetrics:
        import numpy as np

        ones = np.ones((1, len(self._rows) // len(COUNT_COLUMNS)), np.int32)
        found = {name.replace("-", "_"): _nan_to_none(values[0]) for name, values in self.weighted_values(ones).items()}
        for name in () if self._has_regions else ("precision", "recall", "hmean"):
            found[name] = None
        support, predicted, count = (int(self._column(name).sum()) for name in ("true", "found", "examples"))
        return TextMetrics(count=count, support=support, predicted=predicted, **found)  # type: ignore[arg-type]

    def task_groups(self) -> None:
        return None

    def weighted_values(
        self, weights: npt.NDArray[np.int32], tasks: npt.NDArray[np.int64] | None = None
    ) -> dict[str, npt.NDArray[np.float64]]:
        """The headline numbers when every task counts as often as it says; see `ChoiceCounts.values`."""
        import numpy as np

        totals = (weights @ self._table.astype(np.float64)).T
        at = dict(zip(COUNT_COLUMNS, totals, strict=True))
        with np.errstate(divide="ignore", invalid="ignore"):
            values = {
                "cer": at["edits"] / at["characters"],
                "wer": at["word_edits"] / at["words"],
                "cer-found": at["matched_edits"] / at["matched_characters"],
                "wer-found": at["matched_word_edits"] / at["matched_words"],
                "precision": at["matched"] / at["found"],
                "recall": at["matched"] / at["true"],
                "hmean": 2 * at["matched"] / (at["true"] + at["found"]),
                "exact": at["exact"] / at["true"],
            }
        return {name: np.where(np.isfinite(each), each, np.nan) for name, each in values.items()}

    @property
    def _table(self) -> npt.NDArray[np.int32]:
        import numpy as np

        return np.frombuffer(self._rows, np.int32).reshape(-1, len(COUNT_COLUMNS))

    def _column(self, name: str) -> npt.NDArray[np.int32]:
        return self._table[:, COUNT_COLUMNS.index(name)]


def match_texts(
    truth: Sequence[Transcription], predicted: Sequence[Transcription], image_size: tuple[int, int] | None
) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """(texts that belong together, true ones that were missed, found ones that are not there).

    Where a side does not say where its texts are, each side is one text, in the order in which it was written.
    """
    if not all(each.shape for each in (*truth, *predicted)):
        true, guess = ("\n".join(each.text for each in side) for side in (truth, predicted))
        if truth and predicted:
            return [(true, guess)], [], []
        return [], [true] * bool(truth), [guess] * bool(predicted)
    overlap = iou_matrix(
        [each.shape for each in truth if each.shape], [each.shape for each in predicted if each.shape], image_size
    )
    pairs: dict[int, int] = {}
    for i in range(len(truth)):
        for j in range(len(predicted)):
            if i not in pairs and j not in pairs.values() and overlap[i][j] > IOU_THRESHOLD:
                pairs[i] = j
    return (
        [(truth[i].text, predicted[j].text) for i, j in pairs.items()],
        [each.text for i, each in enumerate(truth) if i not in pairs],
        [each.text for j, each in enumerate(predicted) if j not in pairs.values()],
    )


def character_edits(truth: str, predicted: str) -> tuple[int, int]:
    """(characters to insert, delete or replace, characters that are true)."""
    true, guess = _normalize(truth), _normalize(predicted)
    return _edit_distance(true, guess), len(true)


def word_edits(truth: str, predicted: str) -> tuple[int, int]:
    true, guess = _normalize(truth).split(), _normalize(predicted).split()
    return _edit_distance(true, guess), len(true)


def agreement(
    first: Sequence[Transcription], second: Sequence[Transcription], image_size: tuple[int, int] | None
) -> float:
    """How much two people agree: 1 - CER, the longer side being the true one; 1 where both write nothing."""
    pairs, missed, invented = match_texts(first, second, image_size)
    row = _count_row(pairs, missed, invented)
    lengths = [sum(len(_normalize(each.text)) for each in side) for side in (first, second)]
    longest = max(row[6], *lengths)
    return max(0.0, 1 - row[5] / longest) if longest else 1.0


def _count_row(
    pairs: Sequence[tuple[str, str]], false_negatives: Sequence[str], false_positives: Sequence[str]
) -> list[int]:
    """A row of COLUMNS for one annotation."""
    characters, words = [character_edits(*pair) for pair in pairs], [word_edits(*pair) for pair in pairs]
    edits, true = sum(each for each, _ in characters), sum(each for _, each in characters)
    word_errors, true_words = sum(each for each, _ in words), sum(each for _, each in words)
    lost, lost_words = (
        sum(len(_normalize(each)) for each in false_negatives),
        sum(len(_normalize(each).split()) for each in false_negatives),
    )
    more, more_words = (
        sum(len(_normalize(each)) for each in false_positives),
        sum(len(_normalize(each).split()) for each in false_positives),
    )
    exact = sum(not each for each, _ in characters)
    return [
        *(1, len(pairs) + len(false_negatives), len(pairs) + len(false_positives), len(pairs), exact),
        *(edits + lost + more, true + lost, word_errors + lost_words + more_words, true_words + lost_words),
        *(edits, true, word_errors, true_words),
    ]


def _normalize(text: str) -> str:
    """An é is an é, however many characters it is made of; space around a text is none of it."""
    return unicodedata.normalize("NFC", text).strip()


def _edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    if first == second:
        return 0
    if not first or not second:
        return len(first) + len(second)
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError:
        raise UsageError("Measuring texts needs the package rapidfuzz.", "pip install 'lsml[evaluate]'") from None
    return int(Levenshtein.distance(first, second))


def _nan_to_none(value: Any) -> float | None:
    return float(value) if value == value else None
