"""Turn scores (logits) into probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]


def softmax(scores: Floats) -> Floats:
    """Normalise each row of (n, K) scores to probabilities that sum to 1."""
    import numpy as np

    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: Floats = powers / powers.sum(axis=1, keepdims=True)
    return result


def sigmoid(scores: Floats) -> Floats:
    """Compute the independent probability of each class, as (1 + tanh(x / 2)) / 2, which cannot overflow."""
    import numpy as np

    result: Floats = 0.5 * (1.0 + np.tanh(0.5 * scores))
    return result
