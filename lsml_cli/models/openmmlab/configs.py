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

from lsml_cli.errors import ModelError, UsageError, closest_first, listed
from lsml_cli.models.openmmlab import toolkit
from lsml_cli.models.openmmlab.toolkit import Scope

CONFIG = "config.py"  # in a trained version; mmdet and mmocr read it as well
SUFFIXES = (".py", ".json", ".yml", ".yaml")
_REGISTERED = re.compile(r"(?:(?:mmengine|mmcv|mmdet|mmocr)\.)?\w+")
_BASES = re.compile(r"""^[\s{]*["']?_base_["']?\s*[:=]\s*(\[.*?\]|\(.*?\)|[^\n]+)""", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"""[^\s"',()\[\]]+\.(?:py|json|ya?ml)\b""")
_RELATIVE = re.compile(r"^\s*from\s+(\.+)([\w.]+)\s+import\b", re.MULTILINE)  # below `with read_base():`
_MODEL = re.compile(r"^(model|_base_)\b|read_base", re.MULTILINE)  # what is none of these is a part for other configs
_LOADERS = ("LoadImageFromFile", "LoadImageFromNDArray", "InferencerLoader")
_ANNOTATIONS = ("LoadAnnotations", "LoadPanopticAnnotations", "LoadOCRAnnotations", "FilterAnnotations")

Config = dict[str, Any]  # dicts, lists, tuples, texts, numbers


@cache
def packaged(scope: Scope) -> Mapping[str, Path]:
    """The configs that come with a toolkit, by name. The toolkit is looked for, not imported."""
    found = importlib.util.find_spec(scope)
    if found is None or not found.submodule_search_locations:
        raise ModelError(f"{scope} is not installed here.", toolkit.INSTALL)
    configs = Path(found.submodule_search_locations[0]) / ".mim" / "configs"
    paths = sorted(path for path in configs.rglob("*.py") if "_base_" not in path.relative_to(configs).as_posix())
    return {path.stem: path for path in paths}


def find(given: str, scope: Scope, param: str) -> Path:
    """Where a config is: a file, or a packaged one by its name.

    param  of the model, for the sentence

    Raises UsageError that lists the packaged names most like it, unless it can only be a path.
    """
    name = given.removesuffix(".py")
    if given.endswith(SUFFIXES) and Path(given).is_file():
        return Path(given)
    if given.endswith(SUFFIXES) and Path(given).parent != Path():
        raise UsageError(f"{param} is {given!r}, and there is no such file.", "Check the path.")
    known = packaged(scope)
    if name in known:
        return known[name]
    near = listed([each for each in _near(name, known) if _MODEL.search(known[each].read_text("utf-8"))], 6)
    raise UsageError(
        f"{param} is {given!r}, which is neither a file nor a config that comes with {scope}.",
        f"Near are: {near}. {len(known)} configs come with {scope}; your own is named by its path.",
    )


def read(given: str, scope: Scope, param: str) -> Config:
    """The whole config. Raises UsageError when there is none, ModelError when it cannot be read."""
    path = find(given, scope, param)
    with toolkit.scope_of(scope):
        from mmengine.config import Config as Reader

        try:
            found = Reader.fromfile(path, import_custom_modules=True)
            config: Config = found.to_dict()
        except Exception as error:  # a config in Python may raise anything
            raise ModelError(f"The config {path} cannot be read: {type(error).__name__}: {error}.") from error
    if not isinstance(config.get("model"), dict):
        raise ModelError(f"The config {path} describes no model: it has {listed(config) or 'nothing'}.")
    return config


def bases(path: Path) -> list[Path]:
    """The files that a config of one's own builds on, as its text names them; none for what is no config.

    Those that come with a toolkit (mmdet::...) are not among them.
    """
    if path.suffix not in SUFFIXES:
        return []
    text = path.read_text("utf-8", "replace")
    named = [path.parent / name for given in _BASES.findall(text) for name in _NAMED.findall(given) if "::" not in name]
    for dots, module in _RELATIVE.findall(text):
        named.append(path.parent.joinpath(*[".."] * (len(dots) - 1), *module.split(".")).with_suffix(".py"))
    return named


def stored(folder: Path, name: str = CONFIG) -> Config:
    """The config of a trained version. Raises ModelError when it is missing, damaged, or would run code."""
    path = folder / name
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        config = dict(_assigned(line) for line in ast.parse(text).body)
        config["model"]["type"]
    except (KeyError, SyntaxError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} is not the config of a trained version: {error}.", "Copy the folder again, or train a new version."
        ) from error
    require_registered(config, str(path))
    return config


def store(config: Config, folder: Path, name: str = CONFIG) -> None:
    """As Python without any code: a line `name = {...}` for each part."""
    lines = [f"{key} = {pprint.pformat(value, width=120, sort_dicts=False)}\n" for key, value in config.items()]
    (folder / name).write_text("".join(lines), "utf-8")


def _assigned(line: ast.stmt) -> tuple[str, Any]:
    if not (isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name)):
        raise ValueError(f"line {line.lineno} is more than a name and what it stands for")
    return line.targets[0].id, ast.literal_eval(line.value)


def require_registered(config: Config, where: str) -> None:
    """Raises ModelError when a config names anything but parts that the toolkits have registered."""
    if config.get("custom_imports"):
        raise ModelError(
            f"{where} imports code of its own (custom_imports), which a version cannot hold.",
            "Make that code a package that registers its parts when mmdet or mmocr is imported, and leave it out.",
        )
    for part in parts(config):
        kind = part.get("type")
        if isinstance(kind, str) and not _REGISTERED.fullmatch(kind):
            raise ModelError(f"{where} would run {kind}, which is no registered part of a model.")


def parts(config: Any) -> Iterator[dict[str, Any]]:
    """Every dict of a config, however deep."""
    if isinstance(config, dict):
        yield config
        for each in config.values():
            yield from parts(each)
    elif isinstance(config, list | tuple):
        for each in config:
            yield from parts(each)


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
    return [copy.deepcopy(step) for step in dataset["pipeline"] if name_of(step) not in _ANNOTATIONS]


def loads(step: Mapping[str, Any]) -> bool:
    """Whether a step of a pipeline loads the picture."""
    return name_of(step) in _LOADERS


def name_of(step: Mapping[str, Any]) -> str:
    """The type of a part without its toolkit: "Resize" for "mmdet.Resize"."""
    return str(step.get("type", "")).rpartition(".")[2]


def adapt(config: Config, change: Callable[[dict[str, Any]], None]) -> None:
    """Let `change` see every dict of a config, from the outside to the inside, and alter it in place."""
    for part in list(parts(config)):
        change(part)


def without_pretrained(model: Config) -> Config:
    """The model's config without weights that building it would fetch."""
    found = copy.deepcopy(model)

    def forget(part: dict[str, Any]) -> None:
        if isinstance(part.get("init_cfg"), dict) and name_of(part["init_cfg"]) == "Pretrained":
            part["init_cfg"] = None
        if isinstance(part.get("pretrained"), str):
            part["pretrained"] = None

    adapt(found, forget)
    return found


def pretrained(model: Config) -> list[str]:
    """The weights that a model's config wants to begin with, by address."""
    found = [part["init_cfg"].get("checkpoint") for part in parts(model) if _wants_weights(part)]
    found += [part.get("pretrained") for part in parts(model)]
    return [each for each in found if isinstance(each, str)]


def _wants_weights(part: Mapping[str, Any]) -> bool:
    return isinstance(part.get("init_cfg"), dict) and name_of(part["init_cfg"]) == "Pretrained"


def _near(name: str, known: Mapping[str, Path]) -> Sequence[str]:
    """Those that contain it first, then those that have most of its words, then those that are spelled most like it."""
    words = _words(name)
    containing = [each for each in known if _squeezed(name) in _squeezed(each)]
    sharing = [each for each in known if words & _words(each)]
    by_words = sorted(sharing, key=lambda each: (-len(words & _words(each)), len(each), each))
    return list(dict.fromkeys([*sorted(containing, key=len), *by_words])) or closest_first(name, known)


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", name.lower())) - {""}


def _squeezed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
