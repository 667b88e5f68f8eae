"""How sure a prediction is, from the scores that are in it.

A prediction carries the probability of what it says, not that of everything else it could have said. So what can be
told of the rest are limits, and these are used: with the score p of the winner,

    least confident  p itself
    margin           2p - 1, at least 0: how far the winner is ahead of the next at the least
    entropy          the least that is possible where nothing is likelier than p: as many answers of p as fit into 1,
                     and one with what is left; in nats

For two labels margin and entropy are exact. A task is as sure as the least sure of its regions; entropies of its
regions are added up. By each of them 0 means nothing is known, and more means surer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

RankingCriterion = Literal["least-confident", "margin", "entropy", "score"]
RANKING_CRITERIA: tuple[str, ...] = get_args(RankingCriterion)


def region_scores(result: Sequence[Mapping[str, Any]]) -> list[float]:
    """The scores of all regions that have one in 0..1. Regions that share an id (OCR) may repeat it."""
    return [
        float(score)
        for region in result
        if isinstance(score := region.get("score"), int | float) and not isinstance(score, bool) and 0 <= score <= 1
    ]


def confidence(result: Sequence[Mapping[str, Any]], score: float | None, by: RankingCriterion) -> float | None:
    """How sure a prediction is, the least sure first; None where no score tells.

    score  of the whole prediction
    """
    if by == "score":
        return score
    scores = region_scores(result)
    if not scores:
        return None
    if by == "entropy":
        return -sum(map(min_entropy, scores))
    least = min(scores)
    return max(0.0, 2 * least - 1) if by == "margin" else least


def min_entropy(p: float) -> float:
    """The least entropy in nats of probabilities of which the largest is p in 0..1."""
    if p <= 0:
        return math.inf
    whole = math.floor(1 / p + 1e-9)
    rest = max(0.0, 1 - whole * p)
    return -whole * p * math.log(p) - (rest * math.log(rest) if rest > 1e-12 else 0.0)


def lowest_score(result: Sequence[Mapping[str, Any]]) -> float | None:
    """The lowest score; None unless every region has one: only then is it known how sure the whole answer is."""
    scores = region_scores(result)
    own = sum(1 for region in result if region.get("score") is not None)
    by_id = {region.get("id") for region in result if region.get("score") is not None}
    complete = own == len(scores) and all(
        region.get("score") is not None or (region.get("id") is not None and region["id"] in by_id) for region in result
    )
    return min(scores) if scores and complete else None
