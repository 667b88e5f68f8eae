"""A real, headless Label Studio for the tests of this folder, and `lsml serve` to connect to it."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("serving", "scenario", "browsing", "labelling")

from labelling import LabelStudio, label_studio, label_studio_program, label_studio_template, serve  # noqa: E402

__all__ = ["LabelStudio", "label_studio", "label_studio_program", "label_studio_template", "serve"]
