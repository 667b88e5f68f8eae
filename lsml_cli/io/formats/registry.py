"""The formats of data sets, by name. A format's module, and whatever heavy it needs, is imported when it is used."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lsml_cli.errors import UsageError
from lsml_cli.runtime import install_hint

if TYPE_CHECKING:
    from lsml_cli.io.formats.dataset_source import DatasetSource, ReadOptions
    from lsml_cli.io.formats.dataset_writer import DatasetWriter, WriteOptions


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        title: What messages call it.
        reader: "module:class" of its `DatasetSource`, the module relative to this package; None if it is only written.
        writer: The same for its `DatasetWriter`; None if it is only read.
        required_modules: Modules of its extra; what is needed for some data only is checked by the format itself.
        install_extra: The extra of lsml that brings them.
        holds_images: Whether its tasks are images: options about image files apply.
        holds_sounds: Whether its tasks are sounds: what is said about image files applies to theirs.
        is_made_of_images: Whether it is nothing without the files of images: they are linked by default.
        has_split: Whether it keeps training and validation apart: --holdout applies.
        variants: What --variant may be.
        is_table: Whether it is read as a table, with a column of labels: --label-column applies.
    """

    title: str
    reader: str | None = None
    writer: str | None = None
    required_modules: tuple[str, ...] = ()
    install_extra: str | None = None
    holds_images: bool = False
    holds_sounds: bool = False
    is_made_of_images: bool = False
    has_split: bool = False
    variants: tuple[str, ...] = ()
    is_table: bool = False


FORMATS: dict[str, Format] = {
    "coco": Format("COCO", "coco:CocoSource", "coco:CocoWriter", holds_images=True),
    "yolo": Format(
        "YOLO",
        "yolo:YoloSource",
        "yolo:YoloWriter",
        holds_images=True,
        has_split=True,
        variants=("detect", "seg", "obb", "pose"),
    ),
    "voc": Format("Pascal VOC", "voc:VocSource", "voc:VocWriter", holds_images=True, has_split=True),
    "masks": Format(
        "A data set of masks",
        "masks:MasksSource",
        "masks:MasksWriter",
        holds_images=True,
        variants=("semantic", "instance"),
    ),
    "folders": Format(
        "Class-named folders",
        "folders:FoldersSource",
        "folders:FoldersWriter",
        holds_images=True,
        is_made_of_images=True,
        has_split=True,
    ),
    "conll": Format("CoNLL", "conll:ConllSource", "conll:ConllWriter"),
    "spans-jsonl": Format("JSON Lines with spans", "spans_jsonl:SpansJsonlSource", "spans_jsonl:SpansJsonlWriter"),
    "asr": Format("ASR manifest", "asr:AsrSource", "asr:AsrWriter", holds_sounds=True),
    "docbin": Format(
        "DocBin", "docbin:DocBinSource", "docbin:DocBinWriter", required_modules=("spacy",), install_extra="spans"
    ),
    "json-min": Format("JSON_MIN", writer="json_min:JsonMinWriter"),
    "csv": Format("CSV", "csv_table:CsvSource", "csv_table:CsvWriter", is_table=True),
    "tsv": Format("TSV", "csv_table:TsvSource", "csv_table:TsvWriter", is_table=True),
    "parquet": Format(
        "Parquet",
        "parquet:ParquetSource",
        "parquet:ParquetWriter",
        required_modules=("pyarrow",),
        install_extra="parquet",
        is_table=True,
    ),
}

READABLE = tuple(name for name, entry in FORMATS.items() if entry.reader)
# What predict reads, which looks at no labels: to it, CSV and TSV are tasks.
DATASETS = tuple(name for name in READABLE if name not in ("csv", "tsv"))
WRITABLE = tuple(name for name, entry in FORMATS.items() if entry.writer)


def open_dataset(name: str, path: str, options: ReadOptions) -> DatasetSource:
    """Open a data set for reading.

    Args:
        name: One of `READABLE`.
        path: A file or a folder.
        options: How it is read.

    Raises:
        UsageError: There is no such data set, or it does not fit the label config.
        InputError: It cannot be read at all.
    """
    reader: type[DatasetSource] = _load(name, FORMATS[name].reader)
    return reader(path, options)


def create_writer(name: str, folder: Path, options: WriteOptions) -> DatasetWriter:
    """Create a data set.

    Args:
        name: One of `WRITABLE`.
        folder: The folder that is made; see `OutputFolder`.
        options: How it is written.

    Raises:
        UsageError: The folder cannot be made, or the options do not fit the format.
    """
    writer: type[DatasetWriter] = _load(name, FORMATS[name].writer)
    return writer(folder, options)


def _load(name: str, location: str | None) -> type:
    """Import a class; raise UsageError where the extra of its format is not installed."""
    entry = FORMATS[name]
    for module in entry.required_modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise UsageError(
                f"{entry.title} needs the package {module}.", install_hint(f"lsml[{entry.install_extra}]")
            ) from None
    module_name, _, class_name = (location or "").partition(":")
    loaded: type = getattr(importlib.import_module(f"lsml_cli.io.formats.{module_name}"), class_name)
    return loaded
