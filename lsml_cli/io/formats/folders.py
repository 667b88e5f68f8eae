"""Class-named folders of images, `cat/1.jpg`, also below `train` and `val`, as torchvision and Keras read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from urllib.parse import unquote

from lsml_cli.errors import InputError, UsageError, format_list
from lsml_cli.io.formats.config_binding import Need, bind_config
from lsml_cli.io.formats.dataset_source import DatasetSource, Item, ReadOptions, RegionFactory
from lsml_cli.io.formats.dataset_writer import DatasetWriter, Example, LeftOut, Region, WriteOptions
from lsml_cli.io.formats.image_set import ImageSet, add_suffix, confine_name, escape_part
from lsml_cli.io.image_folder import ImageWalk
from lsml_cli.io.image_paths import IMAGE_SUFFIXES, escape_path
from lsml_cli.schema.label_config import Control

NO_LABEL = "no label"
NOT_A_CHOICE = "not a choice for an image"
OTHER_CONTROL = "a choice of another control"

# Folders that hold parts of a data set, not classes, where every folder has such a name and folders in it.
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})

_FOLDER_MARK = "__"  # stands for a slash in the name of an image
_MAX_NAME_BYTES = 200


class FoldersWriter(DatasetWriter):
    """Writes a folder for each class, with links to its images, or copies of them.

    An image with several labels is in the folder of each. The names of images are flat, since some readers take the
    folder next to an image for its class.
    """

    def __init__(self, folder: Path, options: WriteOptions) -> None:
        if options.images == "none":
            options = replace(options, images="link")
        self._images = ImageSet(options)
        self._control = _find_control(options, self._images)
        super().__init__(folder, options)

    def write(self, example: Example) -> None:
        value = self._images.value(example)
        labels = self._labels(example)
        if not labels:
            raise LeftOut(NO_LABEL)
        side = f"{example.side}/" if self.options.has_validation else ""
        name = flatten_name(value)
        for label in labels:
            path = f"{side}{escape_part(label)}/{name}"
            self._images.add_file(self.folder, path, value, example.task)
        self.written += len(labels)

    def _labels(self, example: Example) -> list[str]:
        """Return the labels of an image; without a label config, those of the first control that has some."""
        labels: dict[str, None] = {}
        names = self.options.config.controls if self.options.config else {}
        for region in example.regions:
            chosen = _choices(region)
            control = str(region.get("from_name"))
            if not chosen:
                self.left_out[NOT_A_CHOICE] += 1
                continue
            self._control = self._control or control
            if control != self._control:
                self.left_out[OTHER_CONTROL] += 1
                continue
            label_names = names[control].label_names if control in names else {}
            labels.update(dict.fromkeys(label_names.get(label, label) for label in chosen))
        return list(labels)


def _choices(region: Region) -> list[str]:
    value = region.get("value")
    choices = value.get("choices") if region.get("type") == "choices" and isinstance(value, dict) else None
    choices = [choices] if isinstance(choices, str) else choices
    return [label for label in choices or () if isinstance(label, str) and label]


def _find_control(options: WriteOptions, images: ImageSet) -> str | None:
    """Return the name of the <Choices> of the label config; raise UsageError if there is none, or several."""
    if options.config is None:
        return None
    pairs: list[Control] = [
        control for control, obj in options.config.find_pairs("Choices", ["Image"]) if obj == images.object
    ]
    if len(pairs) == 1:
        return pairs[0].name
    if not pairs:
        known = format_list(map(str, options.config.controls.values())) or "no control at all"
        raise UsageError(f"Folders are named by <Choices> about an <Image>, and the label config has {known}.")
    raise UsageError(
        f"The label config has several <Choices>: {format_list(map(str, pairs))}.",
        "Give a label config with the one that names the folders.",
    )


def flatten_name(value: str) -> str:
    """Return the name of the file that a value of a task points to: "a__1.jpg" for "a/1.jpg".

    Unequal values have unequal names, and none leads out of its folder.
    """
    name = confine_name(value)
    flat = name.replace("/", _FOLDER_MARK)
    is_long = len(flat.encode()) > _MAX_NAME_BYTES
    if _FOLDER_MARK not in name and not is_long:
        return flat
    if is_long:
        flat = name.rpartition("/")[2]
    return add_suffix(flat, blake2b(name.encode(), digest_size=4).hexdigest())


class FoldersSource(DatasetSource):
    """Reads the images of class-named folders, each with the name of its folder as its label.

    The class is the folder right below the data set, or below `train`, `val`, `test` where there is nothing else.
    Images beside the class folders have no label.
    """

    def __init__(self, path: str, options: ReadOptions) -> None:
        super().__init__(path, options)
        if not self.path.is_dir():
            raise UsageError(f"{path} is no folder.", "Name the folder that the class-named folders are in.")
        walk = ImageWalk(str(self.path))
        top: set[str] = set()
        below: set[str] = set()
        self._count = 0
        is_flat = False  # whether some image lies right in one of the top folders
        for name, problem in walk:
            self._count += 1
            parts = name.split("/")
            if problem or len(parts) == 1:
                continue
            top.add(parts[0])
            is_flat |= len(parts) == 2
            below.update(parts[1:2] if len(parts) > 2 else ())
        if not self._count:
            raise InputError(
                f"There is no image below {path}.",
                f"Images are known by their suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}.",
            )
        has_split = bool(below) and not is_flat and all(name.casefold() in SPLIT_NAMES for name in top)
        self._depth = 1 if has_split else 0
        classes = sorted({class_name(name) for name in (below if has_split else top) if _is_text(name)})
        if not classes:
            raise InputError(
                f"{path} has no class-named folders: its images lie side by side.",
                "lsml predict reads such a folder as it is.",
            )
        self._binding = bind_config([Need("Choices", tuple(classes))], options.config, options.data_key, title=path)
        self.label_config = self._binding.config
        self._target = self._binding.targets["Choices"]
        notes = []
        if has_split:
            notes.append(f"{path} is read as a whole: {', '.join(sorted(top))}. Name one of its folders to read that.")
        if walk.non_image_count:
            files = (
                "1 file is no image" if walk.non_image_count == 1 else f"{walk.non_image_count:,} files are no images"
            )
            notes.append(f"{files} by name, and left out.")
        self.notes = tuple(notes)

    def _iter_items(self) -> Iterator[Item]:
        for index, (path, problem) in enumerate(ImageWalk(str(self.path))):
            location = escape_path(path)
            share = min(1.0, (index + 1) / self._count)
            if not problem and not _is_text(path):
                problem = "its name is not UTF-8, and a task can hold nothing else: rename it, for example with convmv"
            elif problem:
                problem = f"this folder cannot be read: {problem}"
            if problem:
                yield Item(location, {}, problem=problem, share=share)
                continue
            parts = path.split("/")
            data = {self._binding.data_key: self._media_value(path)}
            if len(parts) < self._depth + 2:
                yield Item(location, data, share=share)
                continue
            label = self._target.label_names.get(class_name(parts[self._depth]))
            if label is None:
                yield Item(location, {}, problem="its folder was not there at the start", share=share)
                continue
            region = RegionFactory(index).make(
                self._target.control, {"choices": [label]}, to_name=self._target.object.name
            )
            yield Item(location, data, [region], share=share)

    def _media_value(self, path: str) -> str:
        value = self.media_value(path)
        # "10:30/a.jpg" would be taken for a URL.
        return f"./{value}" if not self.media_prefix and ":" in path.partition("/")[0] else value


def class_name(folder: str) -> str:
    """Return the class of a folder: its name, with what `escape_part` wrote for special characters put back."""
    name = unquote(folder, errors="surrogateescape")
    return name if name != folder and _is_text(name) and escape_part(name) == folder else folder


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
