"""The linear part of the text classifier: a weight for each feature and class, for all heads over one object.

scikit-learn fits it; numpy applies it as `rows @ coef + intercept`, so that predicting with a trained model does not
import scikit-learn.
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
from lsml_cli.runtime import physical_memory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lsml_cli.models.text_classifier.tfidf import Floats

    Weights = NDArray[np.float32]

WEIGHTS = "weights.safetensors"
VOCABULARY = "vocabulary.json"

_SOLVER_BYTES = 110  # of memory per weight of a single choice of three or more classes, measured
_CHUNK_CHARACTERS = 1 << 17  # of the texts that are scored at a time, whatever the batch size: bounds the memory
_CHUNK_COLUMNS = 64  # classes that are scored at a time: the gathered weights are an (entries, columns) array


@dataclass(frozen=True)
class Scorer:
    """Score texts: a logit for each of K classes, the classes of all heads side by side.

    Attributes:
        tfidf: The vocabulary of F features.
        coef: (F, K) weights; the weights of one feature are contiguous, because a text needs few of them.
        intercept: (K,).
    """

    tfidf: Tfidf
    coef: Weights
    intercept: Weights

    def scores(self, texts: Sequence[str]) -> Floats:
        """Return (n, K) logits. Those of a text do not depend on the other texts, not even in the last bit."""
        import numpy as np

        chunks = [self._scores(self.tfidf.transform(chunk), len(chunk)) for chunk in _chunk_texts(texts)]
        return np.concatenate(chunks)

    def _scores(self, rows: SparseRows, count: int) -> Floats:
        import numpy as np

        scores = np.tile(self.intercept.astype(np.float64), (count, 1))
        if not len(rows.row):
            return scores
        starts = np.flatnonzero(np.diff(rows.row, prepend=-1))
        for first in range(0, scores.shape[1], _CHUNK_COLUMNS):
            columns = slice(first, first + _CHUNK_COLUMNS)
            terms = self.coef[:, columns][rows.feature] * rows.weight[:, None]
            scores[rows.row[starts], columns] += np.add.reduceat(terms, starts, axis=0)
        return scores


def _chunk_texts(texts: Sequence[str]) -> Iterator[list[str]]:
    """Split texts into chunks of at most `_CHUNK_CHARACTERS`, or of one longer text; at least one chunk."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        if chunk and size + len(text) > _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
        chunk.append(text)
        size += len(text)
    yield chunk


def fit(texts: Sequence[str], heads: Sequence[HeadTargets], params: Mapping[str, Any]) -> tuple[Scorer, list[str]]:
    """Fit a vocabulary to all texts, and a logistic regression for each head.

    Args:
        texts: n texts.
        heads: What each head learns; its rows are positions in `texts`.
        params: The parameters of the text classifier.

    Returns:
        The scorer, and sentences about problems of the fit.

    Raises:
        ModelError: The weights do not fit into the memory of this machine.
    """
    import numpy as np
    from scipy.sparse import csr_array  # type: ignore[import-untyped]

    sizes = {name: params[name] for name in ("ngrams", "min_df", "max_features")}
    tfidf, rows = Tfidf.fit(texts, **sizes)
    _require_memory(len(tfidf.idf), max((len(head.classes) for head in heads if not head.is_multi_label), default=0))
    matrix = csr_array((rows.weight, (rows.row, rows.feature)), shape=(len(texts), len(tfidf.idf)))
    fitted, notes = fit_heads(matrix, heads, params["C"], params["class_weight"])
    coef = np.concatenate([coef for coef, _ in fitted], axis=1, dtype=np.float32)
    weights: Weights = np.ascontiguousarray(coef)  # as safetensors needs it
    return Scorer(tfidf, weights, np.concatenate([intercept for _, intercept in fitted], dtype=np.float32)), notes


def _require_memory(features: int, classes: int) -> None:
    """Raise ModelError if the solver would need more memory than this machine has: it would be killed at the end."""
    needed, memory = _SOLVER_BYTES * features * classes, physical_memory()
    if memory is not None and needed > memory:
        fitting_features = max(1, memory // 2 // _SOLVER_BYTES // classes)
        raise ModelError(
            f"Fitting {classes:,} classes on {features:,} features takes about {needed / 1e9:,.0f} GB of memory, and "
            f"this machine has {memory / 1e9:,.0f} GB.",
            f"Keep the most frequent features only: --with max_features={fitting_features}.",
        )


def save(folder: Path, scorers: Sequence[Scorer]) -> None:
    """Write arrays and vocabularies into a folder. The same scorers give the same bytes."""
    import numpy as np
    from safetensors.numpy import save as to_bytes

    arrays: dict[str, Any] = {}
    for i, scorer in enumerate(scorers):
        arrays |= {f"{i}.coef": scorer.coef, f"{i}.intercept": scorer.intercept}
        arrays[f"{i}.idf"] = scorer.tfidf.idf.astype(np.float32)
        arrays |= {f"{i}.ngrams.{n}": table for n, table in enumerate(scorer.tfidf.tables, start=2)}
    (folder / WEIGHTS).write_bytes(to_bytes(arrays))  # save_file would make a file that only its owner may read
    words = [list(scorer.tfidf.tokens) for scorer in scorers]
    (folder / VOCABULARY).write_text(json.dumps(words, ensure_ascii=False, indent=0), encoding="utf-8")


def load(folder: Path, widths: Sequence[int]) -> list[Scorer]:
    """Read what `save` wrote.

    Args:
        folder: Folder of the version.
        widths: The number of classes that each scorer must have.

    Raises:
        ModelError: A file is missing or damaged, or the files do not belong together.
    """
    import numpy as np
    from safetensors.numpy import load_file

    try:
        with (folder / WEIGHTS).open("rb"):  # for an OSError with errno and name, which safetensors does not raise
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
    except Exception as error:  # safetensors has no common base class for its errors
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
