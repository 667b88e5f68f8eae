"""Import MMDetection and MMOCR without their output.

The releases that work with a recent PyTorch are those that the script `install` installs: onedl-mmcv, onedl-mmdetection
and onedl-mmengine under their old import names, and mmocr 1.0.1, which considers them too new.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache
from typing import Any, ClassVar, Literal

from lsml_cli.errors import ModelError

Scope = Literal["mmdet", "mmocr"]

REQUIRED_MODULES: tuple[str, ...] = ("torch", "torchvision", "mmcv", "mmengine", "mmdet", "mmocr")
INSTALL_EXTRA = "openmmlab"
INSTALL_HINT = "`lsml doctor openmmlab` says what is missing, and the command that installs it."
_SPOOFED_VERSIONS = {"mmcv": "2.1.0", "mmdet": "3.1.0"}  # neither too old nor too new for mmocr 1.0.1
_NOISY_LOGGERS = ("mmengine", "mmdet", "mmocr", "mmcv", "current", "torch.distributed")
_import_lock = threading.Lock()


@cache
def import_mmdet() -> Any:
    """Import MMDetection with all its modules registered. Takes seconds. Raises ModelError if it does not work."""
    with _import_lock, suppress_output():
        try:
            import mmdet
            from mmdet.utils import register_all_modules
        except Exception as error:  # an incomplete installation fails in all kinds of ways
            raise ModelError(f"MMDetection does not work here: {_format_error(error)}.", INSTALL_HINT) from error
        register_all_modules(init_default_scope=False)
    _silence_runtime_warnings()
    return mmdet


@cache
def import_mmocr() -> Any:
    """Import MMOCR with all its modules registered, after MMDetection, which it uses."""
    mmdet = import_mmdet()
    with _import_lock, suppress_output():
        import mmcv

        versions = mmcv.__version__, mmdet.__version__
        # It looks at them once, when it is imported.
        mmcv.__version__, mmdet.__version__ = _SPOOFED_VERSIONS["mmcv"], _SPOOFED_VERSIONS["mmdet"]
        try:
            import mmocr
            from mmocr.utils import register_all_modules
        except Exception as error:
            raise ModelError(f"MMOCR does not work here: {_format_error(error)}.", INSTALL_HINT) from error
        finally:
            mmcv.__version__, mmdet.__version__ = versions
        register_all_modules(init_default_scope=False)
    return mmocr


@cache
def registered_names() -> Mapping[str, frozenset[str]]:
    """Return the names of all registered modules by toolkit: "mmengine" (also mmcv's), "mmdet", "mmocr"; "" for all.

    "ops" are those of mmcv, which are found without a registry.
    """
    import_mmocr()
    import mmcv.ops
    import mmengine.registry
    import mmengine.runner  # which registers mmengine's own modules
    from mmengine.registry import Registry

    names: dict[str, set[str]] = {"mmengine": set(), "ops": set(mmcv.ops.__all__), "": set()}
    pending = [registry for registry in vars(mmengine.registry).values() if isinstance(registry, Registry)]
    for registry in pending:  # grows while it is read
        registry.import_from_location()
        names.setdefault(str(registry.scope), set()).update(registry.module_dict)
        names[""].update(registry.module_dict)
        pending += registry.children.values()
    return {scope: frozenset(found) for scope, found in names.items()}


def import_toolkit(scope: Scope) -> Any:
    """Import a toolkit by its name."""
    return import_mmdet() if scope == "mmdet" else import_mmocr()


@contextmanager
def default_scope(scope: Scope) -> Iterator[None]:
    """Look up plain names in a config in this toolkit first."""
    import_toolkit(scope)
    from mmengine.registry import DefaultScope

    with suppress_output(), DefaultScope.overwrite_default_scope(scope):
        yield


@contextmanager
def suppress_output() -> Iterator[None]:
    """Keep logs, warnings and prints of the toolkits off the terminal, except with LSML_DEBUG=1."""
    with warnings.catch_warnings():
        if os.environ.get("LSML_DEBUG") == "1":
            yield
            return
        warnings.simplefilter("ignore")
        for name in _NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with redirect_stdout(_NullWriter()):
            yield


def _silence_runtime_warnings() -> None:
    """Ignore, until the process ends, warnings from computing that a user can do nothing about."""
    warnings.filterwarnings("ignore", module=r"mm(cv|det|engine|ocr)\b")
    warnings.filterwarnings("ignore", message=r"torch\.meshgrid")
    warnings.filterwarnings("ignore", message="Support for mismatched .*key_padding_mask")


class _NullWriter:
    """Discard what is printed: only the command itself may print."""

    encoding: ClassVar[str] = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


def available_devices() -> tuple[str, ...]:
    """Return the devices that mmcv's ops were compiled for, the fastest first: GPUs only if it was built with CUDA."""
    from lsml_cli.models import torch_runtime

    import_mmdet()
    from mmcv.ops import get_compiling_cuda_version

    has_cuda = get_compiling_cuda_version() != "not available"
    return tuple(
        name for name in torch_runtime.available_devices() if name == "cpu" or (has_cuda and name.startswith("cuda"))
    )


def probe() -> str:
    """Describe the installed toolkits and their devices; `lsml doctor` calls this in a process of its own.

    Raises:
        Exception: Something does not work.
    """
    import torch

    mmdet, mmocr = import_mmdet(), import_mmocr()
    import mmcv
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    for device in available_devices():
        _, kept = nms(boxes.to(device), torch.tensor([0.9, 0.8], device=device), 0.5)
        assert kept.tolist() == [0], f"the ops give wrong answers on {device}"
    versions = f"mmdet {mmdet.__version__}, mmocr {mmocr.__version__}, ops of mmcv {mmcv.__version__}"
    is_cpu_only = torch.cuda.is_available() and available_devices() == ("cpu",)
    note = "; the ops are for the CPU alone" if is_cpu_only else ""
    return f"{versions} on {', '.join(available_devices())}{note}"


def _format_error(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
