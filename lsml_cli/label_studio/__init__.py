"""Pull from, push to and query Label Studio through its SDK. Media that it serves are fetched by `lsml_cli.media`."""

from __future__ import annotations

from lsml_cli.label_studio.client import LabelStudioClient, connect
from lsml_cli.media.credentials import API_KEY_ENV_VAR

__all__ = ["API_KEY_ENV_VAR", "LabelStudioClient", "connect"]
