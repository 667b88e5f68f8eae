"""Score texts by their likeness to the names of labels: what an untrained text classifier goes by.

There is no training: a score is the cosine of two TF-IDF rows, and the rows of the labels are sparse. Memory grows with
the length of all names, where fitting weights for every feature and label took 20 GB for 50,000 labels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from lsml_cli.models.text_classifier.tfidf import Tfidf

if TYPE_CHECKING:
    from lsml_cli.models.text_classifier.tfidf import Floats

_EXACT_LOGIT = 2.0  # of a text that is the only label's name: a probability of 0.88
_MULTI_SCALE = 8.0  # for choice="multiple": a label applies to a text from a cosine of 0.5


class NamedHead(NamedTuple):
    """The labels of one control.

    Attributes:
        labels: The names of each label: its value, and its alias if it has one.
        is_multi_label: Several labels may apply, each independently.
    """

    labels: Sequence[Sequence[str]]
    is_multi_label: bool


@dataclass(frozen=True)
class LabelNameScorer:
    """Score texts: a logit for each of K labels, those of all controls over one object side by side.

    Attributes:
        tfidf: The vocabulary of the labels' names, of F features.
        names: (F, K) sparse array of the labels' rows of length 1, each multiplied by the scale of its control.
        intercept: (K,).
    """

    tfidf: Tfidf
    names: Any
    intercept: Floats

    @classmethod
    def build(cls, heads: Sequence[NamedHead], params: Mapping[str, Any]) -> LabelNameScorer:
        """Build a scorer from the names of the labels; `params` are those of the text classifier."""
        import numpy as np
        from scipy.sparse import csr_array  # type: ignore[import-untyped]

        texts = [_split_identifiers(*label) for head in heads for label in head.labels]
        sizes = {name: params[name] for name in ("ngrams", "min_df", "max_features")}
        tfidf, rows = Tfidf.fit(texts, **sizes)
        widths = [len(head.labels) for head in heads]
        scale = np.repeat(
            [_MULTI_SCALE if head.is_multi_label else math.log(len(head.labels)) + _EXACT_LOGIT for head in heads],
            widths,
        )
        intercept = np.repeat([-_MULTI_SCALE / 2 if head.is_multi_label else 0.0 for head in heads], widths)
        entries = rows.weight * scale[rows.row]
        names = csr_array((entries, (rows.feature, rows.row)), shape=(len(tfidf.idf), len(texts)))
        return cls(tfidf, names, intercept)

    def scores(self, texts: Sequence[str]) -> Floats:
        """Return (n, K) logits. Those of a text do not depend on the other texts, not even in the last bit."""
        from scipy.sparse import csr_array

        rows = self.tfidf.transform(texts)
        matrix = csr_array((rows.weight, (rows.row, rows.feature)), shape=(len(texts), len(self.tfidf.idf)))
        scores: Floats = (matrix @ self.names).toarray() + self.intercept
        return scores


def _split_identifiers(*names: str) -> str:
    """Split names into words: "OrderStatus", "order_status" -> "Order Status order status"."""
    return " ".join(re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])|[_/-]+", " ", name) for name in dict.fromkeys(names))
