"""Fixtures for the tests of this folder: a real, headless Label Studio, and `lsml serve` to connect to it."""

from __future__ import annotations

from tests.helpers.label_studio_server import (
    LabelStudio,
    label_studio,
    label_studio_program,
    pytest_runtest_makereport,
    serve,
)

__all__ = [
    "LabelStudio",
    "label_studio",
    "label_studio_program",
    "pytest_runtest_makereport",
    "serve",
]
