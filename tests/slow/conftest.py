"""A real, headless Label Studio for the tests of this folder, and `lsml serve` to connect to it."""

from __future__ import annotations

from tests.helpers.label_studio_server import (
    LabelStudio,
    label_studio,
    label_studio_program,
    label_studio_template,
    serve,
)

__all__ = ["LabelStudio", "label_studio", "label_studio_program", "label_studio_template", "serve"]
