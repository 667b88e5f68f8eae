"""Logistic regression over the rows of one source, by scikit-learn: what every classifier of lsml ends in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsml_cli.models.choices.probabilities import Floats

_MAX_ITER = 1000  # of the solver; the 100 that scikit-learn starts with are too few without much regularisation


@dataclass(frozen=True)
class HeadTargets:
    """What one head should learn: the classes of some of the rows.

    rows     which rows, by position
    chosen   the classes of each of these rows; exactly one unless `multi`
    classes  all there are, in the order of the head's scores
    multi    whether each class is a question of its own
    """

    rows: Sequence[int]
    row_classes: Sequence[Sequence[str]]
    classes: Sequence[str]
    is_multi_label: bool


def fit_heads(
    rows: Any, heads: Sequence[HeadTargets], C: float, class_weight: str | None
) -> tuple[list[tuple[Floats, Floats]], list[str]]:
    """(F, K) weights and (K,) intercepts for each head; also sentences about what did not go well.

    rows  (n, F), an array or a sparse one

    The same input gives the same bits: the solver starts from zero and runs on one thread.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    params = {"C": C, "class_weight": class_weight}
    with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [_fit_head(_select_rows(rows, head.rows), head, params) for head in heads]
    if any("ConvergenceWarning" in warning.category.__name__ for warning in caught):
        return found, [f"The solver had not settled after {_MAX_ITER} steps; a smaller C (--with C=1) helps."]
    return found, []


def _select_rows(rows: Any, positions: Sequence[int]) -> Any:
    """Some of the rows; all of them without a copy, which may be gigabytes."""
    import numpy as np

    every = len(positions) == rows.shape[0] and all(row == i for i, row in enumerate(positions))
    return rows if every else rows[np.asarray(positions)]


def _fit_head(matrix: Any, head: HeadTargets, params: Mapping[str, Any]) -> tuple[Floats, Floats]:
    """(F, K) weights and (K,) intercepts."""
    import numpy as np

    if head.is_multi_label:
        columns = [
            _fit_binary(matrix, np.array([name in chosen for chosen in head.row_classes]), params)
            for name in head.classes
        ]
        return np.stack([coef for coef, _ in columns], axis=1), np.array([intercept for _, intercept in columns])
    if len(head.classes) == 1:
        return np.zeros((matrix.shape[1], 1)), np.zeros(1)
    number = {name: i for i, name in enumerate(head.classes)}
    truth = np.array([number[chosen[0]] for chosen in head.row_classes])
    if len(head.classes) == 2:  # softmax over (0, x) is the sigmoid of x
        coef, intercept = _fit_binary(matrix, truth == 1, params)
        return np.stack([np.zeros_like(coef), coef], axis=1), np.array([0.0, intercept])
    coefs, intercepts = _solve(matrix, truth, params)
    return coefs.T, intercepts


def _fit_binary(matrix: Any, truth: Any, params: Mapping[str, Any]) -> tuple[Floats, float]:
    """(F,) weights and the intercept of yes against no. Where all agree, no row says otherwise."""
    import numpy as np

    if truth.all() or not truth.any():  # the odds when one more of each had been seen
        return np.zeros(matrix.shape[1]), float(np.log((truth.sum() + 1.0) / ((~truth).sum() + 1.0)))
    coef, intercept = _solve(matrix, truth, params)
    return coef[0], float(intercept[0])


def _solve(matrix: Any, truth: Any, params: Mapping[str, Any]) -> tuple[Floats, Floats]:
    """(K, F) weights and (K,) intercepts, or one of each for two classes."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    features = matrix.shape[1]
    if not features:  # no row says anything: how often each class occurs can still be learned
        matrix = np.zeros((matrix.shape[0], 1))
    model = LogisticRegression(C=params["C"], class_weight=params["class_weight"], max_iter=_MAX_ITER).fit(
        matrix, truth
    )
    return model.coef_[:, :features], model.intercept_
