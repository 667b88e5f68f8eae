"""torchvision's architectures with a linear layer of our own at the end; weights in, weights out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import ModelError, UsageError, closest_first, listed
from lsml_cli.models.image_classifier.preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHTS = "weights.safetensors"
DEFAULT, NONE = "default", "none"  # of `--with weights=`; anything else is a file
SMALLEST = 32  # pixels of a side

_AUXILIARY = frozenset({"googlenet", "inception_v3"})  # have side exits that only their own training looks at


def architectures() -> list[str]:
    """Every classification architecture of this torchvision, by name."""
    import torchvision

    return sorted(torchvision.models.list_models(module=torchvision.models))


def require_architecture(name: Any) -> None:
    """Raises UsageError that lists the closest ones when there is no architecture of that name."""
    known = architectures()
    if name not in known:
        near = listed(closest_first(str(name), known), 8)
        raise UsageError(f"torchvision has no classification architecture {name!r}.", f"It has: {near}.")


def preprocessing_of(arch: str, size: int | None = None) -> Preprocessing:
    """What the default weights of an architecture expect; nothing is fetched for it."""
    import torchvision

    return Preprocessing.of(torchvision.models.get_model_weights(arch).DEFAULT.transforms(), size)


def categories_of(arch: str) -> list[str]:
    """The classes of the default weights, in their order; empty when torchvision does not say."""
    import torchvision

    return list(torchvision.models.get_model_weights(arch).DEFAULT.meta.get("categories", ()))


def build(arch: str, classes: int) -> nn.Module:
    """An untrained net: (n, 3, h, w) -> (n, classes).

    Raises UsageError when the architecture does not end in a linear layer.
    """
    net = _empty(arch)
    name, last = _last_linear(net, arch)
    from torch import nn

    _set(net, name, nn.Linear(last.in_features, classes))
    return net


def fill(net: nn.Module, arch: str, weights: str) -> None:
    """Weights for everything but the last layer, of another number of classes. "none" leaves them random.

    Raises ModelError when they cannot be had, or belong to another architecture.
    """
    if weights == NONE:
        return
    found = _fetched(arch) if weights == DEFAULT else _read(Path(weights))
    name, _ = _last_linear(net, arch)
    own = net.state_dict()
    kept = {key: value for key, value in found.items() if key in own and own[key].shape == value.shape}
    ends = {f"{name}.weight", f"{name}.bias"}
    if lacking := [key for key in own if key not in kept and key not in ends]:
        raise ModelError(
            f"The weights {weights!r} do not belong to {arch}: {len(lacking)} of {len(own)} arrays are missing or of "
            f"another shape, {lacking[0]} is the first."
        )
    net.load_state_dict(kept, strict=False)


def with_its_own_classes(arch: str) -> nn.Module:
    """The net of the default weights, as torchvision has it. Raises ModelError when they cannot be fetched."""
    net = _empty(arch)
    found = _fetched(arch)
    net.load_state_dict({key: found[key] for key in net.state_dict()})
    return net


def renew(net: nn.Module, arch: str, classes: int) -> None:
    """Let the last layer begin anew."""
    from torch import nn

    name, last = _last_linear(net, arch)
    _set(net, name, nn.Linear(last.in_features, classes))


def widen(net: nn.Module, arch: str, classes: int) -> nn.Linear:
    """The last layer, a new one where it had another number of classes."""
    from torch import nn

    name, last = _last_linear(net, arch)
    if last.out_features != classes:
        last = nn.Linear(last.in_features, classes)
        _set(net, name, last)
    return last


def without_end(net: nn.Module, arch: str) -> nn.Module:
    """The same net, giving what its last layer would have been given; shares its weights."""
    import copy

    from torch import nn

    name, _ = _last_linear(net, arch)
    headless = copy.deepcopy(net)
    _set(headless, name, nn.Identity())
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


def load(folder: Path, arch: str, widths: Sequence[int]) -> list[nn.Module]:
    """What `save` wrote: a net for each number of classes. Raises ModelError when it is missing or damaged."""
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        with path.open("rb"):  # raises what the system says, of which safetensors tells only a part
            arrays = load_file(path)
        nets = []
        for number, width in enumerate(widths):
            net = build(arch, width)
            mine = f"{number}."
            net.load_state_dict({key.removeprefix(mine): a for key, a in arrays.items() if key.startswith(mine)})
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


def _empty(arch: str) -> nn.Module:
    import torchvision

    # Side exits are left out; torchvision's own initialisation of these two takes minutes and is made up for below.
    given = {"aux_logits": False, "init_weights": False} if arch in _AUXILIARY else {}
    net: nn.Module = torchvision.models.get_model(arch, weights=None, **given)
    return net


def _last_linear(net: nn.Module, arch: str) -> tuple[str, nn.Linear]:
    from torch import nn

    layers = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    convolutions = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    if not layers or arch.startswith("squeezenet"):
        end = convolutions[-1] if convolutions else "something else"
        raise UsageError(f"{arch} ends in a convolution ({end}), and lsml needs a linear layer there.", "Try resnet18.")
    return layers[-1]


def _set(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(net.get_submodule(parent), own, module)


def _fetched(arch: str) -> Mapping[str, torch.Tensor]:
    """torchvision's default weights: from its cache, or from its server the first time."""
    import torchvision

    weights = torchvision.models.get_model_weights(arch).DEFAULT
    try:
        found: Mapping[str, torch.Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise ModelError(
            f"The weights of {arch} have to be fetched once from {weights.url.split('/')[2]}, which failed: {error}.",
            "Fetch them where there is a network, and name the file: --with weights=FILE; or begin without any: "
            "--with weights=none.",
        ) from error
    return found


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    """Weights in a file, .safetensors or what torch.save wrote; nothing in it is executed."""
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
            return dict(found)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"The weights {str(path)!r} cannot be read: {error.strerror or error}.") from error
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ModelError(
            f"{path} holds no weights that can be read safely: {' '.join(str(error).split())[:200]}."
        ) from error
    found = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ModelError(
            f"{path} holds no weights by their names.", "Save them with torch.save(net.state_dict(), FILE)."
        )
    return {key.removeprefix("module."): value for key, value in found.items()}
