"""Build torchvision's architectures with a last layer of lsml's own; load and save their weights."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import LsmlError, ModelError, UsageError, format_list, sort_by_similarity
from lsml_cli.models.image_classifier.config import DEFAULT_WEIGHTS, RANDOM_WEIGHTS
from lsml_cli.models.image_classifier.preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch
    from torch import nn

    Arrays = Mapping[str, torch.Tensor]

WEIGHTS = "weights.safetensors"
# They have auxiliary outputs for their own training, and transform pixels into what their weights were made for.
_INCEPTION = frozenset({"googlenet", "inception_v3"})
_SIZE_ARGUMENTS = {"vit": "image_size", "maxvit": "input_size"}  # architectures for squares of one size
_STATE_DICT_KEYS = ("state_dict", "model")  # where training scripts keep the weights in what they save
_DENSE_LAYER = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")  # as torchvision's files name them


def architectures() -> list[str]:
    """Return the names of the classification architectures of this torchvision."""
    import torchvision

    return sorted(torchvision.models.list_models(module=torchvision.models))


def require_architecture(name: Any) -> None:
    """Raise UsageError that lists the closest names if there is no architecture of that name."""
    known = architectures()
    if name not in known:
        closest = format_list(sort_by_similarity(str(name), known), 8)
        raise UsageError(f"torchvision has no classification architecture {name!r}.", f"It has: {closest}.")


def preprocessing_of(arch: str, size: int | None = None) -> Preprocessing:
    """Return the preprocessing that the default weights of an architecture expect. Nothing is downloaded.

    Args:
        arch: Name of the architecture.
        size: Side of the square in pixels, where it is not the one of these weights.
    """
    import torchvision

    return Preprocessing.from_preset(torchvision.models.get_model_weights(arch).DEFAULT.transforms(), size)


def categories_of(arch: str) -> list[str]:
    """Return the classes of the default weights in their order; none if torchvision does not say."""
    import torchvision

    return list(torchvision.models.get_model_weights(arch).DEFAULT.meta.get("categories", ()))


def require_size(arch: str, crop: int) -> None:
    """Raise UsageError if an architecture does not take squares of `crop` pixels. Takes some milliseconds."""
    import torch

    try:
        with torch.inference_mode():  # on the meta device only shapes are computed
            _build_on_meta_device(arch, crop).eval()(torch.empty(1, 3, crop, crop, device="meta"))
    except LsmlError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        default_crop = preprocessing_of(arch).crop
        raise UsageError(
            f"{arch} does not take squares of {crop} pixels.", f"Leave out image_size: it takes {default_crop} pixels."
        ) from error


def build(arch: str, classes: int, crop: int) -> nn.Module:
    """Build an untrained network: (n, 3, crop, crop) -> (n, classes).

    Raises:
        UsageError: The architecture does not end in a linear layer.
    """
    net = _construct(arch, crop)
    reset_last_layer(net, arch, classes)
    return net


def load_initial_weights(net: nn.Module, arch: str, weights: str) -> None:
    """Load initial weights, except for a last layer with another number of classes.

    Args:
        net: Changed in place.
        arch: Its architecture.
        weights: "default" for torchvision's, "none" to leave them random, or a path.

    Raises:
        ModelError: The weights cannot be read, or belong to another architecture.
    """
    if weights == RANDOM_WEIGHTS:
        return
    arrays = _download_weights(arch) if weights == DEFAULT_WEIGHTS else _read_weights(Path(weights))
    name, _ = _last_linear(net, arch)
    state = net.state_dict()
    fitting = {key: array for key, array in arrays.items() if key in state and state[key].shape == array.shape}
    optional = {f"{name}.weight", f"{name}.bias"}
    if missing := [key for key in state if key not in fitting and key not in optional and not _is_counter(key)]:
        raise ModelError(
            f"The weights {weights!r} do not belong to {arch}: {len(missing)} of its {len(state)} arrays are missing "
            f"or of another shape, {missing[0]} is the first.",
            "Name the architecture that they belong to (--with arch=NAME), and leave out image_size.",
        )
    state.update(fitting)  # keeps what `state` knows besides the arrays: the version of each layer's format
    net.load_state_dict(state)


def build_pretrained(arch: str) -> nn.Module:
    """Build the network of torchvision's default weights. Raises ModelError if they cannot be downloaded."""
    arrays = _download_weights(arch)
    net = _construct(arch, preprocessing_of(arch).crop)
    state = net.state_dict()
    state.update({key: arrays[key] for key in state if key in arrays or not _is_counter(key)})
    net.load_state_dict(state)
    return net


def reset_last_layer(net: nn.Module, arch: str, classes: int) -> nn.Linear:
    """Replace the last layer by a new one with random weights, and return it."""
    from torch import nn

    name, old_layer = _last_linear(net, arch)
    new_layer = nn.Linear(old_layer.in_features, classes)
    _replace_module(net, name, new_layer)
    return new_layer


def resize_last_layer(net: nn.Module, arch: str, classes: int) -> nn.Linear:
    """Return the last layer, replaced by a new one if it has another number of classes."""
    _, last = _last_linear(net, arch)
    return last if last.out_features == classes else reset_last_layer(net, arch, classes)


def remove_last_layer(net: nn.Module, arch: str) -> nn.Module:
    """Return a copy of the network that outputs the input of its last layer."""
    import copy

    from torch import nn

    name, _ = _last_linear(net, arch)
    headless = copy.deepcopy(net)
    _replace_module(headless, name, nn.Identity())
    return headless


def save(folder: Path, nets: Sequence[nn.Module]) -> None:
    """Write all networks into one safetensors file. Equal networks give equal bytes."""
    from safetensors.torch import save as to_bytes

    arrays = {
        f"{number}.{name}": value.detach().cpu().contiguous()
        for number, net in enumerate(nets)
        for name, value in net.state_dict().items()
    }
    (folder / WEIGHTS).write_bytes(to_bytes(arrays))


def load(folder: Path, arch: str, crop: int, class_counts: Sequence[int]) -> list[nn.Module]:
    """Read what `save` wrote: one network per number of classes. Raises ModelError if it is missing or damaged."""
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        with path.open("rb"):  # raises the system's own error, of which safetensors tells only a part
            arrays = load_file(path)
        nets = []
        for number, count in enumerate(class_counts):
            net = build(arch, count, crop)
            state = net.state_dict()
            prefix = f"{number}."
            stored = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
            if stored.keys() != state.keys():
                raise ValueError(f"they are not those of {arch}")
            state.update(stored)
            net.load_state_dict(state)
            nets.append(net)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UsageError:
        raise
    except Exception as error:  # safetensors and torch raise all kinds of errors; the version is damaged in any case
        raise ModelError(
            f"The weights in {folder} are damaged ({' '.join(str(error).split())[:200]}).",
            "Copy the folder again, or train a new version.",
        ) from error
    return nets


def _construct(arch: str, crop: int) -> nn.Module:
    import torchvision

    arguments: dict[str, Any] = {}
    if arch in _INCEPTION:  # their own initialization takes minutes; PyTorch's default is as good
        arguments = {"aux_logits": False, "init_weights": False, "transform_input": True}
    elif (size_name := _SIZE_ARGUMENTS.get(arch.partition("_")[0])) is not None:
        arguments = {size_name: crop if size_name == "image_size" else (crop, crop)}
    net: nn.Module = torchvision.models.get_model(arch, weights=None, **arguments)
    return net


def _build_on_meta_device(arch: str, crop: int) -> nn.Module:
    """Build a network without memory for its weights."""
    import torch

    try:
        with torch.device("meta"):
            return build(arch, 1, crop)
    except NotImplementedError:  # some compute with values while they are built
        return build(arch, 1, crop).to("meta")


def _last_linear(net: nn.Module, arch: str) -> tuple[str, nn.Linear]:
    from torch import nn

    layers = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UsageError(f"{arch} does not end in a linear layer, which is what lsml trains.", "Try arch=resnet18.")
    return layers[-1]


def _replace_module(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(net.get_submodule(parent), attribute, module)


def _is_counter(key: str) -> bool:
    """Tell whether an array only counts training batches; older files lack it, and nothing depends on it."""
    return key.endswith("num_batches_tracked")


def _download_weights(arch: str) -> Arrays:
    """Return torchvision's default weights: from its cache, or the first time from its server."""
    import torchvision
    from torch import hub

    url: str = torchvision.models.get_model_weights(arch).DEFAULT.url
    name = url.rpartition("/")[2]
    path = Path(hub.get_dir()) / "checkpoints" / name
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = hub.HASH_REGEX.search(name)
            hub.download_url_to_file(url, str(path), digest and digest[1], progress=False)
        except (OSError, RuntimeError) as error:  # the server cannot be reached, or the digest does not match
            why = " ".join(str(getattr(error, "reason", error)).split())
            raise ModelError(
                f"The weights of {arch} have to be fetched once from {url.split('/')[2]}, which failed: {why}.",
                f"Fetch {url} where there is a network, and name the file: --with weights={name}; "
                "or begin with random weights: --with weights=none.",
            ) from error
    return {_DENSE_LAYER.sub(r"\1\2", key): array for key, array in _read_weights(path).items()}


def _read_weights(path: Path) -> Arrays:
    """Read a file of weights, .safetensors or what torch.save wrote. No code in it is executed."""
    import torch
    from safetensors.torch import load_file

    try:
        with path.open("rb"):  # raises the system's own error
            pass
    except OSError as error:
        raise ModelError(
            f"The weights {str(path)!r} cannot be read: {error.strerror or error}.",
            "weights is default, none, or a file: --with weights=FILE",
        ) from error
    try:
        with warnings.catch_warnings(action="ignore"):  # the error that follows says the same
            if path.suffix == ".safetensors":
                content: Any = load_file(path)
            else:
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the readers raise all kinds of errors
        raise ModelError(f"{path} {_describe_load_error(error)}.", _SAVE_HINT) from error
    for key in _STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(array, torch.Tensor) for array in content.values()):
        raise ModelError(f"{path} holds no weights by their names.", _SAVE_HINT)
    return {str(key).removeprefix("module."): array for key, array in content.items()}


_SAVE_HINT = "Save weights with torch.save(net.state_dict(), FILE)."


def _describe_load_error(error: Exception) -> str:
    """Say why a file gave no weights; PyTorch's own advice for pickles would be to let their code run."""
    if not isinstance(error, pickle.UnpicklingError):
        return "is damaged, or no file of weights at all"
    global_name = re.search(r"GLOBAL ([\w.]+)", str(error))
    example = f" ({global_name[1]}, for one)" if global_name else ""
    return f"holds more than weights{example}: reading it would run code, so it was not read"
