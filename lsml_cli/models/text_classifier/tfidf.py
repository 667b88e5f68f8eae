"""Texts -> sparse TF-IDF rows over n-grams of tokens, in numpy alone.

The features and weights are those of scikit-learn's

    TfidfVectorizer(sublinear_tf=True, ngram_range=(1, n), token_pattern=TOKEN, min_df=..., max_features=...)

without its cost: importing scikit-learn takes a second, its n-gram strings 20 us per short text. Here a token
becomes a number once, and an n-gram is looked up as the pair (feature of its first n - 1 tokens, last token)
in a sorted table, for a whole batch at a time.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # importing this module must stay free: numpy arrives with the first weights
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float64]

# Combining marks are no word characters to `re`, and would cut Hindi, Arabic or decomposed Latin words apart.
_MARKS = "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
# Written without spaces: Thai, Lao, Burmese, Khmer, kana, Han. Each character is a token there, so that pairs
# of characters become features; a whole sentence as one token would never be seen twice.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# Runs of punctuation and symbols are tokens as well: "!!!", "£", ":)" and emoji say a lot about short texts.
TOKEN = rf"(?:[^\W{_UNSPACED}]|[{_MARKS}])+|[{_UNSPACED}]|[^\w\s{_UNSPACED}{_MARKS}]+"

_TOKEN = re.compile(TOKEN)
_PLAIN_TOKEN = re.compile(r"\w+|[^\w\s]+")  # finds the same in texts with neither, in half the time
_NEEDS_FULL_PATTERN = re.compile(rf"[{_UNSPACED}{_MARKS}]")

_LONG_TEXT = 100_000  # characters; beyond, tokens are counted one by one instead of being held in a list


def tokens(text: str) -> Iterable[str]:
    """The lower-cased tokens of a text, in order."""
    lowered = text.lower()
    pattern = _PLAIN_TOKEN if lowered.isascii() or not _NEEDS_FULL_PATTERN.search(lowered) else _TOKEN
    if len(lowered) < _LONG_TEXT:
        return pattern.findall(lowered)
    return (match.group() for match in pattern.finditer(lowered))


class SparseRows(NamedTuple):
    """Sparse rows: entry i is `weight[i]` in row `row[i]` and column `feature[i]`; sorted by row, then feature."""

    row: Ints
    feature: Ints
    weight: Floats


@dataclass(frozen=True)
class Tfidf:
    """A fitted vocabulary of F features.

    tokens  T words; word i is token i and feature i
    tables  for n = 2, 3, ...: sorted keys `feature of the first n - 1 tokens * T + last token`; their features
            follow one another after the words
    idf     (F,) weights, ln((1 + documents) / (1 + documents with it)) + 1
    """

    tokens: Mapping[str, int]
    tables: Sequence[Ints]
    idf: Floats

    def transform(self, texts: Sequence[str]) -> SparseRows:
        """One row of Euclidean length 1 per text; a text without a known token has no entries."""
        ids, lengths = _encode_tokens(texts, lambda found: map(self.tokens.get, found, repeat(-1)))
        return self._weigh_rows(ids, lengths)

    def _weigh_rows(self, token_ids: Ints, lengths: Sequence[int]) -> SparseRows:
        import numpy as np

        count = len(lengths)
        features = len(self.idf)
        row = np.repeat(np.arange(count, dtype=np.int64), lengths)
        keys = [at * features + node for at, node in self._ngram_levels(row, token_ids)]
        entries, times = np.unique(np.concatenate(keys), return_counts=True)
        row, feature = np.divmod(entries, features) if features else (entries, entries)
        weight = (np.log(times) + 1.0) * self.idf[feature]
        length = np.sqrt(np.bincount(row, weight * weight, minlength=count))
        return SparseRows(row, feature, weight / length[row])

    def _ngram_levels(self, rows: Ints, token_ids: Ints) -> Iterator[tuple[Ints, Ints]]:
        """(row, feature) of every n-gram in the texts, n = 1, 2, ..."""
        import numpy as np

        node, first = token_ids, len(self.tokens)
        yield rows[node >= 0], node[node >= 0]
        for n, table in enumerate(self.tables, start=2):
            at, key = _ngram_keys(rows, token_ids, node, n, len(self.tokens))
            place = np.searchsorted(table, key)
            found = place < len(table)
            found[found] = table[place[found]] == key[found]
            yield rows[at[found]], first + place[found]
            node = np.full_like(token_ids, -1)
            node[at[found]] = first + place[found]
            first += len(table)

    @classmethod
    def fit(
        cls, texts: Sequence[str], *, ngrams: int, min_df: int, max_features: int | None
    ) -> tuple[Tfidf, SparseRows]:
        """A vocabulary of these texts, and their rows.

        ngrams        longest n-gram, in tokens
        min_df        in how many texts a feature must occur
        max_features  how many features to keep, those that occur most often
        """
        import numpy as np

        number: dict[str, int] = defaultdict()
        number.default_factory = number.__len__  # type: ignore[attr-defined]
        ids, lengths = _encode_tokens(texts, lambda found: map(number.__getitem__, found))
        words = sorted(number)
        rank = np.empty(len(words), np.int64)
        rank[[number[word] for word in words]] = np.arange(len(words))
        every = cls({word: i for i, word in enumerate(words)}, (), np.zeros(0))
        vocabulary, renumbered = every._select_features(rank[ids], lengths, ngrams, min_df, max_features)
        return vocabulary, vocabulary._weigh_rows(renumbered, lengths)

    def _select_features(
        self, token_ids: Ints, lengths: Sequence[int], ngrams: int, min_df: int, max_features: int | None
    ) -> tuple[Tfidf, Ints]:
        """From all words to the features worth keeping; also `ids` in the numbers of the kept words (-1: gone)."""
        import numpy as np

        count, words = len(lengths), len(self.tokens)
        row = np.repeat(np.arange(count, dtype=np.int64), lengths)
        node, tables, times, spread = (
            token_ids,
            [],
            [np.bincount(token_ids, minlength=words)],
            [_document_frequency(row, token_ids, words)],
        )
        first = words
        for n in range(2, ngrams + 1):
            at, key = _ngram_keys(row, token_ids, node, n, words)
            table, place = np.unique(key, return_inverse=True)
            tables.append(table)
            times.append(np.bincount(place, minlength=len(table)))
            spread.append(_document_frequency(row[at], place, len(table)))
            node = np.full_like(token_ids, -1)
            node[at] = first + place
            first += len(table)
        total, documents = np.concatenate(times), np.concatenate(spread)
        # An n-gram is never more frequent than its parts, and comes after them: whatever is kept, its parts are.
        kept = np.flatnonzero(documents >= min_df)
        kept = np.sort(kept[np.argsort(-total[kept], kind="stable")][:max_features])
        renumber = np.full(first, -1, np.int64)
        renumber[kept] = np.arange(len(kept))
        kept_words = int(np.searchsorted(kept, words))
        names = list(self.tokens)
        pruned, first = [], words
        for table in tables:
            mine = table[kept[(kept >= first) & (kept < first + len(table))] - first]
            pruned.append(renumber[mine // words] * kept_words + renumber[mine % words])
            first += len(table)
        idf = np.log((1.0 + count) / (1.0 + documents[kept])) + 1.0
        return Tfidf({names[old]: new for new, old in enumerate(kept[:kept_words])}, pruned, idf), renumber[token_ids]


def _encode_tokens(texts: Sequence[str], to_ids: Callable[[Iterable[str]], Iterable[int]]) -> tuple[Ints, list[int]]:
    """The numbers of all tokens of all texts, one after the other, and how many each text has."""
    import numpy as np

    ids: list[int] = []
    lengths = []
    for text in texts:
        before = len(ids)
        ids.extend(to_ids(tokens(text)))
        lengths.append(len(ids) - before)
    return np.array(ids, np.int64), lengths


def _ngram_keys(row: Ints, token_ids: Ints, node: Ints, n: int, words: int) -> tuple[Ints, Ints]:
    """Where n-grams begin that continue a known (n - 1)-gram by a known token, and their keys."""
    import numpy as np

    reach = n - 1
    known = (node[:-reach] >= 0) & (token_ids[reach:] >= 0) & (row[:-reach] == row[reach:])
    at = np.flatnonzero(known)
    return at, node[at] * words + token_ids[at + reach]


def _document_frequency(row: Any, feature: Any, features: int) -> Ints:
    """In how many rows each feature occurs."""
    import numpy as np

    return np.bincount(np.unique(row * features + feature) % features, minlength=features) if features else feature
