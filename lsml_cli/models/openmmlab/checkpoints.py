"""Read and write weights.

What torch.save wrote is a pickle, and reading a pickle runs the code it names. So a checkpoint is read as weights only,
with the few harmless classes that mmengine leaves in its own. It is read in full only if the user says that they trust
the file. A trained version holds arrays (safetensors), which run nothing.
"""

from __future__ import annotations

import pickle
import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHTS_FILENAME = "weights.safetensors"
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # of what wraps a model while it is trained


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file of weights.

    Args:
        path: The file.
        weights: Arrays by name.
        classes: In the order of the model's outputs; empty if the file does not say.
        config: Text of the config that it was trained with; "" if the file does not say.
    """

    path: Path
    weights: Mapping[str, torch.Tensor]
    classes: tuple[str, ...] = ()
    config: str = ""


def read(path: str, *, trust_pickle: bool = False) -> Checkpoint:
    """Read a checkpoint that mmdet, mmocr or mmengine wrote, or plain weights, or a .safetensors file.

    Args:
        path: The file.
        trust_pickle: Read a file in full that holds more than weights, which lets it run code.

    Raises:
        ModelError: There is no such file, it is damaged, or it would run code.
    """
    file = Path(path)
    try:
        stat = file.stat()
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise ModelError(
            f"The checkpoint {path} {reason}.", "Name a file of weights; lsml fetches none by itself."
        ) from error
    return _read(file, stat.st_mtime_ns, stat.st_size, trust_pickle)


@lru_cache(maxsize=4)
def _read(path: Path, mtime_ns: int, size: int, trust_pickle: bool) -> Checkpoint:
    """Read a file once: binding a model needs its classes, loading it the weights."""
    content = _load_file(path, trust_pickle)
    meta = content.get("meta") if isinstance(content, Mapping) else None
    weights: Any = content
    for key in ("state_dict", "model"):
        if isinstance(weights, Mapping) and isinstance(weights.get(key), Mapping):
            weights = weights[key]
    import torch

    if not isinstance(weights, Mapping) or not all(isinstance(array, torch.Tensor) for array in weights.values()):
        raise ModelError(f"{path} holds no weights by their names.", "Name a checkpoint that mmdet or mmocr wrote.")
    meta = meta if isinstance(meta, Mapping) else {}
    config = meta.get("cfg", meta.get("config", ""))
    return Checkpoint(
        path, {_strip_wrapper_prefix(name): array for name, array in weights.items()}, _class_names(meta), str(config)
    )


def _load_file(path: Path, trust_pickle: bool) -> Any:
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_safe_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise all kinds of errors about other files
        _require_checkpoint(path)
        global_name = re.search(r"GLOBAL ([\w.]+)", str(error))
        is_garbled = "Unsupported operand" in str(error)  # no pickle, or none of the protocol that torch.save writes
        if type(error).__name__ != "UnpicklingError" or (is_garbled and not trust_pickle):
            raise ModelError(
                f"{path} is damaged, or no checkpoint at all.", "Copy it again; lsml reads what torch.save writes."
            ) from error
        if not trust_pickle:
            example = f" ({global_name[1]}, for one)" if global_name else ""
            raise ModelError(
                f"{path} holds more than weights{example}: reading it would run code, so it was not read.",
                "If you know who made it and trust them with this machine: --with trust_checkpoint=true",
            ) from error
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise ModelError(f"{path} cannot be read: {type(error).__name__}: {error}.") from error


def _require_checkpoint(path: Path) -> None:
    """Raise ModelError if a file that could not be read begins like something else than a checkpoint."""
    with path.open("rb") as file:
        head = file.read(64)
    hint = "Copy it again; lsml reads what torch.save writes, and .safetensors."
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        content = "an HTML page"
        hint = "The download has failed: fetch it again, from the address of the file itself."
    elif head.startswith(b"version https://git-lfs"):
        content, hint = "a Git LFS pointer", "Fetch what it stands for, in its repository: git lfs pull"
    elif head[8:10] == b'{"':  # safetensors: a JSON header after its length
        if path.suffix == ".safetensors":
            return
        move_command = shlex.join(["mv", str(path), str(path.with_suffix(".safetensors"))])
        content, hint = "safetensors", f"Its name has to say so: {move_command}"
    elif head.startswith((b"PK", b"\x80")):  # a zip archive, a pickle
        return
    else:
        content = f"something that begins with {head[:16]!r}" if head else "an empty file"
    raise ModelError(f"{path} is no checkpoint but {content}.", hint)


def _safe_globals() -> list[Any]:
    """Return what mmengine's Runner stores beside the weights: its curves, and the numbers in them."""
    import numpy as np
    from mmengine.logging.history_buffer import HistoryBuffer

    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    dtypes = {type(np.dtype(scalar)) for scalar in (np.uint32, np.int32, np.int64, np.float32, np.float64)}
    harmless = [multiarray._reconstruct, multiarray.scalar, np.ndarray, np.dtype, *dtypes, HistoryBuffer, slice]
    return [*harmless, (_restricted_getattr, "builtins.getattr")]


def _restricted_getattr(owner: Any, name: str) -> Any:
    """Replace getattr, with which a curve names its methods; the real one would let a file reach anything."""
    from mmengine.logging.history_buffer import HistoryBuffer

    if not (owner is HistoryBuffer or type(owner) is HistoryBuffer) or name.startswith("_"):
        raise pickle.UnpicklingError("GLOBAL builtins.getattr of something else than a curve")
    return getattr(owner, name)


def _class_names(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes as mmdet 3 (dataset_meta) or mmdet 2 (CLASSES) wrote them."""
    dataset_meta = meta.get("dataset_meta")
    fields = (
        {str(key).lower(): value for key, value in dataset_meta.items()} if isinstance(dataset_meta, Mapping) else {}
    )
    classes = fields.get("classes", meta.get("CLASSES"))
    if isinstance(classes, str):
        return (classes,)
    return tuple(map(str, classes)) if isinstance(classes, list | tuple) else ()


def load_into(
    net: nn.Module, checkpoint: Checkpoint, *, model_name: str, allow_shape_mismatch: bool = False
) -> list[str]:
    """Load a checkpoint's weights into a model, in place.

    Args:
        net: The model.
        checkpoint: Its weights.
        model_name: "yolox_tiny_8xb8-300e_coco", for the error message.
        allow_shape_mismatch: Whether layers of another shape, those of other classes, may keep what they have.

    Returns:
        The names of the arrays that the checkpoint does not have, or has in another shape.

    Raises:
        ModelError: The weights belong to another model.
    """
    state = net.state_dict()
    weights = checkpoint.weights
    fitting = {name: array for name, array in weights.items() if name in state and state[name].shape == array.shape}
    mismatched = [name for name in state if name in weights and name not in fitting]
    missing = [name for name in state if name not in weights and not name.endswith("num_batches_tracked")]
    missing = [name for name in missing if not name.startswith("data_preprocessor.")]
    wrong = [*missing, *(() if allow_shape_mismatch else mismatched)]
    if wrong and (not allow_shape_mismatch or len(wrong) > len(state) // 2):
        raise ModelError(
            f"{checkpoint.path} does not belong to {model_name}: {len(wrong)} of its {len(state)} arrays are missing "
            f"there or have another shape, {wrong[0]} is the first.",
            "Name the config that the checkpoint was trained with.",
        )
    state.update(fitting)
    net.load_state_dict(state)
    return [*mismatched, *missing]


def save(weights: Mapping[str, torch.Tensor], folder: Path, name: str = WEIGHTS_FILENAME) -> None:
    """Write weights as safetensors. Equal weights give equal bytes."""
    from safetensors.torch import save as to_bytes

    arrays = {key: array.detach().cpu().contiguous().clone() for key, array in weights.items()}
    (folder / name).write_bytes(to_bytes(arrays))


def load(folder: Path, name: str = WEIGHTS_FILENAME) -> Checkpoint:
    """Read what `save` wrote. Raises ModelError if it is missing or damaged."""
    path = folder / name
    try:
        return read(str(path))
    except ModelError as error:
        raise ModelError(error.message, "Copy the folder again, or train a new version.") from error


def _strip_wrapper_prefix(name: str) -> str:
    for prefix in _WRAPPER_PREFIXES:
        name = name.removeprefix(prefix)
    return name


def require_class_count(classes: Sequence[str], num_outputs: int | None, model_name: str) -> None:
    """Raise ModelError if a model has another number of outputs than there are class names."""
    if num_outputs is not None and num_outputs != len(classes):
        raise ModelError(
            f"{model_name} tells {num_outputs} classes apart, but there are {len(classes)} names for them.",
            "Name the checkpoint that belongs to this config, or a config with the classes in its metainfo.",
        )
