"""Metrics of transcriptions: character and word error rates, and detection of the regions with text.

CER and WER are Levenshtein distances (of characters, of words) divided by the length of the true text, as in jiwer. A
missed region counts with all its characters as errors, and so does one that is not there. Regions are matched as in
ICDAR 2015: one to one, with an IoU above 0.5, regardless of their texts.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from lsml_cli.errors import UsageError
from lsml_cli.evaluation.metrics.geometry import ImageSize, iou_matrix
from lsml_cli.evaluation.metrics.numeric import nan_to_none
from lsml_cli.runtime import install_hint
from lsml_cli.schema.shapes import Shape

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

IOU_THRESHOLD = 0.5


class Transcription(NamedTuple):
    """A text and where it is written; without a shape it is about the whole task."""

    text: str
    shape: Shape | None = None


class CountRow(NamedTuple):
    """What is counted for each task, summed over its selected annotations.

    Attributes:
        examples: Annotations.
        true: True texts.
        predicted: Predicted texts.
        matched: Pairs of a true and a predicted text.
        exact: Pairs without any error.
        edits: Wrong characters.
        characters: True characters.
        word_edits: Wrong words.
        words: True words.
        matched_edits: Of matched pairs only, like the following.
    """

    examples: int = 0
    true: int = 0
    predicted: int = 0
    matched: int = 0
    exact: int = 0
    edits: int = 0
    characters: int = 0
    word_edits: int = 0
    words: int = 0
    matched_edits: int = 0
    matched_characters: int = 0
    matched_word_edits: int = 0
    matched_words: int = 0


@dataclass(frozen=True)
class TextMetrics:
    """The metrics of one control over `count` annotations. Of the four error rates less is better.

    Attributes:
        cer: Character error rate of all texts.
        wer: Word error rate of all texts.
        cer_found: Character error rate of the matched regions only.
        wer_found: Word error rate of the matched regions only.
        precision: Of the regions, regardless of their texts; None, like recall and hmean, for texts about whole tasks.
        exact: Share of the texts without any error.
        support: Number of true texts.
        predicted: Number of predicted texts.
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
        """Return the metrics by the name that gates use."""
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
    """The errors of one task: wrong characters, true characters, and regions that only one side has."""

    edits: int
    characters: int
    false_negatives: int
    false_positives: int


class TextCounts:
    """Accumulates the texts of one control, task by task, in a few numbers each."""

    def __init__(self) -> None:
        self._rows = array("i")  # a `CountRow` for each task
        self._has_regions = False

    def add(
        self,
        truths: Sequence[Sequence[Transcription]],
        predicted: Sequence[Transcription],
        image_size: ImageSize | None = None,
    ) -> TextErrors:
        """Add a task, and return the errors against the annotation with the most errors.

        Args:
            truths: The true texts of each selected annotation; none if the task is not to count.
            predicted: The predicted texts.
            image_size: Of the image, if known.
        """
        totals = CountRow()
        worst = TextErrors(0, 0, 0, 0)
        for truth in truths:
            pairs, missed, extra = match_texts(truth, predicted, image_size)
            self._has_regions = self._has_regions or any(transcription.shape for transcription in truth)
            row = _count_row(pairs, missed, extra)
            totals = CountRow(*(total + count for total, count in zip(totals, row, strict=True)))
            worst = max(worst, TextErrors(row.edits, row.characters, len(missed), len(extra)))
        self._rows.extend(totals)
        return worst

    @property
    def has_truth(self) -> bool:
        return bool(self._columns().true.any())

    @property
    def has_predictions(self) -> bool:
        return bool(self._columns().predicted.any())

    def metrics(self) -> TextMetrics:
        import numpy as np

        ones = np.ones((1, len(self._rows) // len(CountRow._fields)), np.int32)
        values = {name: nan_to_none(value[0]) for name, value in self.weighted_values(ones).items()}
        columns = self._columns()
        return TextMetrics(
            count=int(columns.examples.sum()),
            cer=values["cer"],
            wer=values["wer"],
            cer_found=values["cer-found"],
            wer_found=values["wer-found"],
            precision=values["precision"] if self._has_regions else None,
            recall=values["recall"] if self._has_regions else None,
            hmean=values["hmean"] if self._has_regions else None,
            exact=values["exact"],
            support=int(columns.true.sum()),
            predicted=int(columns.predicted.sum()),
        )

    def task_groups(self) -> None:
        """Return None: every task contributes different numbers, see `bootstrap.WeightedCounts`."""
        return None

    def weighted_values(
        self, weights: npt.NDArray[np.int32], tasks: npt.NDArray[np.int64] | None = None
    ) -> dict[str, npt.NDArray[np.float64]]:
        """Return the headline metrics of all tasks, weighted; see `WeightedCounts`."""
        import numpy as np

        totals = _CountColumns(*(weights @ self._table().astype(np.float64)).T)
        with np.errstate(divide="ignore", invalid="ignore"):
            values = {
                "cer": totals.edits / totals.characters,
                "wer": totals.word_edits / totals.words,
                "cer-found": totals.matched_edits / totals.matched_characters,
                "wer-found": totals.matched_word_edits / totals.matched_words,
                "precision": totals.matched / totals.predicted,
                "recall": totals.matched / totals.true,
                "hmean": 2 * totals.matched / (totals.true + totals.predicted),
                "exact": totals.exact / totals.true,
            }
        return {name: np.where(np.isfinite(value), value, np.nan) for name, value in values.items()}

    def _table(self) -> npt.NDArray[np.int32]:
        """Return the counts, shape (tasks, fields of CountRow)."""
        import numpy as np

        return np.frombuffer(self._rows, np.int32).reshape(-1, len(CountRow._fields))

    def _columns(self) -> _CountColumns:
        return _CountColumns(*self._table().T)


class _CountColumns(NamedTuple):
    """The fields of `CountRow` as arrays over tasks or over resamples."""

    examples: npt.NDArray[Any]
    true: npt.NDArray[Any]
    predicted: npt.NDArray[Any]
    matched: npt.NDArray[Any]
    exact: npt.NDArray[Any]
    edits: npt.NDArray[Any]
    characters: npt.NDArray[Any]
    word_edits: npt.NDArray[Any]
    words: npt.NDArray[Any]
    matched_edits: npt.NDArray[Any]
    matched_characters: npt.NDArray[Any]
    matched_word_edits: npt.NDArray[Any]
    matched_words: npt.NDArray[Any]


def match_texts(
    truth: Sequence[Transcription], predicted: Sequence[Transcription], image_size: ImageSize | None
) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """Match true and predicted texts by their regions.

    If any text has no region, each side is joined to one text in the order in which it was written.

    Returns:
        Pairs (true text, predicted text), missed true texts, and predicted texts that match none.
    """
    if not all(transcription.shape for transcription in (*truth, *predicted)):
        true_text, predicted_text = ("\n".join(part.text for part in side) for side in (truth, predicted))
        if truth and predicted:
            return [(true_text, predicted_text)], [], []
        return [], [true_text] * bool(truth), [predicted_text] * bool(predicted)
    overlap = iou_matrix(
        [part.shape for part in truth if part.shape], [part.shape for part in predicted if part.shape], image_size
    )
    pairs: dict[int, int] = {}
    for i in range(len(truth)):
        for j in range(len(predicted)):
            if i not in pairs and j not in pairs.values() and overlap[i][j] > IOU_THRESHOLD:
                pairs[i] = j
    return (
        [(truth[i].text, predicted[j].text) for i, j in pairs.items()],
        [part.text for i, part in enumerate(truth) if i not in pairs],
        [part.text for j, part in enumerate(predicted) if j not in pairs.values()],
    )


def character_edits(truth: str, predicted: str) -> tuple[int, int]:
    """Return the number of characters to insert, delete or replace, and the number of true characters."""
    true, guess = _normalize(truth), _normalize(predicted)
    return _edit_distance(true, guess), len(true)


def word_edits(truth: str, predicted: str) -> tuple[int, int]:
    """Return the number of words to insert, delete or replace, and the number of true words."""
    true, guess = _normalize(truth).split(), _normalize(predicted).split()
    return _edit_distance(true, guess), len(true)


def agreement(first: Sequence[Transcription], second: Sequence[Transcription], image_size: ImageSize | None) -> float:
    """Return how much two people agree: 1 - CER, where the longer side is the true one; 1 if both wrote nothing."""
    row = _count_row(*match_texts(first, second, image_size))
    lengths = [sum(len(_normalize(part.text)) for part in side) for side in (first, second)]
    longest = max(row.characters, *lengths)
    return max(0.0, 1 - row.edits / longest) if longest else 1.0


def _count_row(
    pairs: Sequence[tuple[str, str]], false_negatives: Sequence[str], false_positives: Sequence[str]
) -> CountRow:
    """Count the errors of one annotation."""
    by_character, by_word = [character_edits(*pair) for pair in pairs], [word_edits(*pair) for pair in pairs]
    edits, characters = (sum(pair[side] for pair in by_character) for side in (0, 1))
    word_edits_, words = (sum(pair[side] for pair in by_word) for side in (0, 1))
    missed_characters, missed_words = _count_lengths(false_negatives)
    extra_characters, extra_words = _count_lengths(false_positives)
    return CountRow(
        examples=1,
        true=len(pairs) + len(false_negatives),
        predicted=len(pairs) + len(false_positives),
        matched=len(pairs),
        exact=sum(not pair_edits for pair_edits, _ in by_character),
        edits=edits + missed_characters + extra_characters,
        characters=characters + missed_characters,
        word_edits=word_edits_ + missed_words + extra_words,
        words=words + missed_words,
        matched_edits=edits,
        matched_characters=characters,
        matched_word_edits=word_edits_,
        matched_words=words,
    )


def _count_lengths(texts: Sequence[str]) -> tuple[int, int]:
    """Return the number of characters and of words in all texts."""
    normalized = [_normalize(text) for text in texts]
    return sum(map(len, normalized)), sum(len(text.split()) for text in normalized)


def _normalize(text: str) -> str:
    """Compose characters, so that é equals e with an accent, and strip surrounding space."""
    return unicodedata.normalize("NFC", text).strip()


def _edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    if first == second:
        return 0
    if not first or not second:
        return len(first) + len(second)
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError:
        raise UsageError("Measuring texts needs the package rapidfuzz.", install_hint("lsml[evaluate]")) from None
    return int(Levenshtein.distance(first, second))
