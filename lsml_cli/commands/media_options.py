"""The options about media, as the `Media` that they mean: the same for every command that has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lsml_cli.errors import UsageError
from lsml_cli.media.fetcher import ANY_HOST, AllowedHosts, Cache, LabelStudioCredentials, Media

SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}  # bytes


def build_media(
    *,
    root: Path | None,
    confined: bool = True,
    document_root: Path | None = None,
    upload_root: Path | None = None,
    label_studio_url: str | None = None,
    maps: Sequence[str] = (),
    cache: Path | None = None,
    cache_size: str | None = None,
    hosts: AllowedHosts = ANY_HOST,
) -> Media:
    """Where media are looked for. The key of Label Studio comes from LABEL_STUDIO_API_KEY, which is read here.

    root        folder that plain paths are below; None: no plain path is read
    confined    whether a plain path has to lie there, see `Media`
    maps        "PREFIX=DIR"
    cache_size  "10G", "500M", or bytes

    Raises UsageError when one of them makes no sense, or names a folder that is not there.
    """
    for option, folder in (("--document-root", document_root), ("--upload-root", upload_root)):
        if folder is not None:
            _require_folder(option, folder)
    size = parse_size(cache_size) if cache_size is not None else None
    return Media(
        root=root,
        confined=confined,
        document_root=document_root,
        upload_root=upload_root,
        prefix_map=tuple(map(parse_map, maps)),
        label_studio=LabelStudioCredentials.from_env(label_studio_url) if label_studio_url else None,
        allowed_hosts=hosts,
        cache=_make_cache(cache, size) if cache is not None else None,
    )


def parse_map(text: str) -> tuple[str, Path]:
    """PREFIX=DIR. A prefix may hold "=" itself, as that of /data/local-files/?d= does; a folder may not."""
    prefix, equals, folder = text.rpartition("=")
    if not (equals and prefix and folder):
        raise UsageError(
            f"--map {text!r} is not PREFIX=DIR.",
            "Write the beginning of the values, =, and a folder: s3://bucket/=DIR.",
        )
    _require_folder(f"--map {prefix}", Path(folder))
    return prefix, Path(folder)


def parse_size(text: str) -> int:
    """ "10G" -> 10 * 2**30."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = int(float(found[1]) * SIZE_UNITS[found[2].upper()]) if found else 0
    if size <= 0:
        raise UsageError(f"{text!r} is no size.", "Write a number of bytes, or 500M, 10G.")
    return size


def _make_cache(folder: Path, size: int | None) -> Cache:
    """The cache, with its folder made: nobody else may look into it, since it holds what a key opened."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The folder {folder} (--media-cache) cannot be made: {error.strerror}.", "Name another."
        ) from None
    return Cache(folder) if size is None else Cache(folder, size)


def _require_folder(option: str, folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder} ({option}).", "Name the one that the files are below.")
