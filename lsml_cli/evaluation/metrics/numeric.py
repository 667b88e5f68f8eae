"""Convert NumPy results of metrics into plain numbers."""

from __future__ import annotations

from typing import Any


def nan_to_none(value: Any) -> float | None:
    """Return a NumPy number as a float; None for NaN, which stands for a metric without data."""
    return float(value) if value == value else None
