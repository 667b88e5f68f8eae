"""Convert what scripts return to plain JSON values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def to_json_value(value: Any) -> Any:
    """Convert NumPy and PyTorch values, tuples, paths and SDK objects to JSON types; others stay as they are."""
    if isinstance(value, Mapping):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [to_json_value(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if type(value).__module__ in ("numpy", "torch") and hasattr(value, "tolist"):
        return to_json_value(value.tolist())
    for name in ("_dict", "model_dump", "to_dict"):
        if callable(method := getattr(value, name, None)):
            return to_json_value(method())
    return value


def replace_path_prefix(value: Any, old: str, new: str) -> Any:
    """Replace the folder `old` by `new` at the beginning of every string in a JSON value that is a path below it."""
    if isinstance(value, dict):
        return {key: replace_path_prefix(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [replace_path_prefix(item, old, new) for item in value]
    if isinstance(value, str):
        return re.sub(rf"^{re.escape(old)}(?=$|[/\\])", lambda _: new, value)
    return value
