"""What readers of images share: files below a folder, sizes of images, and regions of a labelled shape."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lsml_cli.io.formats.config_binding import Need, Target, has_control
from lsml_cli.io.formats.dataset_source import RegionFactory
from lsml_cli.media import files
from lsml_cli.media.fetcher import MAX_FILE_BYTES
from lsml_cli.runtime import error_reason
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Region


def iter_files(folder: Path, is_wanted: Callable[[str], bool]) -> Iterator[str]:
    """Yield the files below a folder, relative to it, in the order of their paths, whatever their suffixes are.

    Links to folders are not followed.

    Args:
        folder: The folder; nothing comes from one that does not exist.
        is_wanted: Tells by the name of a file.
    """
    # No recursion: folders may be nested deeper than Python calls.
    pending = [""]
    while pending:
        path = pending.pop()
        if path and not path.endswith("/"):
            yield path
            continue
        try:
            with os.scandir(folder / path) as entries:
                names = [
                    f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
                    for entry in entries
                    if not entry.name.startswith(".")
                ]
        except OSError:
            continue
        names = sorted((name for name in names if name.endswith("/") or is_wanted(name)), key=_sort_key, reverse=True)
        pending += [path + name for name in names]


def _sort_key(name: str) -> tuple[str, str]:
    """Return what names of one folder are sorted by: folders end in a slash, files count up to the last dot."""
    return (name, "") if name.endswith("/") else (f"{PurePosixPath(name).with_suffix('')}.", name)


def read_file(root: Path, path: str) -> bytes:
    """Return the bytes of a file of a data set.

    Raises:
        ValueError: It cannot be read, or a link leads out of the data set.
    """
    try:
        return files.read(files.ConfinedPath(root, path).resolve(), MAX_FILE_BYTES)
    except OSError as error:
        raise ValueError(error_reason(error)) from None


def read_image_size(root: Path, path: str) -> tuple[int, int]:
    """Return (width, height) in pixels of an upright image of a data set; raise ValueError if it cannot be read."""
    from lsml_cli.media.images import read_size

    content = read_file(root, path)
    try:
        return read_size(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def fit_needs(config: LabelConfig | None, needs: Sequence[Need], labels: tuple[str, ...]) -> list[Need]:
    """Return those needs that a given label config can fill; boxes stand for every shape that has no control."""
    if config is None:
        return list(needs)
    fitting = [need for need in needs if has_control(config, need)]
    boxes = Need("RectangleLabels", labels)
    if len(fitting) < len(needs) and boxes not in fitting and has_control(config, boxes):
        fitting.append(boxes)
    return fitting or list(needs)


def make_region(
    factory: RegionFactory,
    target: Target,
    value: Mapping[str, Any],
    label: str,
    size: tuple[int, int],
    score: float | None = None,
    **fields: Any,
) -> Iterator[Region]:
    """Yield the regions of one labelled shape on an image: one, or two of one id for a tool with separate labels.

    Args:
        factory: Makes the regions of the task.
        target: Where label and shape go.
        value: The shape.
        label: Its class in the data set.
        size: (width, height) of the image in pixels.
        score: Probability in 0..1.
        fields: Further fields of the region.
    """
    name = target.label_names[label]
    fields = {"score": score, "image_size": size, "to_name": target.object.name, **fields}
    if target.shape_control is None:
        yield factory.make(target.control, {**value, target.control.type: [name]}, **fields)
        return
    shape = factory.make(target.shape_control, value, **fields)
    yield shape
    yield factory.make(target.control, {**value, "labels": [name]}, **fields | {"id": shape.id})
