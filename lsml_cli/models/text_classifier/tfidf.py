"""Turn texts into sparse TF-IDF rows over n-grams of tokens, with numpy alone.

The features and weights are those of scikit-learn's

    TfidfVectorizer(sublinear_tf=True, ngram_range=(1, n), token_pattern=TOKEN, min_df=..., max_features=...)

without its cost: importing scikit-learn takes a second, and its n-gram strings take 20 us per short text. Here each
token becomes a number once, and an n-gram is looked up as the pair (feature of its first n - 1 tokens, last token) in a
sorted table, for a whole batch at a time.

In this module a *node* is the feature of the n-gram that starts at a token, -1 for none.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # numpy is imported with the first weights, so that importing this module is cheap
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float64]

# Combining marks are not word characters for `re`, and would split Hindi, Arabic or decomposed Latin words.
_MARKS = "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
# Scripts without spaces: Thai, Lao, Burmese, Khmer, kana, Han. Each character is a token, so that pairs of characters
# become features; a whole sentence as one token would hardly occur twice.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# Runs of punctuation and symbols are tokens as well, because "!!!", "£", ":)" and emoji are informative in short texts.
TOKEN = rf"(?:[^\W{_UNSPACED}]|[{_MARKS}])+|[{_UNSPACED}]|[^\w\s{_UNSPACED}{_MARKS}]+"

_TOKEN = re.compile(TOKEN)
_PLAIN_TOKEN = re.compile(r"\w+|[^\w\s]+")  # matches the same in texts without either, in half the time
_NEEDS_FULL_PATTERN = re.compile(rf"[{_UNSPACED}{_MARKS}]")

_LONG_TEXT = 100_000  # characters from which tokens are generated one by one instead of held in a list


def tokens(text: str) -> Iterable[str]:
    """Split a text into lower-cased tokens."""
    lowered = text.lower()
    pattern = _PLAIN_TOKEN if lowered.isascii() or not _NEEDS_FULL_PATTERN.search(lowered) else _TOKEN
    if len(lowered) < _LONG_TEXT:
        return pattern.findall(lowered)
    return (match.group() for match in pattern.finditer(lowered))


class SparseRows(NamedTuple):
    """A sparse matrix: entry i is `weight[i]` in row `row[i]` and column `feature[i]`; sorted by row, then feature."""

    row: Ints
    feature: Ints
    weight: Floats


@dataclass(frozen=True)
class Tfidf:
    """A fitted vocabulary of F features.

    Attributes:
        tokens: Number of each of T words, which is its feature as well.
        tables: For n = 2, 3, ...: sorted keys `feature of the first n - 1 tokens * T + last token`. The features of
            the n-grams are numbered in this order, after the words.
        idf: (F,) weights, ln((1 + documents) / (1 + documents with the feature)) + 1.
    """

    tokens: Mapping[str, int]
    tables: Sequence[Ints]
    idf: Floats

    def transform(self, texts: Sequence[str]) -> SparseRows:
        """Return one row of Euclidean length 1 per text; a text without a known token has no entries."""
        ids, lengths = _encode_tokens(texts, lambda words: map(self.tokens.get, words, repeat(-1)))
        return self._weigh_rows(ids, lengths)

    def _weigh_rows(self, token_ids: Ints, lengths: Sequence[int]) -> SparseRows:
        import numpy as np

        count = len(lengths)
        features = len(self.idf)
        row = np.repeat(np.arange(count, dtype=np.int64), lengths)
        keys = [rows * features + nodes for rows, nodes in self._ngram_levels(row, token_ids)]
        entries, counts = np.unique(np.concatenate(keys), return_counts=True)
        row, feature = np.divmod(entries, features) if features else (entries, entries)
        weight = (np.log(counts) + 1.0) * self.idf[feature]
        length = np.sqrt(np.bincount(row, weight * weight, minlength=count))
        return SparseRows(row, feature, weight / length[row])

    def _ngram_levels(self, rows: Ints, token_ids: Ints) -> Iterator[tuple[Ints, Ints]]:
        """Yield the rows and features of the known n-grams in the texts, for n = 1, 2, ..."""
        import numpy as np

        node, first = token_ids, len(self.tokens)
        yield rows[node >= 0], node[node >= 0]
        for n, table in enumerate(self.tables, start=2):
            start, key = _ngram_keys(rows, token_ids, node, n, len(self.tokens))
            index = np.searchsorted(table, key)
            is_known = index < len(table)
            is_known[is_known] = table[index[is_known]] == key[is_known]
            yield rows[start[is_known]], first + index[is_known]
            node = np.full_like(token_ids, -1)
            node[start[is_known]] = first + index[is_known]
            first += len(table)

    @classmethod
    def fit(
        cls, texts: Sequence[str], *, ngrams: int, min_df: int, max_features: int | None
    ) -> tuple[Tfidf, SparseRows]:
        """Fit a vocabulary to texts.

        Args:
            texts: The texts.
            ngrams: Tokens of the longest n-gram.
            min_df: Texts that a feature must occur in.
            max_features: Features to keep, those that occur most often; None for all.

        Returns:
            The vocabulary, and the rows of the texts.
        """
        import numpy as np

        first_seen: dict[str, int] = defaultdict()
        first_seen.default_factory = first_seen.__len__  # type: ignore[attr-defined]
        ids, lengths = _encode_tokens(texts, lambda words: map(first_seen.__getitem__, words))
        words = sorted(first_seen)
        rank = np.empty(len(words), np.int64)
        rank[[first_seen[word] for word in words]] = np.arange(len(words))
        all_words = cls({word: i for i, word in enumerate(words)}, (), np.zeros(0))
        vocabulary, renumbered = all_words._select_features(rank[ids], lengths, ngrams, min_df, max_features)
        return vocabulary, vocabulary._weigh_rows(renumbered, lengths)

    def _select_features(
        self, token_ids: Ints, lengths: Sequence[int], ngrams: int, min_df: int, max_features: int | None
    ) -> tuple[Tfidf, Ints]:
        """Choose the features to keep of a vocabulary of all words.

        Returns:
            The vocabulary, and `token_ids` in its numbers, -1 for words that are not kept.
        """
        import numpy as np

        count, words = len(lengths), len(self.tokens)
        row = np.repeat(np.arange(count, dtype=np.int64), lengths)
        node, tables = token_ids, []
        occurrences = [np.bincount(token_ids, minlength=words)]
        document_counts = [_document_frequency(row, token_ids, words)]
        first = words
        for n in range(2, ngrams + 1):
            start, key = _ngram_keys(row, token_ids, node, n, words)
            table, index = np.unique(key, return_inverse=True)
            tables.append(table)
            occurrences.append(np.bincount(index, minlength=len(table)))
            document_counts.append(_document_frequency(row[start], index, len(table)))
            node = np.full_like(token_ids, -1)
            node[start] = first + index
            first += len(table)
        total, documents = np.concatenate(occurrences), np.concatenate(document_counts)
        # An n-gram is never more frequent than its parts, and is numbered after them: if it is kept, they are.
        kept = np.flatnonzero(documents >= min_df)
        kept = np.sort(kept[np.argsort(-total[kept], kind="stable")][:max_features])
        renumber = np.full(first, -1, np.int64)
        renumber[kept] = np.arange(len(kept))
        kept_words = int(np.searchsorted(kept, words))
        names = list(self.tokens)
        pruned, first = [], words
        for table in tables:
            keys = table[kept[(kept >= first) & (kept < first + len(table))] - first]
            pruned.append(renumber[keys // words] * kept_words + renumber[keys % words])
            first += len(table)
        idf = np.log((1.0 + count) / (1.0 + documents[kept])) + 1.0
        return Tfidf({names[old]: new for new, old in enumerate(kept[:kept_words])}, pruned, idf), renumber[token_ids]


def _encode_tokens(texts: Sequence[str], to_ids: Callable[[Iterable[str]], Iterable[int]]) -> tuple[Ints, list[int]]:
    """Encode the tokens of all texts; return their numbers, text after text, and the number of tokens of each text."""
    import numpy as np

    ids: list[int] = []
    lengths = []
    for text in texts:
        start = len(ids)
        ids.extend(to_ids(tokens(text)))
        lengths.append(len(ids) - start)
    return np.array(ids, np.int64), lengths


def _ngram_keys(row: Ints, token_ids: Ints, node: Ints, n: int, words: int) -> tuple[Ints, Ints]:
    """Find the n-grams that continue a known (n - 1)-gram by a known token; return their start positions and keys."""
    import numpy as np

    offset = n - 1
    is_known = (node[:-offset] >= 0) & (token_ids[offset:] >= 0) & (row[:-offset] == row[offset:])
    start = np.flatnonzero(is_known)
    return start, node[start] * words + token_ids[start + offset]


def _document_frequency(row: Any, feature: Any, features: int) -> Ints:
    """Count the rows that each feature occurs in."""
    import numpy as np

    return np.bincount(np.unique(row * features + feature) % features, minlength=features) if features else feature
