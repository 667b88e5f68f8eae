"""Weights in, weights out.

What torch.save wrote is a pickle, and reading a pickle runs what it says. So a checkpoint is read as weights alone,
with the few harmless classes that mmengine's training leaves in its own; and only somebody who trusts the file, and
says so, has it read in full. A trained version holds arrays (safetensors), which nothing runs.
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
    """What somebody trained.

    weights  by name
    classes  in the order of the model's outputs; empty when the file does not say
    config   the text of the config that it was trained with, "" when the file does not say
    """

    path: Path
    weights: Mapping[str, torch.Tensor]
    classes: tuple[str, ...] = ()
    config: str = ""


def read(path: str, *, trust_pickle: bool = False) -> Checkpoint:
    """A checkpoint that mmdet, mmocr or mmengine wrote, or plain weights; .safetensors too.

    trusted  read a file in full that holds more than weights, which lets it run code

    Raises ModelError when there is no such file, or when it would run code.
    """
    place = Path(path)
    try:
        stat = place.stat()
    except OSError as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise ModelError(
            f"The checkpoint {path} {why}.", "Name a file of weights; lsml fetches none by itself."
        ) from error
    return _read(place, stat.st_mtime_ns, stat.st_size, trust_pickle)


@lru_cache(maxsize=4)
def _read(path: Path, mtime_ns: int, size: int, trust_pickle: bool) -> Checkpoint:
    """Once for each file: whoever binds a model wants the classes, whoever loads it the weights."""
    found = _load_file(path, trust_pickle)
    meta = found.get("meta") if isinstance(found, Mapping) else None
    weights: Any = found
    for key in ("state_dict", "model"):
        if isinstance(weights, Mapping) and isinstance(weights.get(key), Mapping):
            weights = weights[key]
    import torch

    if not isinstance(weights, Mapping) or not all(isinstance(each, torch.Tensor) for each in weights.values()):
        raise ModelError(f"{path} holds no weights by their names.", "Name a checkpoint that mmdet or mmocr wrote.")
    meta = meta if isinstance(meta, Mapping) else {}
    config = meta.get("cfg", meta.get("config", ""))
    return Checkpoint(
        path, {_strip_wrapper_prefix(name): each for name, each in weights.items()}, _class_names(meta), str(config)
    )


def _load_file(path: Path, trust_pickle: bool) -> Any:
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_safe_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # readers raise what they like about a file that is none of theirs
        _require_checkpoint(path)
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        garbled = "Unsupported operand" in str(error)  # no pickle, or none of the protocol that torch.save writes
        if type(error).__name__ != "UnpicklingError" or (garbled and not trust_pickle):
            raise ModelError(
                f"{path} is damaged, or no checkpoint at all.", "Copy it again; lsml reads what torch.save writes."
            ) from error
        if not trust_pickle:
            what = f" ({named[1]}, for one)" if named else ""
            raise ModelError(
                f"{path} holds more than weights{what}: reading it would run code, so it was not read.",
                "If you know who made it and trust them with this machine: --with trust_checkpoint=true",
            ) from error
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise ModelError(f"{path} cannot be read: {type(error).__name__}: {error}.") from error


def _require_checkpoint(path: Path) -> None:
    """Raises ModelError when a file that could not be read begins like something else than a checkpoint."""
    with path.open("rb") as file:
        head = file.read(64)
    hint = "Copy it again; lsml reads what torch.save writes, and .safetensors."
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        what = "an HTML page"
        hint = "The download has failed: fetch it again, from the address of the file itself."
    elif head.startswith(b"version https://git-lfs"):
        what, hint = "a Git LFS pointer", "Fetch what it stands for, in its repository: git lfs pull"
    elif head[8:10] == b'{"':  # after the length of this JSON
        if path.suffix == ".safetensors":
            return
        move = shlex.join(["mv", str(path), str(path.with_suffix(".safetensors"))])
        what, hint = "safetensors", f"Its name has to say so: {move}"
    elif head.startswith((b"PK", b"\x80")):  # a zip archive, a pickle
        return
    else:
        what = f"something that begins with {head[:16]!r}" if head else "an empty file"
    raise ModelError(f"{path} is no checkpoint but {what}.", hint)


def _safe_globals() -> list[Any]:
    """What mmengine's Runner leaves beside the weights: its curves, and the numbers in them."""
    import numpy as np
    from mmengine.logging.history_buffer import HistoryBuffer

    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    kinds = {type(np.dtype(kind)) for kind in (np.uint32, np.int32, np.int64, np.float32, np.float64)}
    harmless = [multiarray._reconstruct, multiarray.scalar, np.ndarray, np.dtype, *kinds, HistoryBuffer, slice]
    return [*harmless, (_restricted_getattr, "builtins.getattr")]


def _restricted_getattr(owner: Any, name: str) -> Any:
    """What stands in for getattr, by which a curve names its methods: with that one a file could go anywhere."""
    from mmengine.logging.history_buffer import HistoryBuffer

    if not (owner is HistoryBuffer or type(owner) is HistoryBuffer) or name.startswith("_"):
        raise pickle.UnpicklingError("GLOBAL builtins.getattr of something else than a curve")
    return getattr(owner, name)


def _class_names(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """As mmdet 3 (dataset_meta) or mmdet 2 (CLASSES) wrote them."""
    described = meta.get("dataset_meta")
    named = {str(key).lower(): each for key, each in described.items()} if isinstance(described, Mapping) else {}
    found = named.get("classes", meta.get("CLASSES"))
    if isinstance(found, str):
        return (found,)
    return tuple(map(str, found)) if isinstance(found, list | tuple) else ()


def load_into(
    net: nn.Module, checkpoint: Checkpoint, *, model_name: str, allow_shape_mismatch: bool = False
) -> list[str]:
    """Put a checkpoint's weights into a net in place; the names of those that it had no room for.

    what      "yolox_tiny_8xb8-300e_coco", for the sentence
    new_ends  whether layers of another shape, those of other classes, may keep what they have

    Raises ModelError when the weights belong to something else.
    """
    own = net.state_dict()
    given = checkpoint.weights
    fitting = {name: each for name, each in given.items() if name in own and own[name].shape == each.shape}
    shaped = [name for name in own if name in given and name not in fitting]
    lacking = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    lacking = [name for name in lacking if not name.startswith("data_preprocessor.")]
    wrong = [*lacking, *(() if allow_shape_mismatch else shaped)]
    if wrong and (not allow_shape_mismatch or len(wrong) > len(own) // 2):
        raise ModelError(
            f"{checkpoint.path} does not belong to {model_name}: {len(wrong)} of its {len(own)} arrays are missing there or "
            f"have another shape, {wrong[0]} is the first.",
            "Name the config that the checkpoint was trained with.",
        )
    own.update(fitting)
    net.load_state_dict(own)
    return [*shaped, *lacking]


def save(weights: Mapping[str, torch.Tensor], folder: Path, name: str = WEIGHTS_FILENAME) -> None:
    """As arrays. The same weights give the same bytes."""
    from safetensors.torch import save as to_bytes

    arrays = {key: each.detach().cpu().contiguous().clone() for key, each in weights.items()}
    (folder / name).write_bytes(to_bytes(arrays))


def load(folder: Path, name: str = WEIGHTS_FILENAME) -> Checkpoint:
    """What `save` wrote. Raises ModelError when it is missing or damaged."""
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
    """Raises ModelError when a model has another number of outputs than there are names for them."""
    if num_outputs is not None and num_outputs != len(classes):
        raise ModelError(
            f"{model_name} tells {num_outputs} classes apart, but there are {len(classes)} names for them.",
            "Name the checkpoint that belongs to this config, or a config with the classes in its metainfo.",
        )
