"""Recognise data sets of other formats that are given as tasks: COCO, YOLO, Pascal VOC, spans, and a label config.

Only the beginning of a file and a few names of a folder are looked at.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lsml_cli.errors import UsageError

Dataset = Literal["COCO", "YOLO", "Pascal VOC"]

_FORMAT_NAMES: dict[Dataset, str] = {"COCO": "coco", "YOLO": "yolo", "Pascal VOC": "voc"}

_SAMPLE_BYTES = 1 << 16  # of a file
_MAX_ENTRIES = 500  # of a folder that are looked at
_MAX_SAMPLED_FILES = 5  # of them
_DECODER = json.JSONDecoder(parse_int=float)  # int refuses 5,000 digits

# The lists of a COCO file, each with a key that its items have, and those of tasks and their annotations do not.
_COCO_LISTS = {"images": "file_name", "annotations": "image_id", "categories": "name"}
_COCO_KEY = re.compile(r'\s*"(\w{1,40})"\s*:\s*')
_COCO_RESULT = re.compile(rb'\[\s*\{\s*"(?:image_id|category_id)"\s*:')
_SEPARATOR = re.compile(r"\s*,")
_NUMBER = rb"-?(?:\d++(?:\.\d*+)?+|\.\d++)(?:e[+-]?\d++)?+"
# Class, then a box or the points of an outline, as shares of the image.
_YOLO_LINE = re.compile(rb"\d++(?:[ \t]++" + _NUMBER + rb"){4,}+")
_YOLO_YAML = (
    re.compile(r"#|\w+\s*:"),
    re.compile(r"^names\s*:", re.MULTILINE),
    re.compile(r"^(?:train|val|test)\s*:", re.MULTILINE),
)
_YOLO_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml")
_YOLO_LABEL_FOLDERS = ("labels", "labels/train", "labels/val", "train/labels", "valid/labels", "")
_COCO_FOLDERS = ("", "annotations")
_IMAGE_FOLDERS = ("images", "JPEGImages", "train/images")
DOCBIN_SUFFIX = ".spacy"
_ZLIB_MAGIC = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
_CONLL_START = b"-DOCSTART-"
_CONLL_LINE = re.compile(rb"[^ \t]+(?:[ \t]+[^ \t]+)*[ \t]+(O|[BIESLUMW]-[^ \t]+)[ \t]*")  # a token ... its tag
_SPAN_LISTS = ("spans", "entities", "label", "labels")
_TASK_KEYS = ("data", "annotations", "predictions", "annotation_id")  # of tasks and rows of JSON_MIN
_XML_ROOT = re.compile(rb"(?:\s|<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^>]*>)*+<(\w+)[\s/>]", re.DOTALL)


def recognize_content(start: bytes, name: str) -> UsageError | None:
    """Return the error to raise for a file that holds a data set of another format, or a label config.

    Args:
        start: Its first bytes, without white space before them.
        name: The file, or what messages call it.
    """
    sample = start[:_SAMPLE_BYTES]
    if sample.startswith(b"<"):
        match = _XML_ROOT.match(sample)
        root = match.group(1) if match else b""
        if root == b"annotation":
            return _dataset_error(name, "Pascal VOC", "holds annotations in Pascal VOC's XML")
        if root == b"View":
            return UsageError(f"{name} is a label config, not a file of tasks.", "Name it with --label-config.")
        return None
    if sample.startswith(b"{"):
        is_coco = _is_coco(start.decode("utf-8", "replace"))
        return _dataset_error(name, "COCO", "is a COCO file of images, annotations and categories") if is_coco else None
    if sample.startswith(b"["):
        if not _COCO_RESULT.match(sample) or b'"category_id"' not in sample[:4_000]:
            return None
        return UsageError(
            f"{name} holds results in COCO's format, and lsml reads tasks of Label Studio.",
            "Call it results.json, beside the COCO file of the images: "
            "lsml convert COCO_FILE --from coco --what predictions -o tasks.json",
        )
    if _has_yolo_lines(sample):
        return _dataset_error(name, "YOLO", "holds labels of a YOLO data set")
    if _is_yolo_yaml(sample):
        return _dataset_error(name, "YOLO", "describes a YOLO data set")
    if _is_conll(sample) and (sample.startswith(_CONLL_START) or b"\n\n" in sample.replace(b"\r", b"")):
        file = shlex.quote(name) if Path(name).exists() else "FILE"
        return UsageError(
            f"{name} holds tokens and tags, and lsml reads tasks of Label Studio.",
            f"To make tasks of it: lsml convert {file} --from conll -o tasks.json",
        )
    if os.path.basename(name) == "classes.txt" and Path(name).with_name("labels").is_dir():  # noqa: PTH119
        return _dataset_error(name, "YOLO", "holds the class names of a YOLO data set")
    return None


def recognize_folder(folder: str) -> UsageError | None:
    """Return the error to raise for a folder that holds a data set of another format, None if it does not."""
    if dataset := find_dataset(folder):
        return _dataset_error(folder, dataset, f"is a {dataset} data set")
    return None


def find_format(path: str) -> str | None:
    """Return the name of the format of a file or folder that certainly is a data set, None otherwise."""
    if Path(path).is_dir():
        dataset = find_dataset(path)
        return _FORMAT_NAMES[dataset] if dataset else _find_text_format(Path(path))
    sample = _read_sample(Path(path))
    if sample.startswith(b"{"):
        is_coco = _is_coco(sample.decode("utf-8", "replace"))
        return "coco" if is_coco else "spans-jsonl" if _has_span_lines(sample) else None
    if sample.startswith(_ZLIB_MAGIC) and Path(path).suffix == DOCBIN_SUFFIX:
        return "docbin"
    if _is_conll(sample):
        return "conll"
    return "voc" if _is_voc(sample) else "yolo" if _is_yolo_yaml(sample) else None


def find_dataset(folder: str) -> Dataset | None:
    """Return the format of the data set in a folder, None if there is none that is known."""
    root = Path(folder)
    if (root / "classes.txt").is_file() and (root / "labels").is_dir():
        return "YOLO"
    if any(_is_yolo_yaml(_read_sample(root / name)) for name in _YOLO_YAML_NAMES):
        return "YOLO"
    if any(map(_has_yolo_lines, _sample_files(root, _YOLO_LABEL_FOLDERS, ".txt"))):
        return "YOLO"
    if any(map(_is_voc, _sample_files(root, ("Annotations", ""), ".xml"))):
        return "Pascal VOC"
    if any(_is_coco(sample.decode("utf-8", "replace")) for sample in _sample_files(root, _COCO_FOLDERS, ".json")):
        return "COCO"
    return None


def _find_text_format(folder: Path) -> str | None:
    """Return the format of a folder of texts with spans, as lsml writes them; None for any other."""
    if _has_span_lines(_read_sample(folder / "spans.jsonl")):
        return "spans-jsonl"
    if any(map(_is_conll, _sample_files(folder, ("",), ".conll"))):
        return "conll"
    is_docbin = any(sample.startswith(_ZLIB_MAGIC) for sample in _sample_files(folder, ("",), DOCBIN_SUFFIX))
    return "docbin" if is_docbin else None


def _dataset_error(name: str, dataset: Dataset, description: str) -> UsageError:
    path = Path(name)
    is_known = path.exists()  # standard input has no neighbours
    nearby = [path, *islice(path.absolute().parents, 3)] if path.is_absolute() else [path, *path.parents][:4]
    folders = [base / folder for base in nearby for folder in _IMAGE_FOLDERS] if is_known else []
    images = next((folder for folder in folders if folder.is_dir()), "FOLDER")
    source: str | Path = path if is_known else "FILE"
    if dataset != "COCO":
        label_folder = "labels" if dataset == "YOLO" else "Annotations"
        other = path if path.is_dir() else "FOLDER"
        source = next((base for base in nearby if is_known and (base / label_folder).is_dir()), other)
    command = f"lsml convert {shlex.quote(str(source))} --from {_FORMAT_NAMES[dataset]} -o tasks.json"
    hint = f"To predict its images: lsml predict {shlex.quote(str(images))}. To make tasks of it: {command}"
    return UsageError(f"{name} {description}, and lsml reads tasks of Label Studio.", hint)


def _is_coco(text: str) -> bool:
    """Return whether the object that begins here is a COCO data set; it may be cut off anywhere."""
    if '"images"' not in text and '"annotations"' not in text:
        return False
    found = set()
    position = 1
    while match := _COCO_KEY.match(text, position):
        key = match.group(1)
        if key == "data":  # a task
            return False
        try:
            value, position = _DECODER.raw_decode(text, match.end())
        except (json.JSONDecodeError, RecursionError):  # the list goes on behind what was read
            beginning = text[match.end() : match.end() + 4_000]
            item_key = _COCO_LISTS.get(key, "")
            return bool(item_key and re.match(r"\[\s*\{", beginning) and f'"{item_key}"' in beginning)
        if key in _COCO_LISTS and _is_list_with(value, _COCO_LISTS[key]):
            found.add(key)
        separator = _SEPARATOR.match(text, position)
        if separator is None:
            break
        position = separator.end()
    is_followed = re.compile(r"\s*\}\s*\{").match(text, position) is not None  # items, one a line
    return "annotations" in found and len(found) > 1 and not is_followed


def _is_list_with(value: Any, item_key: str) -> bool:
    """Return whether a value is a list whose first item, if there is one, has a key."""
    return isinstance(value, list) and (not value or (isinstance(value[0], dict) and item_key in value[0]))


def _has_yolo_lines(sample: bytes) -> bool:
    *lines, last = sample.split(b"\n")
    if not lines or len(sample) < _SAMPLE_BYTES:
        lines.append(last)
    lines = [line for line in lines if line.strip()][:20]
    return bool(lines) and b"." in lines[0] and all(_YOLO_LINE.fullmatch(line.strip()) for line in lines)


def _is_yolo_yaml(sample: bytes) -> bool:
    text = sample.decode("utf-8", "replace")
    return bool(_YOLO_YAML[0].match(text)) and all(pattern.search(text) for pattern in _YOLO_YAML)


def _is_conll(sample: bytes) -> bool:
    """Return whether this is CoNLL: all lines end with a tag, and some tag has a label."""
    if sample.startswith(_CONLL_START):
        return True
    *lines, last = sample.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if len(sample) < _SAMPLE_BYTES:
        lines.append(last)
    lines = [line.rstrip(b"\r") for line in lines if line.strip()]
    matches = [_CONLL_LINE.fullmatch(line) for line in lines if not line.startswith(b"# ")]  # which are comments
    return all(matches) and any(match and match.group(1) != b"O" for match in matches)


def _has_span_lines(sample: bytes) -> bool:
    """Return whether this is JSON Lines of texts with spans, and not of tasks."""
    *lines, last = sample.split(b"\n")
    if len(sample) < _SAMPLE_BYTES:
        lines.append(last)
    try:
        entries = [_DECODER.decode(line.decode()) for line in lines if line.strip()]
    except (ValueError, RecursionError):
        return False
    return all(map(_may_have_spans, entries)) and any(map(_has_spans, entries))


def _may_have_spans(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("text"), str) and not any(map(entry.get, _TASK_KEYS))


def _has_spans(entry: dict[str, Any]) -> bool:
    found = next((entry[key] for key in _SPAN_LISTS if isinstance(entry.get(key), list)), None)
    return bool(found) and all(map(_is_span, found or ()))


def _is_span(item: Any) -> bool:
    if isinstance(item, dict):
        return isinstance(item.get("label"), str) and ("start" in item or "start_offset" in item)
    return (
        isinstance(item, list)
        and len(item) == 3
        and all(isinstance(position, float) for position in item[:2])  # as the decoder parses integers
        and isinstance(item[2], str)
    )


def _is_voc(sample: bytes) -> bool:
    match = _XML_ROOT.match(sample)
    return match is not None and match.group(1) == b"annotation"


def _sample_files(root: Path, folders: tuple[str, ...], suffix: str) -> list[bytes]:
    """Return the beginnings of a few files with a suffix in some folders below `root`."""
    samples = []
    for folder in folders:
        try:
            with os.scandir(root / folder) as entries:
                names = [entry.name for entry in islice(entries, _MAX_ENTRIES) if entry.name.endswith(suffix)]
        except OSError:
            continue
        samples += [_read_sample(root / folder / name) for name in names[:_MAX_SAMPLED_FILES]]
    return samples


def _read_sample(path: Path) -> bytes:
    try:
        if not path.is_file():  # a pipe would wait for its writer
            return b""
        with path.open("rb") as file:
            return file.read(_SAMPLE_BYTES).lstrip()
    except OSError:
        return b""
