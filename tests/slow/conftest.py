"""Fixtures for the tests of this folder: a real, headless Label Studio, and `lsml serve` to connect to it."""

from __future__ import annotations

import pytest

from tests.helpers.cli import Lsml, run_lsml
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


@pytest.fixture(scope="session")
def lsml() -> Lsml:
    """Run `lsml` as a process: what a user does with a real server is tested whole."""
    return run_lsml
