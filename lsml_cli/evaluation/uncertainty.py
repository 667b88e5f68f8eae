"""Estimate how certain a prediction is from the scores it contains.

A prediction stores the probability of its labels, but not those of the alternatives. So the criteria are bounds that
follow from the score p of the predicted label:

    least confident  p itself
    margin           2p - 1, at least 0: a lower bound of the lead over the second-best label
    entropy          the minimum entropy of distributions whose largest probability is p, in nats: as many labels with p
                     as fit into 1, and one with the rest

For two labels margin and entropy are exact. A task is as certain as its least certain region; entropies of regions are
summed. Each criterion is higher for more certain predictions (the entropy is negated for that).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lsml_cli.evaluation.prediction_records import parse_score

SMALLEST_SHARE = 1e-12  # of fewer than this nothing remains but equal shares

RankingCriterion = Literal["least-confident", "margin", "entropy", "score"]


def region_scores(result: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the scores in 0..1 that regions have. Regions that share an id (OCR) may repeat a score."""
    scores = (parse_score(region.get("score")) for region in result)
    return [score for score in scores if score is not None and 0 <= score <= 1]


def confidence(result: Sequence[Mapping[str, Any]], score: float | None, by: RankingCriterion) -> float | None:
    """Return the certainty of a prediction by a criterion; None if it has no scores.

    Args:
        result: The regions.
        score: Of the whole prediction; the criterion "score" is this value.
        by: The criterion.
    """
    if by == "score":
        return score
    scores = region_scores(result)
    if not scores:
        return None
    if by == "entropy":
        return -sum(map(min_entropy, scores))
    lowest = min(scores)
    return max(0.0, 2 * lowest - 1) if by == "margin" else lowest


def min_entropy(p: float) -> float:
    """Return the minimum entropy, in nats, of distributions whose largest probability is `p` in 0..1."""
    if p <= 0:
        return math.inf
    if p < SMALLEST_SHARE:  # 1 / p may be beyond the range of floats
        return -math.log(p)
    count = math.floor(1 / p + 1e-9)
    rest = max(0.0, 1 - count * p)
    return -count * p * math.log(p) - (rest * math.log(rest) if rest > 1e-12 else 0.0)


def lowest_score(result: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the lowest score; None unless every region has one, its own or that of a region with the same id."""
    scores = region_scores(result)
    scored = [region for region in result if region.get("score") is not None]
    scored_ids = {region.get("id") for region in scored}
    is_complete = len(scored) == len(scores) and all(
        region.get("score") is not None or (region.get("id") is not None and region["id"] in scored_ids)
        for region in result
    )
    return min(scores) if scores and is_complete else None
