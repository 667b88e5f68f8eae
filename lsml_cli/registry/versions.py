"""Trained versions of a model on disk.

    models/news/
        20261120T213015/         one version, named by the UTC time of its training ("-2" when that is taken)
            model.json           what it is, see `Version`
            weights.safetensors  whatever the family wrote
        current                  the name of the promoted version

A version is written into a hidden folder beside the others and renamed when it is complete (see `drafts`); `current`
is replaced atomically. So a reader sees a whole version, the old one or the new one, and a killed `fit` leaves nothing
that counts. No file holds a path: the folder can be moved. None holds code or says where code is: it names the family,
and `registry` decides whether that name may be loaded.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn

import orjson

from lsml_cli.errors import ModelError, OutputError, UnknownModel, UsageError, format_list, sort_by_similarity

FORMAT = 2  # of model.json; raised when an older lsml could no longer read it
METADATA_FILE = "model.json"
CURRENT_FILE = "current"
DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # there is no room, whoever says so

_VERSION_NAME = re.compile(r"(\d{8}T\d{6})(?:-(\d+))?")
HIDDEN_FOLDER_PREFIX = ".unfinished-"  # how the hidden folders begin
HIDDEN_FILE_PREFIX = f".{CURRENT_FILE}-"  # and the hidden files that become `current`


@dataclass(frozen=True)
class Version:
    """One trained version, as `model.json` describes it.

    folder        where it is
    name          the model's name, "news"; `version` is the version's, "20261120T213015"
    family        name of the model that was trained: the one it is registered by ("text-classifier"), else
                  "file.py:Class" without the file's folder, or "package.module:Class"
    label_config  the labelling XML it was trained for
    state         what `fit` returned; `params` are the parameters it ran with
    counts        how many tasks were trained on, held out, and left out by reason
    metrics       what the hold-out said, by control; empty without one
    data_digest   of the tasks and annotations; `code_digest` of the family's source
    libraries     versions of what the result depends on
    created       when, UTC, ISO 8601
    parent        the version it continues from (`--from`), None for one that started afresh
    refit         whether it was trained again on everything after it was measured: then `metrics` are those of the
                  model before, which did not see the held-out tasks
    gates         what each gate saw: {"name": "kind.accuracy", "at_least": 0.98, "measured": 0.97, "passed": false, …}
    files         {file name: size in bytes} of everything beside model.json
    digests       {file name: digest of its content}, of the same files; empty in format 1
    digest        identity of the model: of weights, state, parameters, family and label config
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
        """Names of the gates that it missed."""
        return [str(gate.get("name")) for gate in self.gates if not gate.get("passed")]

    @property
    def trained_on(self) -> int | None:
        """Number of tasks that the weights come from, None when the version does not say."""
        train, held_out = self.counts.get("train"), self.counts.get("holdout", 0)
        if not isinstance(train, int) or not isinstance(held_out, int):
            return None
        return train + held_out if self.refit else train


@dataclass(frozen=True)
class VersionEntry:
    """One folder below a root: a version, or None and the sentence that says how it is damaged."""

    name: str
    is_promoted: bool
    version: Version | None
    damage: str | None = None


def promote(root: Path, version: str) -> None:
    """Make `version` what the name of the model means from now on. Raises ModelError when it is damaged."""
    aside = root / f"{HIDDEN_FILE_PREFIX}{os.getpid()}-{time.time_ns():x}"
    with _exclusive_lock(root):
        verify(read(_find_version(root, version)))
        try:
            write_synced(aside, f"{version}\n".encode())
            aside.replace(root / CURRENT_FILE)
            fsync_path(root)
        except OSError as error:
            raise_write_error(error, root)
        finally:
            aside.unlink(missing_ok=True)


def prune(root: Path, keep: int) -> list[str]:
    """Remove all but the newest `keep` versions and the promoted one; the names of those removed, oldest first.

    Damaged versions count for nothing: they go when they are older than those that stay.
    """
    import shutil

    removed: list[str] = []
    whole = 0
    with _exclusive_lock(root):
        for each in reversed(scan_versions(root)):
            if whole >= keep and not each.is_promoted:
                # Out of sight at once, then deleted: a version is never there in parts.
                hidden = root / f"{HIDDEN_FOLDER_PREFIX}{os.getpid()}-{time.time_ns():x}"
                try:
                    (root / each.name).rename(hidden)
                except OSError as error:
                    raise OutputError(f"{root / each.name} cannot be removed: {error.strerror}.") from error
                removed.insert(0, each.name)
                shutil.rmtree(hidden, ignore_errors=True)
            whole += each.version is not None
    return removed


def scan_versions(root: Path) -> list[VersionEntry]:
    """What is below `root`, oldest first, damaged versions too."""
    promoted = current_version(root)
    names = [path.name for path in _list_folder(root) if _VERSION_NAME.fullmatch(path.name) and path.is_dir()]
    found = []
    for name in sorted(names, key=_version_sort_key):
        try:
            found.append(VersionEntry(name, name == promoted, read(root / name)))
        except ModelError as error:
            why = error.message.replace(f"{root / name}{os.sep}", "").replace(str(root / name), "it")
            found.append(VersionEntry(name, name == promoted, None, why))
    return found


@contextmanager
def _exclusive_lock(root: Path) -> Iterator[None]:
    """Nobody else promotes or prunes meanwhile: what is promoted cannot be pruned at the same moment."""
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        raise UnknownModel(f"There is no folder {root}.", "Name a folder that `lsml fit` wrote.") from None
    except OSError as error:
        raise UsageError(f"{root} cannot be opened as a folder: {error.strerror}.") from error
    try:
        with suppress(OSError):  # a file system without locks; promoting alone is atomic there as well
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # and with it the lock


def current_version(root: Path) -> str | None:
    """The name of the promoted version, None when there is none. Raises ModelError when that cannot be read."""
    try:
        return (root / CURRENT_FILE).read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(
            f"{root / CURRENT_FILE} cannot be read: {error.strerror}.",
            f"It should be a file with the name of a version; `lsml versions {root} --promote VERSION` writes it.",
        ) from error


def list_versions(root: Path) -> list[str]:
    """The names of the finished versions, oldest first."""
    if not root.is_dir():
        return []
    found = [
        path.name
        for path in _list_folder(root)
        if _VERSION_NAME.fullmatch(path.name) and (path / METADATA_FILE).is_file()
    ]
    return sorted(found, key=_version_sort_key)


def resolve(name: str) -> Path:
    """The folder of the version that "models/news", "models/news@VERSION" or a version's own folder means.

    Raises UnknownModel when there is no such version, ModelError when none is promoted or the folder is closed to us.
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
        before, _, wanted = name.rpartition("@")
        return _find_version(Path(before), wanted)
    except OSError as error:
        raise ModelError(f"{error.filename or name} cannot be read: {error.strerror}.") from error


def is_model_folder(name: str) -> bool:
    """Whether a model is named by a folder: "models/news", "models/news@VERSION". ModelError when it is closed."""
    try:
        return Path(name).is_dir() or Path(name.rpartition("@")[0] or name).is_dir()
    except OSError as error:
        raise ModelError(f"{name} cannot be looked up: {error.strerror}.") from error


def is_version_folder(root: Path) -> bool:
    """Whether a folder is one version of a model, maybe a damaged one, and so no place for versions."""
    return (root / METADATA_FILE).exists() or (
        _VERSION_NAME.fullmatch(root.resolve().name) is not None and (root.resolve().parent / CURRENT_FILE).is_file()
    )


def read(folder: Path) -> Version:
    """The version in a folder. Raises ModelError naming the file that is missing or damaged."""
    path = folder / METADATA_FILE
    try:
        found = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(
            f"{folder} is not a trained model: it has no {METADATA_FILE}.", "Name a folder that `lsml fit` wrote."
        ) from None
    except orjson.JSONDecodeError as error:
        raise ModelError(f"{path} is damaged ({error}).", _RESTORE_HINT) from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    if isinstance(found, dict) and isinstance(found.get("format"), int) and found["format"] > FORMAT:
        raise ModelError(f"{folder} was written by a newer lsml.", "Update lsml, or train a new version with this one.")
    version = _from_json(folder, found)
    for name, size in version.files.items():
        _check_file(folder, name, size)
    return version


def verify(version: Version) -> None:
    """Read the version's files once. Raises ModelError naming one whose content is not what `fit` wrote.

    `read` looks at their sizes alone, which is enough for a list. What was written without digests passes.
    """
    for name, digest in version.digests.items():
        path = version.folder / name
        if name not in version.files:
            raise ModelError(
                f'{version.folder / METADATA_FILE} is damaged (its "digests" name {name!r}).', _RESTORE_HINT
            )
        try:
            found = file_digest(path)
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
        if found != digest:
            raise ModelError(f"{path} is damaged: its content is not what was written.", _RESTORE_HINT)


def file_digest(path: Path) -> str:
    """Digest of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


_RESTORE_HINT = "Copy the version again from where it came from, or train a new one with `lsml fit`."


def _from_json(folder: Path, found: Any) -> Version:
    path = folder / METADATA_FILE
    if not isinstance(found, dict):
        raise ModelError(f"{path} is damaged (no JSON object).", _RESTORE_HINT)
    known = {each.name: str(each.type) for each in fields(Version)}
    values = {"folder": folder} | {key: value for key, value in found.items() if key in known and key != "folder"}
    needed = [each.name for each in fields(Version) if each.default is MISSING and each.default_factory is MISSING]
    if lacking := [f'"{name}"' for name in needed if name not in values]:
        raise ModelError(f"{path} is damaged (it lacks {format_list(lacking)}).", _RESTORE_HINT)
    version = Version(**values | {"family": strip_folder(str(values["family"]))})
    for name, kind in known.items():
        value = getattr(version, name)
        if not _matches_type(value, kind):
            raise ModelError(f'{path} is damaged (its "{name}" is not what it should be).', _RESTORE_HINT)
    return version


def _matches_type(value: Any, type_name: str) -> bool:
    """Whether a value out of JSON is what a field of `Version` of this type holds."""
    if type_name.startswith("Mapping"):
        return isinstance(value, dict)
    if type_name.startswith("Sequence"):
        return isinstance(value, list | tuple) and all(isinstance(each, dict) for each in value)
    fitting = {"str": str, "bool": bool, "str | None": str | None, "Path": Path}[type_name]
    return isinstance(value, fitting)


def strip_folder(family: str) -> str:
    """ "/home/ann/shouting.py:Shouting" -> "shouting.py:Shouting": another machine has other folders."""
    place, colon, name = family.rpartition(":")
    return f"{PureWindowsPath(place).name}:{name}" if colon and place.endswith(".py") else family


def _check_file(folder: Path, name: str, size: int) -> None:
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts or not inside.parts:
        raise ModelError(f'{folder / METADATA_FILE} is damaged (its "files" name {name!r}).', _RESTORE_HINT)
    path = folder / name
    try:
        found = path.stat()
    except FileNotFoundError:
        raise ModelError(f"{path} is missing.", _RESTORE_HINT) from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"{path} is damaged (it is no file).", _RESTORE_HINT)
    if found.st_size != size:
        raise ModelError(f"{path} is damaged (it has {found.st_size:,} bytes instead of {size}).", _RESTORE_HINT)


def _list_folder(root: Path) -> list[Path]:
    try:
        return list(root.iterdir())
    except OSError as error:
        raise ModelError(f"{root} cannot be read: {error.strerror}.") from error


def _find_version(root: Path, version: str) -> Path:
    names = list_versions(root)
    if version not in names:
        there = format_list(sort_by_similarity(version, names)) or "none at all"
        raise UnknownModel(f"{root} has no version {version!r}.", f"It has: {there}.")
    return root / version


def _raise_unpromoted(root: Path, promoted: str | None) -> NoReturn:
    names = list_versions(root)
    if not names:
        raise ModelError(f"{root} holds no trained model.", training_hint(root))
    why = (
        f"{root / CURRENT_FILE} names {promoted!r}, which is not there"
        if promoted is not None
        else f"{root} has no promoted version"
    )
    raise ModelError(f"{why}.", f"Name one of its versions: {root}@{names[-1]}")


def training_hint(root: Path) -> str:
    """What to do about a folder without a version."""
    return f"Train one: lsml fit EXPORT --model text-classifier --label-config config.xml --output {root}"


def raise_write_error(error: OSError, root: Path) -> NoReturn:
    """Raise what a failed attempt to write below `root` means."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        raise UsageError(
            f"{root} is not a folder, so no version can be written there.", "Choose another --output."
        ) from error
    if error.errno in DISK_FULL_ERRNOS:
        raise OutputError(
            f"The version cannot be written to {root}: the disk is full, or a limit is reached ({error.strerror}).",
            "Make room, or choose another --output; nothing was left behind.",
        ) from error
    raise OutputError(f"The version cannot be written to {root}: {error.strerror}.") from error


def _version_sort_key(name: str) -> tuple[str, int]:
    match = _VERSION_NAME.fullmatch(name)
    assert match is not None
    return match[1], int(match[2] or 1)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fsync_path(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
