"""torchvision's architectures with a linear layer of our own at the end; weights in, weights out."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import LsmlError, ModelError, UsageError, format_list, sort_by_similarity
from lsml_cli.models.image_classifier.preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch
    from torch import nn

    Arrays = Mapping[str, torch.Tensor]

WEIGHTS = "weights.safetensors"
DEFAULT_WEIGHTS, RANDOM_WEIGHTS = "default", "none"  # of `--with weights=`; anything else is a file
MIN_IMAGE_SIZE = 32  # pixels of a side

# Have side exits that only their own training looks at, and turn pixels into what their weights were made for.
_INCEPTION = frozenset({"googlenet", "inception_v3"})
_SIZE_ARGUMENTS = {"vit": "image_size", "maxvit": "input_size"}  # are made for squares of one size
_STATE_DICT_KEYS = ("state_dict", "model")  # where training scripts keep the weights in what they save
_DENSE_LAYER = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")  # as torchvision's files spell them


def architectures() -> list[str]:
    """Every classification architecture of this torchvision, by name."""
    import torchvision

    return sorted(torchvision.models.list_models(module=torchvision.models))


def require_architecture(name: Any) -> None:
    """Raises UsageError that lists the closest ones when there is no architecture of that name."""
    known = architectures()
    if name not in known:
        near = format_list(sort_by_similarity(str(name), known), 8)
        raise UsageError(f"torchvision has no classification architecture {name!r}.", f"It has: {near}.")


def preprocessing_of(arch: str, size: int | None = None) -> Preprocessing:
    """What the default weights of an architecture expect; nothing is fetched for it.

    size  pixels of another square than these weights look at
    """
    import torchvision

    return Preprocessing.from_preset(torchvision.models.get_model_weights(arch).DEFAULT.transforms(), size)


def categories_of(arch: str) -> list[str]:
    """The classes of the default weights, in their order; empty when torchvision does not say."""
    import torchvision

    return list(torchvision.models.get_model_weights(arch).DEFAULT.meta.get("categories", ()))


def require_size(arch: str, crop: int) -> None:
    """Raises UsageError when the architecture cannot look at squares of `crop` pixels. Takes some milliseconds."""
    import torch

    try:
        with torch.inference_mode():  # shapes alone: nothing is computed
            _build_on_meta_device(arch, crop).eval()(torch.empty(1, 3, crop, crop, device="meta"))
    except LsmlError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        usual = preprocessing_of(arch).crop
        raise UsageError(
            f"{arch} cannot look at squares of {crop} pixels.", f"Leave out image_size: it looks at {usual} pixels."
        ) from error


def build(arch: str, classes: int, crop: int) -> nn.Module:
    """An untrained net that looks at squares of `crop` pixels: (n, 3, crop, crop) -> (n, classes).

    Raises UsageError when the architecture does not end in a linear layer.
    """
    net = _construct(arch, crop)
    reset_last_layer(net, arch, classes)
    return net


def load_initial_weights(net: nn.Module, arch: str, weights: str) -> None:
    """Weights for everything, save for a last layer of another number of classes. "none" leaves them random.

    Raises ModelError when they cannot be had, or belong to another architecture.
    """
    if weights == RANDOM_WEIGHTS:
        return
    found = _download_weights(arch) if weights == DEFAULT_WEIGHTS else _read_weights(Path(weights))
    name, _ = _last_linear(net, arch)
    own = net.state_dict()
    kept = {key: value for key, value in found.items() if key in own and own[key].shape == value.shape}
    spare = {f"{name}.weight", f"{name}.bias"}
    if lacking := [key for key in own if key not in kept and key not in spare and not _is_counter(key)]:
        what = f"The weights {weights!r} do not belong to {arch}"
        raise ModelError(
            f"{what}: {len(lacking)} of its {len(own)} arrays are missing or of another shape, "
            f"{lacking[0]} is the first.",
            "Name the architecture that they belong to (--with arch=NAME), and leave out image_size.",
        )
    own.update(kept)  # which knows more than the names: the version of each layer's format
    net.load_state_dict(own)


def build_pretrained(arch: str) -> nn.Module:
    """The net of the default weights, as torchvision has it. Raises ModelError when they cannot be fetched."""
    found = _download_weights(arch)
    net = _construct(arch, preprocessing_of(arch).crop)
    own = net.state_dict()
    own.update({key: found[key] for key in own if key in found or not _is_counter(key)})
    net.load_state_dict(own)
    return net


def reset_last_layer(net: nn.Module, arch: str, classes: int) -> nn.Linear:
    """Let the last layer begin anew."""
    from torch import nn

    name, last = _last_linear(net, arch)
    new = nn.Linear(last.in_features, classes)
    _replace_module(net, name, new)
    return new


def resize_last_layer(net: nn.Module, arch: str, classes: int) -> nn.Linear:
    """The last layer, a new one where it had another number of classes."""
    _, last = _last_linear(net, arch)
    return last if last.out_features == classes else reset_last_layer(net, arch, classes)


def remove_last_layer(net: nn.Module, arch: str) -> nn.Module:
    """A copy of the net that gives what its last layer would have been given."""
    import copy

    from torch import nn

    name, _ = _last_linear(net, arch)
    headless = copy.deepcopy(net)
    _replace_module(headless, name, nn.Identity())
    return headless


def save(folder: Path, nets: Sequence[nn.Module]) -> None:
    """All nets in one file of arrays. The same nets give the same bytes."""
    from safetensors.torch import save as to_bytes

    arrays = {
        f"{number}.{name}": value.detach().cpu().contiguous()
        for number, net in enumerate(nets)
        for name, value in net.state_dict().items()
    }
    (folder / WEIGHTS).write_bytes(to_bytes(arrays))


def load(folder: Path, arch: str, crop: int, class_counts: Sequence[int]) -> list[nn.Module]:
    """What `save` wrote: a net for each number of classes. Raises ModelError when it is missing or damaged."""
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        with path.open("rb"):  # raises what the system says, of which safetensors tells only a part
            arrays = load_file(path)
        nets = []
        for number, width in enumerate(class_counts):
            net = build(arch, width, crop)
            own = net.state_dict()
            mine = f"{number}."
            found = {key.removeprefix(mine): array for key, array in arrays.items() if key.startswith(mine)}
            if found.keys() != own.keys():
                raise ValueError(f"they are not those of {arch}")
            own.update(found)
            net.load_state_dict(own)
            nets.append(net)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UsageError:
        raise
    except Exception as error:  # safetensors and torch raise what they like; whatever it is, the version is damaged
        raise ModelError(
            f"The weights in {folder} are damaged ({' '.join(str(error).split())[:200]}).",
            "Copy the folder again, or train a new version.",
        ) from error
    return nets


def _construct(arch: str, crop: int) -> nn.Module:
    import torchvision

    given: dict[str, Any] = {}
    if arch in _INCEPTION:  # their own way to begin takes minutes; PyTorch's does as well
        given = {"aux_logits": False, "init_weights": False, "transform_input": True}
    elif (size := _SIZE_ARGUMENTS.get(arch.partition("_")[0])) is not None:
        given = {size: crop if size == "image_size" else (crop, crop)}
    net: nn.Module = torchvision.models.get_model(arch, weights=None, **given)
    return net


def _build_on_meta_device(arch: str, crop: int) -> nn.Module:
    """The net without memory for its weights."""
    import torch

    try:
        with torch.device("meta"):
            return build(arch, 1, crop)
    except NotImplementedError:  # some look at numbers while they are built
        return build(arch, 1, crop).to("meta")


def _last_linear(net: nn.Module, arch: str) -> tuple[str, nn.Linear]:
    from torch import nn

    layers = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UsageError(f"{arch} does not end in a linear layer, which is what lsml trains.", "Try arch=resnet18.")
    return layers[-1]


def _replace_module(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(net.get_submodule(parent), own, module)


def _is_counter(key: str) -> bool:
    """Whether an array only counts the batches that were seen; older files lack it, and nothing depends on it."""
    return key.endswith("num_batches_tracked")


def _download_weights(arch: str) -> Arrays:
    """torchvision's default weights: from its cache, or from its server the first time."""
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
        except (OSError, RuntimeError) as error:  # no way there, or other bytes than were announced
            why = " ".join(str(getattr(error, "reason", error)).split())
            raise ModelError(
                f"The weights of {arch} have to be fetched once from {url.split('/')[2]}, which failed: {why}.",
                f"Fetch {url} where there is a network, and name the file: --with weights={name}; "
                "or begin with random weights: --with weights=none.",
            ) from error
    found = _read_weights(path)
    return {_DENSE_LAYER.sub(r"\1\2", key): value for key, value in found.items()}


def _read_weights(path: Path) -> Arrays:
    """Weights in a file, .safetensors or what torch.save wrote; nothing in it is executed."""
    import torch
    from safetensors.torch import load_file

    try:
        with path.open("rb"):  # raises what the system says
            pass
    except OSError as error:
        raise ModelError(
            f"The weights {str(path)!r} cannot be read: {error.strerror or error}.",
            "weights is default, none, or a file: --with weights=FILE",
        ) from error
    try:
        with warnings.catch_warnings(action="ignore"):  # what PyTorch finds odd in a file it says in what it raises
            if path.suffix == ".safetensors":
                found: Any = load_file(path)
            else:
                found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file makes the readers raise what they like
        raise ModelError(f"{path} {_describe_load_error(error)}.", _SAVE_HINT) from error
    for key in _STATE_DICT_KEYS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ModelError(f"{path} holds no weights by their names.", _SAVE_HINT)
    return {str(key).removeprefix("module."): value for key, value in found.items()}


_SAVE_HINT = "Save weights with torch.save(net.state_dict(), FILE)."


def _describe_load_error(error: Exception) -> str:
    """Why a file gave no weights. PyTorch's own advice for pickles would be to let their code run."""
    if not isinstance(error, pickle.UnpicklingError):
        return "is damaged, or no file of weights at all"
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f" ({named[1]}, for one)" if named else ""
    return f"holds more than weights{what}: reading it would run code, so it was not read"
