"""Trained versions of a model on disk.

    models/news/
        20261120T213015/         one version, named by the UTC time of its training ("-2" when that is taken)
            model.json           what it is, see `Version`
            weights.safetensors  whatever the family wrote
        current                  the name of the promoted version

A version is written into a hidden folder beside the others and renamed when it is complete; `current` is replaced
atomically. So a reader sees a whole version, the old one or the new one, and a killed `fit` leaves nothing that
counts. No file holds a path: the folder can be moved.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, NoReturn

import orjson

from lsml_cli.errors import ModelError, OutputError, UnknownModel, UsageError, closest_first

FORMAT = 1  # of model.json; raised when an older lsml could no longer read it
DESCRIPTION = "model.json"
CURRENT = "current"

_NAME = re.compile(r"(\d{8}T\d{6})(?:-(\d+))?")
_UNFINISHED = ".unfinished-"  # how the hidden folders begin
_STALE = 24 * 3600  # seconds after which an unfinished folder is taken for what a killed run left


@dataclass(frozen=True)
class Version:
    """One trained version, as `model.json` describes it.

    folder        where it is
    name          the model's name, "news"; `version` is the version's, "20261120T213015"
    family        "package.module:Class" of the model that was trained
    label_config  the labelling XML it was trained for
    state         what `fit` returned; `params` are the parameters it ran with
    counts        how many tasks were trained on, held out, and left out by reason
    metrics       what the hold-out said, by control; empty without one
    data_digest   of the tasks and annotations; `code_digest` of the family's source
    libraries     versions of what the result depends on
    created       when, UTC, ISO 8601; `parent` is the version it continues from
    files         {file name: size in bytes} of everything beside model.json
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
    counts: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    data_digest: str = ""
    code_digest: str = ""
    libraries: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None


class Draft:
    """A version in the making. Write weights into `folder`, then `keep` it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.started = time.time()
        self.folder = root / f"{_UNFINISHED}{os.getpid()}-{time.time_ns():x}"
        self.folder.mkdir()

    def keep(
        self, *, family: str, label_config: str, state: Mapping[str, Any], params: Mapping[str, Any], **facts: Any
    ) -> Version:
        """Describe the version and give it its name; from here on it is there. `facts`: see `Version`."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file() and path.name != DESCRIPTION)
        digest = blake2b(digest_size=16)
        for path in files:
            digest.update(f"{path.relative_to(self.folder)}\0{_digest_of(path)}\0".encode())
        digest.update(orjson.dumps([family, label_config, state, params], option=orjson.OPT_SORT_KEYS))
        when = time.gmtime(self.started)
        version = Version(
            folder=self.folder,
            name=self.root.resolve().name,
            version="",
            family=family,
            label_config=label_config,
            state=state,
            params=params,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", when),
            files={path.relative_to(self.folder).as_posix(): path.stat().st_size for path in files},
            digest=digest.hexdigest(),
            **facts,
        )
        try:
            for path in files:
                _sync(path)
            return self._named(version, time.strftime("%Y%m%dT%H%M%S", when))
        except OSError as error:
            _refuse(error, self.root)

    def _named(self, version: Version, moment: str) -> Version:
        """Rename the folder to the first name that is free, however many do the same at this moment."""
        taken = 1
        while True:
            name = moment if taken == 1 else f"{moment}-{taken}"
            done = Version(**(_shallow(version) | {"folder": self.root / name, "version": name}))
            _write_synced(self.folder / DESCRIPTION, _to_json(done))
            _sync(self.folder)
            try:
                if not done.folder.exists():  # renaming onto an empty folder would succeed
                    self.folder.rename(done.folder)
                    _sync(self.root)
                    return done
            except OSError:
                if not done.folder.exists():
                    raise
            taken += 1


@contextmanager
def begin(root: Path) -> Iterator[Draft]:
    """A new version below `root`, which is made when it is not there. Gone again unless it is kept.

    Raises OutputError when nothing can be written there.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        draft = Draft(root)
    except OSError as error:
        _refuse(error, root)
    try:
        yield draft
    finally:
        import shutil  # 10 ms that reading a version need not pay

        shutil.rmtree(draft.folder, ignore_errors=True)


def promote(root: Path, version: str) -> None:
    """Make `version` what the name of the model means from now on. Raises ModelError when it is damaged."""
    read(_find(root, version))
    aside = root / f".{CURRENT}-{os.getpid()}"
    try:
        _write_synced(aside, f"{version}\n".encode())
        aside.replace(root / CURRENT)
        _sync(root)
    except OSError as error:
        aside.unlink(missing_ok=True)
        _refuse(error, root)


def current(root: Path) -> str | None:
    """The name of the promoted version, None when there is none."""
    try:
        return (root / CURRENT).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def list_versions(root: Path) -> list[str]:
    """The names of the finished versions, oldest first."""
    if not root.is_dir():
        return []
    found = [path.name for path in root.iterdir() if _NAME.fullmatch(path.name) and (path / DESCRIPTION).is_file()]
    return sorted(found, key=_age)


def resolve(name: str) -> Path:
    """The folder of the version that "models/news", "models/news@VERSION" or a version's own folder means.

    Raises UnknownModel when there is no such version, ModelError when none is promoted.
    """
    root = Path(name)
    if (root / DESCRIPTION).is_file():
        return root
    if root.is_dir():
        version = current(root)
        if version is None or not _NAME.fullmatch(version) or not (root / version).is_dir():
            _refuse_unpromoted(root, version)
        return root / version
    before, _, wanted = name.rpartition("@")
    return _find(Path(before), wanted)


def read(folder: Path) -> Version:
    """The version in a folder. Raises ModelError naming the file that is missing or damaged."""
    path = folder / DESCRIPTION
    try:
        found = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(
            f"{folder} is not a trained model: it has no {DESCRIPTION}.", "Name a folder that `lsml fit` wrote."
        ) from None
    except orjson.JSONDecodeError as error:
        raise ModelError(f"{path} is damaged ({error}).", _AGAIN) from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    if isinstance(found, dict) and isinstance(found.get("format"), int) and found["format"] > FORMAT:
        raise ModelError(f"{folder} was written by a newer lsml.", "Update lsml, or train a new version with this one.")
    version = _from_json(folder, found)
    for name, size in version.files.items():
        _check_file(folder / name, size)
    return version


_AGAIN = "Copy the version again from where it came from, or train a new one with `lsml fit`."


def _from_json(folder: Path, found: Any) -> Version:
    path = folder / DESCRIPTION
    if not isinstance(found, dict):
        raise ModelError(f"{path} is damaged (no JSON object).", _AGAIN)
    known = {each.name: str(each.type) for each in fields(Version)}
    values = {"folder": folder} | {key: value for key, value in found.items() if key in known and key != "folder"}
    try:
        version = Version(**values)
    except TypeError as error:
        raise ModelError(f"{path} is damaged ({str(error).partition('() ')[2]}).", _AGAIN) from error
    for name, kind in known.items():
        value = getattr(version, name)
        if isinstance(value, dict) != kind.startswith("Mapping") or (kind == "str" and not isinstance(value, str)):
            raise ModelError(f'{path} is damaged (its "{name}" is not what it should be).', _AGAIN)
    return version


def _check_file(path: Path, size: int) -> None:
    try:
        there = path.stat().st_size
    except OSError:
        raise ModelError(f"{path} is missing.", _AGAIN) from None
    if there != size:
        raise ModelError(f"{path} is damaged (it has {there:,} bytes instead of {size:,}).", _AGAIN)


def _find(root: Path, version: str) -> Path:
    names = list_versions(root)
    if version not in names:
        there = ", ".join(closest_first(version, names)[:10]) if names else "none at all"
        raise UnknownModel(f"{root} has no version {version!r}.", f"It has: {there}.")
    return root / version


def _refuse_unpromoted(root: Path, wanted: str | None) -> NoReturn:
    names = list_versions(root)
    if not names:
        raise ModelError(f"{root} holds no trained model.", f"Train one: lsml fit EXPORT --output {root}")
    why = (
        f"{root / CURRENT} names {wanted!r}, which is not there"
        if wanted is not None
        else f"{root} has no promoted version"
    )
    raise ModelError(f"{why}.", f"Name one of its versions: {root}@{names[-1]}")


def _refuse(error: OSError, root: Path) -> NoReturn:
    if isinstance(error, FileExistsError | NotADirectoryError):
        raise UsageError(
            f"{root} is not a folder, so no version can be written there.", "Choose another --output."
        ) from error
    raise OutputError(f"The version cannot be written to {root}: {error.strerror}.") from error


def _sweep(root: Path) -> None:
    """Remove what killed runs left behind."""
    import shutil

    for path in root.glob(_UNFINISHED + "*"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - _STALE:
                shutil.rmtree(path, ignore_errors=True)


def _age(name: str) -> tuple[str, int]:
    match = _NAME.fullmatch(name)
    assert match is not None
    return match[1], int(match[2] or 1)


def _shallow(version: Version) -> dict[str, Any]:
    return {each.name: getattr(version, each.name) for each in fields(version)}


def _to_json(version: Version) -> bytes:
    content = {"format": FORMAT} | asdict(version)
    del content["folder"]
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        digest = blake2b(digest_size=16)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
