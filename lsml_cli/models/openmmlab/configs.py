"""Read a config by its path or by the name of a packaged one, and store it in a version.

A config in Python is code, and naming its path means to run it. The config in a version is read as literals only, and
names nothing but registered modules: mmengine would import and call whatever a dotted path leads to. It names no files
either: some models read a config or a checkpoint when they are built, and mmengine unpickles checkpoints.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import os
import pprint
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lsml_cli.errors import ModelError, UsageError, format_list, sort_by_similarity
from lsml_cli.models.openmmlab import toolkit
from lsml_cli.models.openmmlab.toolkit import Scope
from lsml_cli.runtime import read_small_file

SCOPES = ("mmengine", "mmcv", "mmdet", "mmocr")
MAX_CONFIG_BYTES = 16 << 20  # of a version's config
MAX_SHOWN_TEXT = 200  # characters of a config's text in a message
CONFIG_FILENAME = "config.py"  # in a trained version; mmdet and mmocr read it as well
SUFFIXES = (".py", ".json", ".yml", ".yaml")
_REGISTERED_TYPE = re.compile(r"(?:(?:mmengine|mmcv|mmdet|mmocr)\.)?\w+")
_TYPE_KEYS = ("type", "constructor", "_scope_", "default_scope")  # whose values mmengine looks up, or imports
# Types that are looked up nowhere: words that a model compares with, or its own blocks (FPG, Cascade RPN, ASTER).
_WORDS = frozenset({"BasicBlock", "Bottleneck", "conv", "dilation", "interpolation_conv", "last_conv", "offset"})
_FILE_KEY = re.compile(r"(?:.*_)?(?:ckpt|checkpoint|config|path|file|filename)")  # of arguments that are opened
_DICTIONARY_KEY = "dict_file"  # a placeholder in a version, see `ocr.components`
_BASE_STATEMENT = re.compile(r"""^[\s{]*["']?_base_["']?\s*[:=]\s*(\[.*?\]|\(.*?\)|[^\n]+)""", re.MULTILINE | re.DOTALL)
_CONFIG_PATH = re.compile(r"""[^\s"',()\[\]]+\.(?:py|json|ya?ml)\b""")
_RELATIVE_IMPORT = re.compile(r"^\s*from\s+(\.+)([\w.]+)\s+import\b", re.MULTILINE)  # below `with read_base():`
_COMPLETE_CONFIG = re.compile(r"^(model|_base_)\b|read_base", re.MULTILINE)  # else it is a part for other configs
_LOADING_STEPS = ("LoadImageFromFile", "LoadImageFromNDArray", "InferencerLoader")
_ANNOTATION_STEPS = ("LoadAnnotations", "LoadPanopticAnnotations", "LoadOCRAnnotations", "FilterAnnotations")

Config = dict[str, Any]  # dicts, lists, tuples, strings, numbers


@cache
def packaged_configs(scope: Scope) -> Mapping[str, Path]:
    """Return the configs that come with a toolkit, by name. The toolkit is located, not imported."""
    package = importlib.util.find_spec(scope)
    if package is None or not package.submodule_search_locations:
        raise ModelError(f"{scope} is not installed here.", toolkit.INSTALL_HINT)
    configs = Path(package.submodule_search_locations[0]) / ".mim" / "configs"
    paths = sorted(path for path in configs.rglob("*.py") if "_base_" not in path.relative_to(configs).as_posix())
    return {path.stem: path for path in paths}


def find(name_or_path: str, scope: Scope, param_name: str) -> Path:
    """Locate a config.

    Args:
        name_or_path: A file, or the name of a packaged config.
        scope: The toolkit.
        param_name: The parameter that names it, for the error message.

    Raises:
        UsageError: There is no such config; lists the most similar packaged ones, unless it can only be a path.
    """
    name = name_or_path.removesuffix(".py")
    if name_or_path.endswith(SUFFIXES) and Path(name_or_path).is_file():
        return Path(name_or_path)
    if name_or_path.endswith(SUFFIXES) and Path(name_or_path).parent != Path():
        raise UsageError(f"{param_name} is {name_or_path!r}, and there is no such file.", "Check the path.")
    known = packaged_configs(scope)
    if name in known:
        return known[name]
    complete = [
        candidate
        for candidate in _closest_names(name, known)
        if _COMPLETE_CONFIG.search(known[candidate].read_text("utf-8"))
    ]
    raise UsageError(
        f"{param_name} is {name_or_path!r}, which is neither a file nor a config that comes with {scope}.",
        f"Near are: {format_list(complete, 6)}. {len(known)} configs come with {scope}; your own is named by its path.",
    )


def read(name_or_path: str, scope: Scope, param_name: str) -> Config:
    """Read a config with all its bases. Raises UsageError if there is none, ModelError if it cannot be read."""
    path = find(name_or_path, scope, param_name)
    with toolkit.default_scope(scope):
        from mmengine.config import Config as Reader

        try:
            config: Config = Reader.fromfile(path, import_custom_modules=True).to_dict()
        except Exception as error:  # a config in Python may raise anything
            raise ModelError(f"The config {path} cannot be read: {type(error).__name__}: {error}.") from error
    if not isinstance(config.get("model"), dict):
        raise ModelError(f"The config {path} describes no model: it has {format_list(config) or 'nothing'}.")
    return config


def base_config_paths(path: Path) -> list[Path]:
    """Return the files that a user's config names as its bases, without those of a toolkit (mmdet::...).

    Empty for a file that is no config.
    """
    if path.suffix not in SUFFIXES:
        return []
    text = path.read_text("utf-8", "replace")
    bases = [
        path.parent / name
        for statement in _BASE_STATEMENT.findall(text)
        for name in _CONFIG_PATH.findall(statement)
        if "::" not in name
    ]
    for dots, module in _RELATIVE_IMPORT.findall(text):
        bases.append(path.parent.joinpath(*[".."] * (len(dots) - 1), *module.split(".")).with_suffix(".py"))
    return bases


def load(folder: Path, name: str = CONFIG_FILENAME) -> Config:
    """Read the config of a trained version, without weights that it was initialized with: the version has its own.

    Raises:
        ModelError: It is missing or damaged, would run code, or names files.
    """
    config = load_literals(folder, name)
    update_dicts(config, drop_pretrained)
    require_known_types(config, str(folder / name), toolkit.registered_names())
    require_contained(config, str(folder / name))
    return config


def load_literals(folder: Path, name: str = CONFIG_FILENAME) -> Config:
    """Read what `save` wrote: of a training on this machine, whose config names the files of its run.

    Raises:
        ModelError: It is missing or damaged, or would run code.
    """
    path = folder / name
    try:
        content = read_small_file(path, MAX_CONFIG_BYTES)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        config = dict(_parse_assignment(line) for line in ast.parse(content.decode("utf-8")).body)
        config["model"]["type"]
    except (KeyError, SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise ModelError(
            f"{path} is not the config of a trained version: {error}.", "Copy the folder again, or train a new version."
        ) from error
    require_registered(config, str(path))
    return config


def save(config: Config, folder: Path, name: str = CONFIG_FILENAME) -> None:
    """Write a config as Python literals: a line `name = {...}` for each part."""
    lines = [f"{key} = {pprint.pformat(value, width=120, sort_dicts=False)}\n" for key, value in config.items()]
    (folder / name).write_text("".join(lines), "utf-8")


def _parse_assignment(line: ast.stmt) -> tuple[str, Any]:
    if not (isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name)):
        raise ValueError(f"line {line.lineno} is more than a name and what it stands for")
    return line.targets[0].id, ast.literal_eval(line.value)


def require_storable(config: Config, description: str) -> None:
    """Raise ModelError if `load` would refuse a config, before a model is trained by it."""
    require_registered(config, description)
    require_contained(without_pretrained(config), description)
    require_known_types(config, description, toolkit.registered_names())


def require_registered(config: Config, description: str) -> None:
    """Raise ModelError if a config names anything but modules that the toolkits have registered."""
    if config.get("custom_imports"):
        raise ModelError(
            f"{description} imports code of its own (custom_imports), which a version cannot hold.",
            "Make that code a package that registers its modules when mmdet or mmocr is imported, and leave it out.",
        )
    for type_path in _iter_types(config):
        if not _REGISTERED_TYPE.fullmatch(type_path):
            raise ModelError(f"{description} would run {type_path}, which is no registered part of a model.")


def require_known_types(config: Config, description: str, registered: Mapping[str, frozenset[str]]) -> None:
    """Raise ModelError if a config names what mmengine would import, or call, although no toolkit has registered it.

    mmengine takes any other name for an attribute of a package, such as mmengine.load, which unpickles a file, or for a
    package to import. mmcv evaluates the type of its nms.

    Args:
        config: The config.
        description: What it is, for the message.
        registered: See `toolkit.registered_names`.
    """
    for type_path in _iter_types(config):
        scope, dot, name = type_path.rpartition(".")
        if dot:
            is_known = name in registered.get(scope, frozenset()) | registered["mmengine"]
        else:
            is_word = name in registered["ops"] | _WORDS and not _is_importable(name)
            is_known = is_word or name in registered[""]
        if not is_known:
            raise ModelError(f"{description} would run {type_path}, which is no registered part of a model.")


def _is_importable(name: str) -> bool:
    """Tell whether a plain name is that of a module; it is located, not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # ValueError: it is loaded already, and from nowhere, such as __main__
        return True


def require_contained(config: Config, description: str) -> None:
    """Raise ModelError if a config names a file, other than weights to be initialized with."""
    for part in iter_dicts(config):
        for key, value in part.items():
            if key in (_DICTIONARY_KEY, "classes", "metainfo"):
                continue
            for text in _own_texts(value):
                if (_FILE_KEY.fullmatch(str(key)) and text) or _is_file(text):
                    raise ModelError(
                        f"{description} names {text[:MAX_SHOWN_TEXT]} ({key}), and a version may not name files.",
                        "Use a config that is complete in itself.",
                    )


def _iter_types(config: Config) -> Iterator[str]:
    """Yield every name in a config that mmengine looks up in a registry, or imports."""
    for part in iter_dicts(config):
        for key in _TYPE_KEYS:
            value = part.get(key)
            if isinstance(value, str) and not (key in ("_scope_", "default_scope") and value in SCOPES):
                yield value


def _own_texts(value: Any) -> Iterator[str]:
    """Yield the texts in a value, without those in its dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _own_texts(item)


def _is_file(text: str) -> bool:
    """Tell whether a text is a URL, or names something that exists; a plain word is a word."""
    if "\0" in text or not set("/\\.") & set(text) or not text.strip("/\\."):
        return False
    return "://" in text or os.path.lexists(text)


def iter_dicts(config: Any) -> Iterator[dict[str, Any]]:
    """Yield every dict in a config, outer ones first."""
    if isinstance(config, dict):
        yield config
        for value in config.values():
            yield from iter_dicts(value)
    elif isinstance(config, list | tuple):
        for item in config:
            yield from iter_dicts(item)


def test_pipeline(config: Config) -> list[dict[str, Any]]:
    """Return the steps that prepare an image for a model, without those for annotations.

    Raises:
        ModelError: The config has none.
    """
    loader = config.get("test_dataloader")
    dataset = loader.get("dataset") if isinstance(loader, dict) else None
    while isinstance(dataset, dict) and not isinstance(dataset.get("pipeline"), list):
        inner = dataset.get("datasets")
        dataset = dataset.get("dataset") or (inner[0] if isinstance(inner, list | tuple) and inner else None)
    steps: list[Any] = dataset["pipeline"] if isinstance(dataset, dict) else [None]
    if not all(isinstance(step, dict) for step in steps):
        raise ModelError("The config has no test_dataloader with a pipeline: nothing says how images are prepared.")
    return [copy.deepcopy(step) for step in steps if type_name(step) not in _ANNOTATION_STEPS]


def is_loading_step(step: Mapping[str, Any]) -> bool:
    """Tell whether a pipeline step loads the image."""
    return type_name(step) in _LOADING_STEPS


def type_name(step: Mapping[str, Any]) -> str:
    """Return the type of a module without its toolkit: "Resize" for "mmdet.Resize"."""
    return str(step.get("type", "")).rpartition(".")[2]


def update_dicts(config: Config, change: Callable[[dict[str, Any]], None]) -> None:
    """Call `change` on every dict in a config, outer ones first; it may alter them in place."""
    for part in list(iter_dicts(config)):
        change(part)


def replace_sync_batch_norm(part: dict[str, Any]) -> None:
    """Replace SyncBN by BN, which is the same where one device trains; for `update_dicts`."""
    if part.get("type") in ("SyncBN", "MMSyncBN"):
        part["type"] = "BN"


def validation_part(loader: Mapping[str, Any], dataset: Config, evaluator: Any) -> Config:
    """Return the part of a training config that measures the model after an epoch.

    Args:
        loader: Batch size and workers of a data loader.
        dataset: The validation dataset, with its pipeline.
        evaluator: The toolkit's metric.
    """
    return {
        "val_cfg": {"type": "ValLoop"},
        "val_dataloader": {
            **loader,
            "drop_last": False,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": dataset,
        },
        "val_evaluator": evaluator,
    }


def without_pretrained(model: Config) -> Config:
    """Return a model's config without weights that building it would download."""
    changed = copy.deepcopy(model)
    update_dicts(changed, drop_pretrained)
    return changed


def drop_pretrained(part: dict[str, Any]) -> None:
    """Remove the weights that a part of a model is initialized with; for `update_dicts`."""
    init = part.get("init_cfg")
    if isinstance(init, list | tuple):
        part["init_cfg"] = [item for item in init if not _is_pretrained(item)]
    elif _is_pretrained(init):
        part["init_cfg"] = None
    if isinstance(part.get("pretrained"), str):
        part["pretrained"] = None


def _is_pretrained(init: Any) -> bool:
    """Tell whether an `init_cfg` names a checkpoint; some models take one without a type."""
    return isinstance(init, dict) and ("checkpoint" in init or type_name(init) in ("Pretrained", "PretrainedInit"))


def pretrained_checkpoints(model: Config) -> list[str]:
    """Return the URLs of the weights that a model's config starts from."""
    urls = [part["init_cfg"].get("checkpoint") for part in iter_dicts(model) if _has_pretrained_init(part)]
    urls += [part.get("pretrained") for part in iter_dicts(model)]
    return [url for url in urls if isinstance(url, str)]


def _has_pretrained_init(part: Mapping[str, Any]) -> bool:
    return isinstance(part.get("init_cfg"), dict) and type_name(part["init_cfg"]) == "Pretrained"


def _closest_names(name: str, known: Mapping[str, Path]) -> Sequence[str]:
    """Sort names by similarity: those that contain `name`, then those that share most words, else by spelling."""
    words = _words(name)
    containing = [other for other in known if _alphanumeric(name) in _alphanumeric(other)]
    sharing = [other for other in known if words & _words(other)]
    by_words = sorted(sharing, key=lambda other: (-len(words & _words(other)), len(other), other))
    return list(dict.fromkeys([*sorted(containing, key=len), *by_words])) or sort_by_similarity(name, known)


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", name.lower())) - {""}


def _alphanumeric(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
