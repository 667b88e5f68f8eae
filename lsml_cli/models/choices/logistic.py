"""Fit the linear heads of a classifier: logistic regression by scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsml_cli.models.choices.probabilities import Floats

_MAX_ITER = 1000  # of the solver; scikit-learn's default of 100 is too small with little regularisation


@dataclass(frozen=True)
class HeadTargets:
    """What one head learns: the classes of some of the rows.

    Attributes:
        rows: Positions of the rows.
        row_classes: The classes of each of these rows; exactly one per row unless `is_multi_label`.
        classes: All classes, in the order of the head's scores.
        is_multi_label: Several classes may apply to one row, each independently.
    """

    rows: Sequence[int]
    row_classes: Sequence[Sequence[str]]
    classes: Sequence[str]
    is_multi_label: bool

    @cached_property
    def class_index(self) -> Mapping[str, int]:
        """The position of each class in `classes`."""
        return {name: i for i, name in enumerate(self.classes)}


def fit_heads(
    rows: Any, heads: Sequence[HeadTargets], C: float, class_weight: str | None
) -> tuple[list[tuple[Floats, Floats]], list[str]]:
    """Fit a logistic regression for each head. The same input gives the same bits: the solver runs in one thread.

    Args:
        rows: (n, F) features, a dense or a sparse array.
        heads: What each head learns.
        C: Inverse strength of the L2 regularisation.
        class_weight: "balanced" to weigh classes by their inverse frequency, or None.

    Returns:
        (F, K) weights and (K,) intercepts of each head, and sentences about problems of the fit.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    params = {"C": C, "class_weight": class_weight}
    with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = [_fit_head(_select_rows(rows, head.rows), head, params) for head in heads]
    if any("ConvergenceWarning" in warning.category.__name__ for warning in caught):
        return fitted, [f"The solver had not settled after {_MAX_ITER} steps; a smaller C (--with C=1) helps."]
    return fitted, []


def _select_rows(rows: Any, positions: Sequence[int]) -> Any:
    """Select rows by position. All rows are returned without a copy, which could take gigabytes."""
    import numpy as np

    are_all_rows = len(positions) == rows.shape[0] and all(row == i for i, row in enumerate(positions))
    return rows if are_all_rows else rows[np.asarray(positions)]


def _fit_head(matrix: Any, head: HeadTargets, params: Mapping[str, Any]) -> tuple[Floats, Floats]:
    """Fit one head; return its (F, K) weights and (K,) intercepts."""
    import numpy as np

    if head.is_multi_label:
        rows_of: dict[str, list[int]] = {name: [] for name in head.classes}
        for row, names in enumerate(head.row_classes):
            for name in names:
                rows_of[name].append(row)
        columns = []
        for rows in rows_of.values():
            has_class = np.zeros(len(head.row_classes), bool)
            has_class[rows] = True
            columns.append(_fit_binary(matrix, has_class, params))
        return np.stack([coef for coef, _ in columns], axis=1), np.array([intercept for _, intercept in columns])
    if len(head.classes) == 1:
        return np.zeros((matrix.shape[1], 1)), np.zeros(1)
    truth = np.array([head.class_index[names[0]] for names in head.row_classes])
    if len(head.classes) == 2:  # softmax over (0, x) is the sigmoid of x
        coef, intercept = _fit_binary(matrix, truth == 1, params)
        return np.stack([np.zeros_like(coef), coef], axis=1), np.array([0.0, intercept])
    coefs, intercepts = _solve(matrix, truth, params)
    return coefs.T, intercepts


def _fit_binary(matrix: Any, truth: Any, params: Mapping[str, Any]) -> tuple[Floats, float]:
    """Fit true against false; return (F,) weights and the intercept.

    If all rows agree, the weights are 0 and the intercept is the log odds with one more row of each class.
    """
    import numpy as np

    if truth.all() or not truth.any():
        return np.zeros(matrix.shape[1]), float(np.log((truth.sum() + 1.0) / ((~truth).sum() + 1.0)))
    coef, intercept = _solve(matrix, truth, params)
    return coef[0], float(intercept[0])


def _solve(matrix: Any, truth: Any, params: Mapping[str, Any]) -> tuple[Floats, Floats]:
    """Run the solver; return (K, F) weights and (K,) intercepts, or (1, F) and (1,) for two classes."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    features = matrix.shape[1]
    if not features:  # without features the frequency of each class can still be learned
        matrix = np.zeros((matrix.shape[0], 1))
    model = LogisticRegression(C=params["C"], class_weight=params["class_weight"], max_iter=_MAX_ITER).fit(
        matrix, truth
    )
    return model.coef_[:, :features], model.intercept_
