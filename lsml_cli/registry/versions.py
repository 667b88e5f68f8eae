"""Read trained versions of a model.

    models/news/
        20261120T213015/         one version, named by the UTC time of its training ("-2" when that name is taken)
            model.json           its description, see `Version`
            weights.safetensors  whatever the model's `fit` wrote
            trained_tasks.npy    which tasks it was trained on, see `seen_tasks`
            held_out_tasks.npy   which tasks were held out
        current                  the name of the promoted version

`version_writer` writes a version into a hidden folder beside the others and renames it when it is complete;
`promotion` replaces `current` atomically. So a reader sees a whole version, the old one or the new one, and a killed
`fit` leaves nothing that is taken for a version. No file holds a path, so the folder can be moved. None holds code or
says where code is: `model.json` names the model family, and `resolve` decides whether that family may be loaded.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn

import orjson

from lsml_cli.errors import ModelError, UnknownModel, format_list, sort_by_similarity
from lsml_cli.registry.digests import file_digest
from lsml_cli.runtime import read_small_file

FORMAT = 2  # of model.json; raised when an older lsml could no longer read it
METADATA_FILE = "model.json"
CURRENT_FILE = "current"
MAX_LOOKED_AT = 500  # entries of a folder in which models are looked for
TRAINED_TASKS_FILE = "trained_tasks.npy"
HELD_OUT_TASKS_FILE = "held_out_tasks.npy"
MAX_CURRENT_BYTES = 1 << 16  # a name and a line break; more is damage
MAX_METADATA_BYTES = 256 << 20  # of model.json: the state of a script may hold a whole model
MAX_SHOWN_NAME = 200  # characters of a name that is too long for the file system
HIDDEN_FOLDER_PREFIX = ".unfinished-"  # of folders that are being written or removed
HIDDEN_FILE_PREFIX = f".{CURRENT_FILE}-"  # of files that are about to replace `current`

_VERSION_NAME = re.compile(r"(\d{8}T\d{6})(?:-(\d+))?")
RESTORE_HINT = "Copy the version again from where it came from, or train a new one with `lsml fit`."


@dataclass(frozen=True)
class Version:
    """One trained version, as `model.json` describes it.

    Attributes:
        folder: Folder of the version.
        name: The model's name: "news".
        version: The version's own name: "20261120T213015".
        family: The model class that was trained: its registered name ("text-classifier"), else "file.py:Class" without
            the file's folder, or "package.module:Class".
        label_config: The labelling XML that it was trained for.
        state: What `fit` returned.
        params: The parameters that `fit` ran with.
        created: UTC time of the training, ISO 8601.
        files: Size in bytes of each file beside model.json, by name.
        digest: Identity of the model: of its weights, state, parameters, family and label config.
        digests: Digest of each of `files`; empty in format 1.
        counts: How many tasks were trained on, held out, and left out by reason.
        metrics: Metrics on the held-out tasks by control; empty if none were held out.
        data_digest: Digest of the tasks and annotations.
        code_digest: Digest of the source of the model class.
        libraries: Versions of the packages that the result depends on.
        parent: The version whose weights it started from, None if it was trained from scratch.
        refit: It was trained again on everything after the measurement, so `metrics` are those of the model before,
            which had not seen the held-out tasks.
        gates: Results of the gates: {"name": "kind.accuracy", "at_least": 0.98, "measured": 0.97, "passed": false, …}.
    """

    folder: Path
    name: str
    version: str
    family: str
    label_config: str
    state: Mapping[str, Any]
    params: Mapping[str, Any]
    created: str
    files: Mapping[str, int]
    digest: str
    digests: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    data_digest: str = ""
    code_digest: str = ""
    libraries: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None
    refit: bool = False
    gates: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @property
    def failed_gates(self) -> list[str]:
        """Return the names of the gates that it missed."""
        return [str(gate.get("name")) for gate in self.gates if not gate.get("passed")]

    @property
    def trained_on(self) -> int | None:
        """Return the number of tasks that the weights were trained on, None if the version does not record it."""
        train, held_out = self.counts.get("train"), self.counts.get("holdout", 0)
        if not isinstance(train, int) or not isinstance(held_out, int):
            return None
        return train + held_out if self.refit else train


@dataclass(frozen=True)
class VersionEntry:
    """One folder below a root: a version, or None with a sentence that says how it is damaged."""

    name: str
    is_promoted: bool
    version: Version | None
    damage: str | None = None


def is_version_name(model_version: str) -> bool:
    """Tell whether the `model_version` of a prediction names a trained version: "news@20261120T213015"."""
    name, at, version = model_version.rpartition("@")
    return bool(name and at and _VERSION_NAME.fullmatch(version))


def is_model_folder(name: str) -> bool:
    """Tell whether a model is named by a folder: "models/news", "models/news@VERSION".

    Raises:
        ModelError: The folder may not be looked up.
    """
    try:
        return Path(name).is_dir() or Path(name.rpartition("@")[0] or name).is_dir()
    except OSError as error:
        raise ModelError(f"{name[:MAX_SHOWN_NAME]} cannot be looked up: {error.strerror}.") from error


def is_data_folder(folder: Path) -> bool:
    """Tell whether a folder holds trained versions or is one, so that it is data and no code in it is ever run.

    A `model.py` or `model.toml` that somebody has added changes nothing about that.
    """
    marks = (folder / CURRENT_FILE, folder / METADATA_FILE)
    return any(map(os.path.lexists, marks)) or bool(list_versions(folder))


def version_order(name: str) -> tuple[str, int] | None:
    """Return what the versions of a model are sorted by, oldest first; None if this is no name of a version."""
    return _version_sort_key(name) if _VERSION_NAME.fullmatch(name) else None


def is_version_folder(folder: Path) -> bool:
    """Tell whether a folder is one version of a model, damaged or not, so that no versions belong below it."""
    return (folder / METADATA_FILE).exists() or (
        _VERSION_NAME.fullmatch(folder.resolve().name) is not None
        and (folder.resolve().parent / CURRENT_FILE).is_file()
    )


def resolve(name: str) -> Path:
    """Find the folder of the version that "models/news", "models/news@VERSION" or a version's own folder names.

    Raises:
        UnknownModel: There is no such version.
        ModelError: No version is promoted, or the folder cannot be read.
    """
    root = Path(name)
    try:
        if (root / METADATA_FILE).is_file():
            return root
        if root.is_dir():
            version = current_version(root)
            if version is None or not _VERSION_NAME.fullmatch(version) or not (root / version).is_dir():
                _raise_unpromoted(root, version)
            return root / version
        folder, _, version = name.rpartition("@")
        return find_version(Path(folder), version)
    except OSError as error:
        raise ModelError(f"{error.filename or name} cannot be read: {error.strerror}.") from error


def find_version(root: Path, version: str) -> Path:
    """Return the folder of a version by its name.

    Raises:
        UnknownModel: There is no such version; the hint lists the versions, the most similar name first.
    """
    names = list_versions(root)
    if version not in names:
        known = format_list(sort_by_similarity(version, names)) or "none at all"
        raise UnknownModel(f"{root} has no version {version!r}.", f"It has: {known}.")
    return root / version


def current_version(root: Path) -> str | None:
    """Return the name of the promoted version, None if there is none.

    Raises:
        ModelError: The file `current` cannot be read.
    """
    try:
        return read_small_file(root / CURRENT_FILE, MAX_CURRENT_BYTES).decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(
            f"{root / CURRENT_FILE} cannot be read: {error.strerror}.",
            f"It should be a file with the name of a version; `lsml versions {root} --promote VERSION` writes it.",
        ) from error


def list_versions(root: Path) -> list[str]:
    """Return the names of the complete versions, oldest first."""
    if not root.is_dir():
        return []
    names = [
        path.name
        for path in _list_folder(root)
        if _VERSION_NAME.fullmatch(path.name) and (path / METADATA_FILE).is_file()
    ]
    return sorted(names, key=_version_sort_key)


def scan_versions(root: Path) -> list[VersionEntry]:
    """Read every version below `root`, oldest first, damaged ones too."""
    promoted = current_version(root)
    names = [path.name for path in _list_folder(root) if _VERSION_NAME.fullmatch(path.name) and path.is_dir()]
    entries = []
    for name in sorted(names, key=_version_sort_key):
        try:
            entries.append(VersionEntry(name, name == promoted, read(root / name)))
        except ModelError as error:
            damage = error.message.replace(f"{root / name}{os.sep}", "").replace(str(root / name), "it")
            entries.append(VersionEntry(name, name == promoted, None, damage))
    return entries


def read(folder: Path) -> Version:
    """Read the version in a folder, and check that its files are there and have the right sizes.

    Raises:
        ModelError: A file is missing or damaged; the message names it.
    """
    path = folder / METADATA_FILE
    try:
        content = orjson.loads(read_small_file(path, MAX_METADATA_BYTES))
    except FileNotFoundError:
        raise ModelError(
            f"{folder} is not a trained model: it has no {METADATA_FILE}.", "Name a folder that `lsml fit` wrote."
        ) from None
    except orjson.JSONDecodeError as error:
        raise ModelError(f"{path} is damaged ({error}).", RESTORE_HINT) from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    if isinstance(content, dict) and isinstance(content.get("format"), int) and content["format"] > FORMAT:
        raise ModelError(f"{folder} was written by a newer lsml.", "Update lsml, or train a new version with this one.")
    version = _from_json(folder, content)
    for name, size in version.files.items():
        _check_file(folder, name, size)
    return version


def verify(version: Version) -> None:
    """Read all files of a version and compare their contents with what `fit` wrote.

    A pipe or a device among them is refused, because reading it might not end.
    `read` compares sizes only, which is enough for a list. A version of format 1 has no digests, and passes.

    Raises:
        ModelError: The content of a file differs, or it cannot be read; the message names the file.
    """
    for path in _list_folder(version.folder):  # also those that model.json does not name, which a model may open
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ModelError(f"{path} is a pipe or a device, which no version has.", RESTORE_HINT)
    for name, expected in version.digests.items():
        path = version.folder / name
        if name not in version.files:
            raise ModelError(
                f'{version.folder / METADATA_FILE} is damaged (its "digests" name {name!r}).', RESTORE_HINT
            )
        try:
            digest = file_digest(path)
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
        if digest != expected:
            raise ModelError(f"{path} is damaged: its content is not what was written.", RESTORE_HINT)


def strip_folder(family: str) -> str:
    """Remove what only this machine knows: "/home/ann/shouting.py:Shouting" -> "shouting.py:Shouting"."""
    path, colon, name = family.rpartition(":")
    return f"{PureWindowsPath(path).name}:{name}" if colon and path.endswith(".py") else family


def training_hint(root: Path) -> str:
    """Return the command that trains a version in a folder without one."""
    return f"Train one: lsml fit EXPORT --model text-classifier --label-config config.xml --output {root}"


def _from_json(folder: Path, content: Any) -> Version:
    path = folder / METADATA_FILE
    if not isinstance(content, dict):
        raise ModelError(f"{path} is damaged (no JSON object).", RESTORE_HINT)
    types = {attribute.name: str(attribute.type) for attribute in fields(Version)}
    values = {"folder": folder} | {key: value for key, value in content.items() if key in types and key != "folder"}
    required = [
        attribute.name
        for attribute in fields(Version)
        if attribute.default is MISSING and attribute.default_factory is MISSING
    ]
    if missing := [f'"{name}"' for name in required if name not in values]:
        raise ModelError(f"{path} is damaged (it lacks {format_list(missing)}).", RESTORE_HINT)
    version = Version(**values | {"family": strip_folder(str(values["family"]))})
    for name, type_name in types.items():
        if not _matches_type(getattr(version, name), type_name):
            raise ModelError(f'{path} is damaged (its "{name}" is not what it should be).', RESTORE_HINT)
    return version


def _matches_type(value: Any, type_name: str) -> bool:
    """Tell whether a value read from JSON can be in a field of `Version` of this type."""
    if type_name.startswith("Mapping"):
        return isinstance(value, dict)
    if type_name.startswith("Sequence"):
        return isinstance(value, list | tuple) and all(isinstance(item, dict) for item in value)
    expected = {"str": str, "bool": bool, "str | None": str | None, "Path": Path}[type_name]
    return isinstance(value, expected)


def _check_file(folder: Path, name: str, size: int) -> None:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or not relative.parts:
        raise ModelError(f'{folder / METADATA_FILE} is damaged (its "files" name {name!r}).', RESTORE_HINT)
    path = folder / name
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ModelError(f"{path} is missing.", RESTORE_HINT) from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path} is damaged (it is no file).", RESTORE_HINT)
    if status.st_size != size:
        raise ModelError(f"{path} is damaged (it has {status.st_size:,} bytes instead of {size}).", RESTORE_HINT)


def _list_folder(root: Path) -> list[Path]:
    try:
        return list(root.iterdir())
    except OSError as error:
        raise ModelError(f"{root} cannot be read: {error.strerror}.") from error


def _raise_unpromoted(root: Path, promoted: str | None) -> NoReturn:
    names = list_versions(root)
    if not names:
        hint = _models_below_hint(root) or training_hint(root)
        raise ModelError(f"{root} holds no trained model.", hint)
    problem = (
        f"{root / CURRENT_FILE} names {promoted!r}, which is not there"
        if promoted is not None
        else f"{root} has no promoted version"
    )
    raise ModelError(f"{problem}.", f"Name one of its versions: {root}@{names[-1]}")


def _models_below_hint(root: Path) -> str | None:
    """Return a sentence that names the models in folders of `root`; None if there are none."""
    entries = sorted(islice(root.iterdir(), MAX_LOOKED_AT))
    folders = [entry for entry in entries if (entry / CURRENT_FILE).is_file()]
    if not folders:
        return None
    if len(folders) == 1:
        return f"{folders[0]} is a model there: --model {folders[0]}"
    return f"Models there: {format_list(map(str, folders))}. Name one of them: --model {folders[0]}"


def _version_sort_key(name: str) -> tuple[str, int]:
    match = _VERSION_NAME.fullmatch(name)
    assert match is not None
    return match[1], int(match[2] or 1)
