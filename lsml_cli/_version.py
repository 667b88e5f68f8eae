"""The version of lsml, where every module can read it: that of the git tag it was built from."""

from __future__ import annotations

from importlib import import_module


def _read_version() -> str:
    try:
        return str(import_module("lsml_cli._build_version").version)
    except ModuleNotFoundError:  # a checkout that was never installed
        return "0+unknown"


__version__ = _read_version()
