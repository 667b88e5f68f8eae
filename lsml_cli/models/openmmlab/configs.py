"""A config by its path, or by the name of a packaged one -> what a model is built of.

A config in Python is code, and whoever names its path lets it run. The one in a version is read as literals alone,
and names nothing but registered parts: of a dotted path mmengine would import, and call, whatever lies there.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import pprint
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lsml_cli.errors import ModelError, UsageError, format_list, sort_by_similarity
from lsml_cli.models.openmmlab import toolkit
from lsml_cli.models.openmmlab.toolkit import Scope

CONFIG_FILENAME = "config.py"  # in a trained version; mmdet and mmocr read it as well
SUFFIXES = (".py", ".json", ".yml", ".yaml")
_REGISTERED_TYPE = re.compile(r"(?:(?:mmengine|mmcv|mmdet|mmocr)\.)?\w+")
_BASE_STATEMENT = re.compile(r"""^[\s{]*["']?_base_["']?\s*[:=]\s*(\[.*?\]|\(.*?\)|[^\n]+)""", re.MULTILINE | re.DOTALL)
_CONFIG_PATH = re.compile(r"""[^\s"',()\[\]]+\.(?:py|json|ya?ml)\b""")
_RELATIVE_IMPORT = re.compile(r"^\s*from\s+(\.+)([\w.]+)\s+import\b", re.MULTILINE)  # below `with read_base():`
_COMPLETE_CONFIG = re.compile(
    r"^(model|_base_)\b|read_base", re.MULTILINE
)  # what is none of these is a part for other configs
_LOADING_STEPS = ("LoadImageFromFile", "LoadImageFromNDArray", "InferencerLoader")
_ANNOTATION_STEPS = ("LoadAnnotations", "LoadPanopticAnnotations", "LoadOCRAnnotations", "FilterAnnotations")

Config = dict[str, Any]  # dicts, lists, tuples, texts, numbers


@cache
def packaged_configs(scope: Scope) -> Mapping[str, Path]:
    """The configs that come with a toolkit, by name. The toolkit is looked for, not imported."""
    found = importlib.util.find_spec(scope)
    if found is None or not found.submodule_search_locations:
        raise ModelError(f"{scope} is not installed here.", toolkit.INSTALL_HINT)
    configs = Path(found.submodule_search_locations[0]) / ".mim" / "configs"
    paths = sorted(path for path in configs.rglob("*.py") if "_base_" not in path.relative_to(configs).as_posix())
    return {path.stem: path for path in paths}


def find(name_or_path: str, scope: Scope, param_name: str) -> Path:
    """Where a config is: a file, or a packaged one by its name.

    param  of the model, for the sentence

    Raises UsageError that lists the packaged names most like it, unless it can only be a path.
    """
    name = name_or_path.removesuffix(".py")
    if name_or_path.endswith(SUFFIXES) and Path(name_or_path).is_file():
        return Path(name_or_path)
    if name_or_path.endswith(SUFFIXES) and Path(name_or_path).parent != Path():
        raise UsageError(f"{param_name} is {name_or_path!r}, and there is no such file.", "Check the path.")
    known = packaged_configs(scope)
    if name in known:
        return known[name]
    near = format_list(
        [each for each in _closest_names(name, known) if _COMPLETE_CONFIG.search(known[each].read_text("utf-8"))], 6
    )
    raise UsageError(
        f"{param_name} is {name_or_path!r}, which is neither a file nor a config that comes with {scope}.",
        f"Near are: {near}. {len(known)} configs come with {scope}; your own is named by its path.",
    )


def read(name_or_path: str, scope: Scope, param_name: str) -> Config:
    """The whole config. Raises UsageError when there is none, ModelError when it cannot be read."""
    path = find(name_or_path, scope, param_name)
    with toolkit.default_scope(scope):
        from mmengine.config import Config as Reader

        try:
            found = Reader.fromfile(path, import_custom_modules=True)
            config: Config = found.to_dict()
        except Exception as error:  # a config in Python may raise anything
            raise ModelError(f"The config {path} cannot be read: {type(error).__name__}: {error}.") from error
    if not isinstance(config.get("model"), dict):
        raise ModelError(f"The config {path} describes no model: it has {format_list(config) or 'nothing'}.")
    return config


def base_config_paths(path: Path) -> list[Path]:
    """The files that a config of one's own builds on, as its text names them; none for what is no config.

    Those that come with a toolkit (mmdet::...) are not among them.
    """
    if path.suffix not in SUFFIXES:
        return []
    text = path.read_text("utf-8", "replace")
    named = [
        path.parent / name
        for given in _BASE_STATEMENT.findall(text)
        for name in _CONFIG_PATH.findall(given)
        if "::" not in name
    ]
    for dots, module in _RELATIVE_IMPORT.findall(text):
        named.append(path.parent.joinpath(*[".."] * (len(dots) - 1), *module.split(".")).with_suffix(".py"))
    return named


def load(folder: Path, name: str = CONFIG_FILENAME) -> Config:
    """The config of a trained version. Raises ModelError when it is missing, damaged, or would run code."""
    path = folder / name
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        config = dict(_parse_assignment(line) for line in ast.parse(text).body)
        config["model"]["type"]
    except (KeyError, SyntaxError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} is not the config of a trained version: {error}.", "Copy the folder again, or train a new version."
        ) from error
    require_registered(config, str(path))
    return config


def save(config: Config, folder: Path, name: str = CONFIG_FILENAME) -> None:
    """As Python without any code: a line `name = {...}` for each part."""
    lines = [f"{key} = {pprint.pformat(value, width=120, sort_dicts=False)}\n" for key, value in config.items()]
    (folder / name).write_text("".join(lines), "utf-8")


def _parse_assignment(line: ast.stmt) -> tuple[str, Any]:
    if not (isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name)):
        raise ValueError(f"line {line.lineno} is more than a name and what it stands for")
    return line.targets[0].id, ast.literal_eval(line.value)


def require_registered(config: Config, description: str) -> None:
    """Raises ModelError when a config names anything but parts that the toolkits have registered."""
    if config.get("custom_imports"):
        raise ModelError(
            f"{description} imports code of its own (custom_imports), which a version cannot hold.",
            "Make that code a package that registers its parts when mmdet or mmocr is imported, and leave it out.",
        )
    for part in iter_dicts(config):
        kind = part.get("type")
        if isinstance(kind, str) and not _REGISTERED_TYPE.fullmatch(kind):
            raise ModelError(f"{description} would run {kind}, which is no registered part of a model.")


def iter_dicts(config: Any) -> Iterator[dict[str, Any]]:
    """Every dict of a config, however deep."""
    if isinstance(config, dict):
        yield config
        for each in config.values():
            yield from iter_dicts(each)
    elif isinstance(config, list | tuple):
        for each in config:
            yield from iter_dicts(each)


def test_pipeline(config: Config) -> list[dict[str, Any]]:
    """What is done to a picture before the model sees it, without loading it and without annotations."""
    dataset = (config.get("test_dataloader") or {}).get("dataset") or {}
    while not isinstance(dataset.get("pipeline"), list):
        inner = dataset.get("dataset") or next(iter(dataset.get("datasets", ())), None)
        if not isinstance(inner, dict):
            raise ModelError(
                "The config has no test_dataloader with a pipeline: nothing says how pictures are prepared."
            )
        dataset = inner
    return [copy.deepcopy(step) for step in dataset["pipeline"] if type_name(step) not in _ANNOTATION_STEPS]


def is_loading_step(step: Mapping[str, Any]) -> bool:
    """Whether a step of a pipeline loads the picture."""
    return type_name(step) in _LOADING_STEPS


def type_name(step: Mapping[str, Any]) -> str:
    """The type of a part without its toolkit: "Resize" for "mmdet.Resize"."""
    return str(step.get("type", "")).rpartition(".")[2]


def update_dicts(config: Config, change: Callable[[dict[str, Any]], None]) -> None:
    """Let `change` see every dict of a config, from the outside to the inside, and alter it in place."""
    for part in list(iter_dicts(config)):
        change(part)


def without_pretrained(model: Config) -> Config:
    """The model's config without weights that building it would fetch."""
    found = copy.deepcopy(model)

    def forget(part: dict[str, Any]) -> None:
        if isinstance(part.get("init_cfg"), dict) and type_name(part["init_cfg"]) == "Pretrained":
            part["init_cfg"] = None
        if isinstance(part.get("pretrained"), str):
            part["pretrained"] = None

    update_dicts(found, forget)
    return found


def pretrained_checkpoints(model: Config) -> list[str]:
    """The weights that a model's config wants to begin with, by address."""
    found = [part["init_cfg"].get("checkpoint") for part in iter_dicts(model) if _has_pretrained_init(part)]
    found += [part.get("pretrained") for part in iter_dicts(model)]
    return [each for each in found if isinstance(each, str)]


def _has_pretrained_init(part: Mapping[str, Any]) -> bool:
    return isinstance(part.get("init_cfg"), dict) and type_name(part["init_cfg"]) == "Pretrained"


def _closest_names(name: str, known: Mapping[str, Path]) -> Sequence[str]:
    """Those that contain it first, then those that have most of its words, then those that are spelled most like it."""
    words = _words(name)
    containing = [each for each in known if _alphanumeric(name) in _alphanumeric(each)]
    sharing = [each for each in known if words & _words(each)]
    by_words = sorted(sharing, key=lambda each: (-len(words & _words(each)), len(each), each))
    return list(dict.fromkeys([*sorted(containing, key=len), *by_words])) or sort_by_similarity(name, known)


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", name.lower())) - {""}


def _alphanumeric(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
