"""Pull from, push to and query Label Studio over its API. Media that it serves are fetched by `lsml_cli.media`.

Requests go over plain HTTP: the SDK is 500 MB large and takes two seconds to import, for the few requests made here.
"""

from __future__ import annotations

from lsml_cli.label_studio.client import LabelStudioClient, connect
from lsml_cli.media.credentials import API_KEY_ENV_VAR

__all__ = ["API_KEY_ENV_VAR", "LabelStudioClient", "connect"]
