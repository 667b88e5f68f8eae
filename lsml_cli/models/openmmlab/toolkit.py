"""MMDetection and MMOCR, imported without their noise.

The releases that work beside a recent PyTorch are the ones that `install` brings: onedl-mmcv, onedl-mmdetection and
onedl-mmengine under their old import names, and mmocr 1.0.1, which takes them for too new.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from typing import Any, ClassVar, Literal

from lsml_cli.errors import ModelError

Scope = Literal["mmdet", "mmocr"]

REQUIRED_MODULES: tuple[str, ...] = ("torch", "torchvision", "mmcv", "mmengine", "mmdet", "mmocr")
INSTALL_EXTRA = "openmmlab"
INSTALL_HINT = "`lsml doctor openmmlab` says what is missing, and the command that installs it."
_SPOOFED_VERSIONS = {"mmcv": "2.1.0", "mmdet": "3.1.0"}  # what mmocr 1.0.1 takes for new enough, and not too new
_NOISY_LOGGERS = ("mmengine", "mmdet", "mmocr", "mmcv", "current", "torch.distributed")
_import_lock = threading.Lock()


@cache
def import_mmdet() -> Any:
    """MMDetection, everything of it registered. Takes seconds the first time. Raises ModelError where it is missing."""
    with _import_lock, suppress_output():
        try:
            import mmdet
            from mmdet.utils import register_all_modules
        except Exception as error:  # what is half installed fails in any way
            raise ModelError(f"MMDetection does not work here: {_format_error(error)}.", INSTALL_HINT) from error
        register_all_modules(init_default_scope=False)
    _silence_runtime_warnings()
    return mmdet


@cache
def import_mmocr() -> Any:
    """MMOCR, everything of it registered; with MMDetection, parts of which it is made of."""
    detection = import_mmdet()
    with _import_lock, suppress_output():
        import mmcv

        real = mmcv.__version__, detection.__version__
        mmcv.__version__, detection.__version__ = (
            _SPOOFED_VERSIONS["mmcv"],
            _SPOOFED_VERSIONS["mmdet"],
        )  # it asks once, while it is imported
        try:
            import mmocr
            from mmocr.utils import register_all_modules
        except Exception as error:
            raise ModelError(f"MMOCR does not work here: {_format_error(error)}.", INSTALL_HINT) from error
        finally:
            mmcv.__version__, detection.__version__ = real
        register_all_modules(init_default_scope=False)
    return mmocr


def import_toolkit(scope: Scope) -> Any:
    return import_mmdet() if scope == "mmdet" else import_mmocr()


@contextmanager
def default_scope(scope: Scope) -> Iterator[None]:
    """What a config calls by a plain name is looked for in this toolkit first."""
    import_toolkit(scope)
    from mmengine.registry import DefaultScope

    with suppress_output(), DefaultScope.overwrite_default_scope(scope):
        yield


@contextmanager
def suppress_output() -> Iterator[None]:
    """What the toolkits log, warn about and print stays off the terminal; errors are raised all the same."""
    shown = os.environ.get("LSML_DEBUG") == "1"
    with warnings.catch_warnings():
        if shown:
            yield
            return
        warnings.simplefilter("ignore")
        for name in _NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with redirect_stdout(_NullWriter()):
            yield


def _silence_runtime_warnings() -> None:
    """For good: what they warn about while they compute is nothing that a user could change."""
    warnings.filterwarnings("ignore", module=r"mm(cv|det|engine|ocr)\b")
    warnings.filterwarnings("ignore", message=r"torch\.meshgrid")
    warnings.filterwarnings("ignore", message="Support for mismatched .*key_padding_mask")


class _NullWriter:
    """Takes what is printed. There is one thing in every process that may print: the command."""

    encoding: ClassVar[str] = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


def available_devices() -> tuple[str, ...]:
    """The devices that the ops were compiled for, the best first: GPUs only with an mmcv that was built with CUDA."""
    from lsml_cli.models import torch_runtime

    import_mmdet()
    from mmcv.ops import get_compiling_cuda_version

    built = get_compiling_cuda_version() != "not available"
    return tuple(
        name for name in torch_runtime.available_devices() if name == "cpu" or (built and name.startswith("cuda"))
    )


def probe() -> str:
    """What works here, in a few words. Raises whatever is wrong: `lsml doctor` asks in a process of its own."""
    import torch

    detection, ocr = import_mmdet(), import_mmocr()
    import mmcv
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    for device in available_devices():
        _, kept = nms(boxes.to(device), torch.tensor([0.9, 0.8], device=device), 0.5)
        assert kept.tolist() == [0], f"the ops give wrong answers on {device}"
    versions = f"mmdet {detection.__version__}, mmocr {ocr.__version__}, ops of mmcv {mmcv.__version__}"
    lacking = "; the ops are for the CPU alone" if torch.cuda.is_available() and available_devices() == ("cpu",) else ""
    return f"{versions} on {', '.join(available_devices())}{lacking}"


def _format_error(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
