"""Stubs of modules that scripts of several SDK generations import: utils, label_studio_tools, label_studio_sdk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from lsml_cli.models.legacy_backends import brush, labels
from lsml_cli.models.legacy_backends.import_sandbox import ScriptSandbox
from lsml_cli.models.legacy_backends.module_isolation import make_module


def build_utils(sandbox: ScriptSandbox, annotations_key: str) -> dict[str, Any]:
    """Return the functions of the SDKs' `utils` by name.

    Args:
        annotations_key: the key of a task's annotations: "annotations", or "completions" in v0.
    """
    return {
        "DATA_UNDEFINED_NAME": labels.DATA_UNDEFINED_NAME,
        "get_single_tag_keys": labels.get_single_tag_keys,
        "get_first_tag_keys": labels.get_first_tag_keys,
        "is_skipped": partial(labels.is_skipped, key=annotations_key),
        "get_choice": partial(labels.get_choice, key=annotations_key),
        "get_image_size": labels.get_image_size,
        "get_image_local_path": sandbox.get_local_path,
        "get_local_path": sandbox.get_local_path,
        "get_env": _get_env,
    }


def build_tools_modules(sandbox: ScriptSandbox) -> dict[str, ModuleType]:
    """Return label_studio_tools and label_studio_converter, as far as scripts use them."""
    return _make_modules(
        {
            "label_studio_tools": {},
            "label_studio_tools.core": {},
            "label_studio_tools.core.label_config": {"parse_config": labels.parse_config},
            "label_studio_tools.core.utils": {},
            "label_studio_tools.core.utils.io": {
                "get_local_path": sandbox.get_local_path,
                "get_data_dir": _get_data_dir,
            },
            "label_studio_tools.core.utils.params": {"get_env": _get_env, "get_bool_env": _get_bool_env},
            "label_studio_converter": {},
            "label_studio_converter.brush": brush.BRUSH_FUNCTIONS,
        }
    )


def build_sdk_modules(sandbox: ScriptSandbox, prediction_classes: Mapping[str, type]) -> dict[str, ModuleType]:
    """Return label_studio_sdk for an environment without it: what scripts name in type annotations, and its helpers.

    Args:
        prediction_classes: `PredictionValue` and `ModelResponse` by name.
    """
    clients = {name: _make_missing_client(name) for name in ("Client", "LabelStudio")}
    tools = "label_studio_sdk._extensions.label_studio_tools"
    return _make_modules(
        {
            "label_studio_sdk": clients,
            "label_studio_sdk.client": clients,
            "label_studio_sdk.objects": prediction_classes,
            "label_studio_sdk.label_interface": {"LabelInterface": labels.LabelInterface},
            "label_studio_sdk.label_interface.objects": prediction_classes,
            "label_studio_sdk.converter": {},
            "label_studio_sdk.converter.brush": brush.BRUSH_FUNCTIONS,
            "label_studio_sdk._extensions": {},
            tools: {},
            f"{tools}.core": {},
            f"{tools}.core.label_config": {"parse_config": labels.parse_config},
            f"{tools}.core.utils": {},
            f"{tools}.core.utils.io": {"get_local_path": sandbox.get_local_path},
        }
    )


def skip_server(*_: Any, **__: Any) -> None:
    """Do nothing: the stub of `init_app`, whose server is `lsml serve`."""


def _make_modules(contents: Mapping[str, Mapping[str, Any]]) -> dict[str, ModuleType]:
    return {name: make_module(name, content) for name, content in contents.items()}


def _make_missing_client(name: str) -> type:
    """Return a class that can be named but not created."""

    def __init__(self: Any, *_: Any, **__: Any) -> None:
        raise ModuleNotFoundError(f"{name} needs label_studio_sdk, which is not installed here")

    return type(name, (), {"__init__": __init__})


def _get_env(name: str, default: Any = None, is_bool: bool = False) -> Any:
    """Return an environment variable with one of the prefixes of Label Studio, or without."""
    for prefix in ("LABEL_STUDIO_", "HEARTEX_", ""):
        if (value := os.environ.get(f"{prefix}{name}")) is not None:
            return value.lower() in ("1", "true", "yes", "on") if is_bool else value
    return default


def _get_bool_env(name: str, default: bool = False) -> bool:
    return bool(_get_env(name, default, is_bool=True))


def _get_data_dir() -> str:
    """Return the folder in which the older SDKs keep files between runs; create it if necessary."""
    folder = Path.home() / ".local" / "share" / "label-studio"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)
