"""The linear half of the classifier: a weight for each feature and class, for all heads over one kind of text.

Fitting is scikit-learn's `LogisticRegression`; applying it is `rows @ coef + intercept` in numpy, so that nothing but
`fit` and the cold start imports scikit-learn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import ModelError
from lsml_cli.models.choices.logistic import HeadTargets, fit_heads
from lsml_cli.models.text_classifier.tfidf import SparseRows, Tfidf

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lsml_cli.models.text_classifier.tfidf import Floats

    Weights = NDArray[np.float32]

WEIGHTS = "weights.safetensors"
VOCABULARY = "vocabulary.json"

_CHUNK_CHARACTERS = 1 << 17  # texts of so many characters are scored at a time, whatever the batch
_CHUNK_COLUMNS = 64  # classes scored at a time: what is gathered has entries x columns numbers


@dataclass(frozen=True)
class Scorer:
    """Texts -> a score (a logit) for each of K classes, those of all heads side by side.

    coef       (F, K), a row for each feature, so that the few rows a text needs lie in one piece
    intercept  (K,)
    """

    tfidf: Tfidf
    coef: Weights
    intercept: Weights

    def scores(self, texts: Sequence[str]) -> Floats:
        """(n, K). The scores of a text do not depend on the texts beside it, not even in the last bit."""
        import numpy as np

        return np.concatenate([self._scores(self.tfidf.transform(some), len(some)) for some in _chunk_texts(texts)])

    def _scores(self, rows: SparseRows, count: int) -> Floats:
        import numpy as np

        scores = np.tile(self.intercept.astype(np.float64), (count, 1))
        if not len(rows.row):
            return scores
        starts = np.flatnonzero(np.diff(rows.row, prepend=-1))
        for first in range(0, scores.shape[1], _CHUNK_COLUMNS):
            some = slice(first, first + _CHUNK_COLUMNS)
            parts = self.coef[:, some][rows.feature] * rows.weight[:, None]
            scores[rows.row[starts], some] += np.add.reduceat(parts, starts, axis=0)
        return scores


def _chunk_texts(texts: Sequence[str]) -> Iterator[list[str]]:
    piece: list[str] = []
    size = 0
    for text in texts:
        if piece and size + len(text) > _CHUNK_CHARACTERS:
            yield piece
            piece, size = [], 0
        piece.append(text)
        size += len(text)
    yield piece


def fit(texts: Sequence[str], heads: Sequence[HeadTargets], params: Mapping[str, Any]) -> tuple[Scorer, list[str]]:
    """One vocabulary for all texts, one logistic regression per head; also sentences about what did not go well."""
    import numpy as np
    from scipy.sparse import csr_array  # type: ignore[import-untyped]

    sizes = {name: params[name] for name in ("ngrams", "min_df", "max_features")}
    tfidf, rows = Tfidf.fit(texts, **sizes)
    matrix = csr_array((rows.weight, (rows.row, rows.feature)), shape=(len(texts), len(tfidf.idf)))
    fitted, notes = fit_heads(matrix, heads, params["C"], params["class_weight"])
    coef = np.concatenate([coef for coef, _ in fitted], axis=1, dtype=np.float32)
    weights: Weights = np.ascontiguousarray(coef)  # as safetensors needs it
    return Scorer(tfidf, weights, np.concatenate([each for _, each in fitted], dtype=np.float32)), notes


def save(folder: Path, scorers: Sequence[Scorer]) -> None:
    """Write the scorers as arrays beside their words. The same scorers give the same bytes."""
    import numpy as np
    from safetensors.numpy import save as to_bytes

    arrays: dict[str, Any] = {}
    for i, scorer in enumerate(scorers):
        arrays |= {f"{i}.coef": scorer.coef, f"{i}.intercept": scorer.intercept}
        arrays[f"{i}.idf"] = scorer.tfidf.idf.astype(np.float32)
        arrays |= {f"{i}.ngrams.{n}": table for n, table in enumerate(scorer.tfidf.tables, start=2)}
    (folder / WEIGHTS).write_bytes(to_bytes(arrays))  # save_file makes a file that only its owner may read
    words = [list(scorer.tfidf.tokens) for scorer in scorers]
    (folder / VOCABULARY).write_text(json.dumps(words, ensure_ascii=False, indent=0), encoding="utf-8")


def load(folder: Path, widths: Sequence[int]) -> list[Scorer]:
    """Read what `save` wrote. `widths` are the numbers of classes that the scorers must have.

    Raises ModelError when a file is missing or damaged, or when the two do not belong together.
    """
    import numpy as np
    from safetensors.numpy import load_file

    try:
        with (folder / WEIGHTS).open("rb"):  # raises what the system says, of which safetensors tells only a part
            arrays = load_file(folder / WEIGHTS)
        vocabulary = json.loads((folder / VOCABULARY).read_bytes())
        scorers = []
        for i, words in enumerate(vocabulary):
            tables = [arrays[f"{i}.ngrams.{n}"] for n in range(2, len(arrays)) if f"{i}.ngrams.{n}" in arrays]
            tfidf = Tfidf(
                dict(zip(words, range(len(words)), strict=True)), tables, arrays[f"{i}.idf"].astype(np.float64)
            )
            scorers.append(Scorer(tfidf, arrays[f"{i}.coef"], arrays[f"{i}.intercept"]))
    except FileNotFoundError as error:
        raise _damaged_error(folder, f"there is no {Path(error.filename).name}") from error
    except OSError as error:
        raise ModelError(f"{error.filename or folder / WEIGHTS} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # safetensors raises what it likes; whatever it is, the version is damaged
        raise _damaged_error(folder, f"{type(error).__name__}: {error}") from error
    for scorer, width in zip(scorers, widths, strict=False):
        features = len(scorer.tfidf.tokens) + sum(map(len, scorer.tfidf.tables))
        if (
            scorer.coef.shape != (features, width)
            or len(scorer.tfidf.idf) != features
            or len(scorer.intercept) != width
        ):
            raise _damaged_error(folder, f"{WEIGHTS} and {VOCABULARY} do not belong together")
    if len(scorers) != len(widths):
        raise _damaged_error(folder, f"{VOCABULARY} and model.json do not belong together")
    return scorers


def _damaged_error(folder: Path, problem: str) -> ModelError:
    return ModelError(
        f"The weights in {folder} are damaged ({problem}).", "Copy the folder again, or train a new version."
    )
