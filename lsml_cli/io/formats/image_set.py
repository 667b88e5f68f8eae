"""The images of a data set that is written: which value of a task is one, its name, its size, its file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from lsml_cli.errors import UsageError, format_list
from lsml_cli.io.formats.config_binding import Need, make_config
from lsml_cli.io.formats.dataset_writer import Example, Region, WriteOptions
from lsml_cli.io.formats.image_regions import ImageRegion
from lsml_cli.io.formats.output_folder import OutputFolder
from lsml_cli.io.image_paths import is_image
from lsml_cli.runtime import error_reason
from lsml_cli.schema.label_config import LabelConfig, Object
from lsml_cli.schema.tasks import Task

MAX_NAME_BYTES = 180  # of a part of a path; a suffix of lsml's own is added
_HASH_BYTES = 4  # of what tells names apart that would be equal

_ADDRESS = re.compile(r"[a-z][a-z0-9-]+://\S+$|/data/(upload|local-files)/|data:image/", re.IGNORECASE)
# What a name of a file may hold; everything else is percent-encoded, and so is a dot at its beginning.
_UNSAFE = re.compile(r"[^\w .,()+@=~!$&'-]")


class MediaFiles:
    """The files that tasks point to, for a data set that is written.

    Args:
        options: Of the data set.
    """

    def __init__(self, options: WriteOptions) -> None:
        self._options = options
        self._fetched: tuple[str, bytes] | None = None

    def add_file(self, folder: OutputFolder, name: str, value: str, task: Task) -> None:
        """Put the file into the folder, as the options say."""
        if self._options.images == "none" or folder.exists(name):
            return
        if self._options.images == "link" and (path := self._options.media.local_path(value)) is not None:
            folder.link(name, path)
        else:
            folder.write(name, self.fetch(value, task))

    def fetch(self, value: str, task: Task) -> bytes:
        """Return the bytes of the file; the last one is kept."""
        if self._fetched is None or self._fetched[0] != value:
            self._fetched = (value, self._options.media.fetch(value, task.id))
        return self._fetched[1]


class ImageSet(MediaFiles):
    """The images of the tasks.

    Args:
        options: Of the data set.

    Attributes:
        object: The <Image> of the label config; None without a label config.

    Raises:
        UsageError: The label config shows no image, or several.
    """

    def __init__(self, options: WriteOptions) -> None:
        super().__init__(options)
        self.object = None if options.config is None else find_image_object(options.config, options.data_key)

    def value(self, example: Example) -> str:
        """Return what the task's data hold for the image.

        Raises:
            ValueError: There is no such value.
        """
        task = example.task
        value = self.object.read(task.data) if self.object else task.data[guess_key(task, self._options.data_key)]
        if not isinstance(value, str) or not value:
            raise ValueError("the image of the task is no path and no address")
        return value

    def select(self, example: Example) -> list[Region]:
        """Return the regions that are about the image: all of them without a label config."""
        if self.object is None:
            return list(example.regions)
        return [region for region in example.regions if region.get("to_name", self.object.name) == self.object.name]

    def size(self, example: Example, value: str, regions: list[ImageRegion]) -> tuple[int, int]:
        """Return (width, height) of the upright image: as the regions say, else as the file does.

        Raises:
            ValueError: The image cannot be read, or is none.
            TransientError: A server fails for the moment.
        """
        for region in regions:
            if region.image_size is not None:
                return region.image_size
        from lsml_cli.media.images import read_size

        try:
            return read_size(self.fetch(value, example.task))
        except (ValueError, OSError) as error:
            reason = error_reason(error)
            raise ValueError(f"no region says how large the image is, and it cannot be read: {reason}") from None


def find_image_object(config: LabelConfig, data_key: str | None) -> Object:
    """Return the <Image> that a data set is about; raise UsageError if there is none, or several."""
    images = [obj for obj in config.objects.values() if obj.tag.lower() == "image" and "valueList" not in obj.attrs]
    matching = [obj for obj in images if data_key in (None, obj.data_key)]
    if len(matching) == 1:
        return matching[0]
    if not images:
        known = format_list(map(str, config.objects.values())) or "no object at all"
        raise UsageError(f"The label config shows no single image: it has {known}.")
    keys = [obj.data_key for obj in images if obj.data_key]
    if not matching:
        raise UsageError(f'--data-key {data_key}: the label config shows no image from "${data_key}".')
    raise UsageError(
        f"The label config shows several images: {format_list(map(str, images))}.",
        f"Name the one that is meant with --data-key: {' or '.join(keys)}.",
    )


def guess_key(task: Task, data_key: str | None) -> str:
    """Return the key of a task's data that holds its image: the only value that may be one.

    Raises:
        ValueError: There is none, or several.
    """
    if data_key is not None:
        if data_key not in task.data:
            raise ValueError(f'the task has no "{data_key}", which --data-key names')
        return data_key
    texts = {key: value for key, value in task.data.items() if isinstance(value, str)}
    keys = [key for key, value in texts.items() if is_image(value.partition("?")[0]) or is_image(value)]
    keys = keys or [key for key, value in texts.items() if _ADDRESS.match(value)]
    if len(keys) != 1:
        raise ValueError("which value of the task is its image? Name the label config with --label-config")
    return keys[0]


def has_image(task: Task) -> bool:
    """Tell whether `guess_key` finds the image of a task."""
    try:
        guess_key(task, None)
    except ValueError:
        return False
    return True


def make_image_config(task: Task, data_key: str | None) -> LabelConfig:
    """Return a label config that shows the image of a task; raise ValueError if it has none."""
    return _image_config(guess_key(task, data_key))


@lru_cache
def _image_config(key: str) -> LabelConfig:
    return LabelConfig.parse(make_config([Need("RectangleLabels")], key))


def confine_name(value: str) -> str:
    """Return a relative path for the file that a value of a task points to, which leads nowhere else.

    "a/1.jpg" stays "a/1.jpg". A value that is written otherwise gets a few digits that tell it from others: unequal
    values have unequal names. What no name should hold is percent-encoded.
    """
    path = _path_of(value)
    parts = [escape_part(part) for part in path.split("/") if part not in ("", ".", "..")]
    name = "/".join(parts) or "image"
    return name if name == value or _is_unique(value, name) else add_suffix(name, _digest(value))


def flat_name(value: str) -> str:
    """Return the last part of `confine_name`'s path."""
    return PurePosixPath(escape_part(_path_of(value).rstrip("/").rpartition("/")[2]) or "image").name


def distinct_name(name: str, value: str, is_taken: Callable[[str], bool]) -> str:
    """Return a name, with digits of a hash of the value where another image has it already."""
    candidate = name
    attempt = 0
    while is_taken(candidate):
        candidate = add_suffix(name, _digest(value if not attempt else f"{attempt} {value}"))
        attempt += 1
    return candidate


def add_suffix(name: str, suffix: str) -> str:
    """Return "a/1-suffix.jpg" for "a/1.jpg"."""
    path = PurePosixPath(name)
    return str(path.with_name(f"{path.stem}-{suffix}{path.suffix}"))


def _path_of(value: str) -> str:
    """Return the path in a value: that of a file, of a URL, or of a file that Label Studio serves."""
    if value[:5].lower() == "data:":
        return f"image.{value[5:40].partition(';')[0].rpartition('/')[2] or 'png'}"
    parts = urlsplit(value) if "://" in value else urlsplit("")
    path, query = (parts.path, parts.query) if parts.scheme else (value.partition("?")[0], value.partition("?")[2])
    if path.rstrip("/").endswith("/data/local-files"):
        return (parse_qs(query).get("d") or [""])[-1]
    if parts.scheme or query or path.startswith("/data/"):
        path = unquote(path, errors="replace").removeprefix("/data/upload/")
    return f"{parts.netloc}/{path.lstrip('/')}" if parts.netloc else path


def _is_unique(value: str, name: str) -> bool:
    """Return whether a name is spelled as Label Studio serves it, so that no other value of the project has it."""
    return value in (f"/data/local-files/?d={name}", f"/data/upload/{name}")


def escape_part(part: str) -> str:
    """Return a part of a path that is a plain name of a file or a folder, whatever `part` holds."""
    escaped = _UNSAFE.sub(_percent_encode, part)
    if escaped.startswith((".", "-", "~", " ")):
        escaped = _percent_encode_text(escaped[0]) + escaped[1:]
    encoded = os.fsencode(escaped)
    if len(encoded) <= MAX_NAME_BYTES:
        return escaped
    stem, suffix = os.path.splitext(escaped)  # noqa: PTH122
    suffix = suffix if len(suffix) <= 10 else ""
    short = os.fsencode(stem)[: MAX_NAME_BYTES - 20].decode("utf-8", "ignore")
    return f"{short}-{_digest(part)}{suffix}"


def _percent_encode(match: re.Match[str]) -> str:
    return _percent_encode_text(match.group())


def _percent_encode_text(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogateescape"))


def _digest(value: str) -> str:
    return blake2b(value.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).hexdigest()
