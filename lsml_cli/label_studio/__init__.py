"""Label Studio over its API: the only place that talks to it, but for the media it serves (`media`).

It is asked over plain HTTP. Its SDK brings 500 MB with it and takes two seconds to load, for the few calls made here.
"""

from __future__ import annotations

from lsml_cli.label_studio.client import API_KEY_ENV_VAR, LabelStudioClient, connect

__all__ = ["API_KEY_ENV_VAR", "LabelStudioClient", "connect"]
