"""Compute the training loss of a network whose outputs are the classes of several heads side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lsml_cli.models.choices.logistic import HeadTargets
from lsml_cli.models.image_classifier.inference import head_columns

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


class MultiHeadLoss:
    """Compare a network's outputs with the targets of all heads.

    Args:
        heads: The targets; their rows are positions of images.
        device: Where the outputs are.
        class_weight: "balanced" to count rare classes as much as frequent ones, else None.
    """

    def __init__(self, heads: Sequence[HeadTargets], device: torch.device, class_weight: str | None) -> None:
        self.heads = heads
        self.device = device
        self.row_classes = [dict(zip(head.rows, head.row_classes, strict=True)) for head in heads]
        self.weights = [balanced_weights(head) if class_weight else None for head in heads]

    def loss(self, outputs: torch.Tensor, positions: Sequence[int]) -> torch.Tensor | None:
        """Return the mean over the heads of (binary, for multi-label heads) cross entropy.

        Args:
            outputs: (n, K), K being the number of classes of all heads.
            positions: The n images that they are about.

        Returns:
            None if no head has a target for any of the images.
        """
        losses = []
        for number, (head, columns) in enumerate(zip(self.heads, head_columns(self.heads), strict=True)):
            targets = self.row_classes[number]
            rows = [row for row, position in enumerate(positions) if position in targets]
            if rows:
                head_outputs = outputs[rows, columns.first : columns.first + columns.count]
                row_classes = [targets[positions[row]] for row in rows]
                losses.append(self._head_loss(head_outputs, head, row_classes, self.weights[number]))
        return sum(losses[1:], losses[0]) / len(losses) if losses else None

    def _head_loss(
        self,
        outputs: torch.Tensor,
        head: HeadTargets,
        row_classes: Sequence[Sequence[str]],
        class_weights: NDArray[np.float32] | None,
    ) -> torch.Tensor:
        import torch
        from torch.nn import functional

        # (2, K) for a multi-label head, else (K,)
        weights = None if class_weights is None else torch.from_numpy(class_weights).to(self.device)
        if not head.is_multi_label:
            indices = torch.tensor([head.class_index[names[0]] for names in row_classes], device=self.device)
            return functional.cross_entropy(outputs, indices, weight=weights)
        truth = torch.tensor(
            [[float(name in names) for name in head.classes] for names in row_classes], device=self.device
        )
        if weights is not None:
            weights = torch.where(truth > 0, weights[1], weights[0])
        return functional.binary_cross_entropy_with_logits(outputs, truth, weight=weights)


def balanced_weights(head: HeadTargets) -> NDArray[np.float32]:
    """Weight classes inversely to their frequency, by scikit-learn's formula for class_weight="balanced".

    Returns:
        (K,), or for a multi-label head (2, K): of an example without the class, and of one with it.
    """
    import numpy as np

    counts = Counter(name for names in head.row_classes for name in names)
    positives = np.array([counts[name] for name in head.classes])
    total = len(head.row_classes)
    if not head.is_multi_label:
        return np.asarray(total / (len(head.classes) * positives), dtype=np.float32)
    return np.asarray(total / (2 * np.maximum(np.stack([total - positives, positives]), 1)), dtype=np.float32)
