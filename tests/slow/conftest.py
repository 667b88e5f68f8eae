"""Fixtures for the tests of this folder: a real, headless Label Studio, and `lsml serve` to connect to it."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "tests.helpers.browser", "tests.helpers.label_studio_server", "tests.helpers.serve_process", "tests.slow.scenario"
)

from tests.helpers.label_studio_server import (  # noqa: E402
    LabelStudio,
    label_studio,
    label_studio_program,
    label_studio_template,
    pytest_runtest_makereport,
    serve,
)

__all__ = [
    "LabelStudio",
    "label_studio",
    "label_studio_program",
    "label_studio_template",
    "pytest_runtest_makereport",
    "serve",
]
