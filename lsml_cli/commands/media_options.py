"""The options about media that several commands share, and the `Media` that they mean."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lsml_cli.errors import UsageError

if TYPE_CHECKING:
    from lsml_cli.media.fetcher import AllowedHosts, Cache, Media

SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}  # bytes


@dataclass(frozen=True)
class MediaOptions:
    """Where the media of tasks are: the values of the command-line options, as they were given.

    Args:
        document_root: Folder that /data/local-files/?d=... is relative to.
        upload_root: Folder that /data/upload/... is relative to.
        label_studio_url: Label Studio that serves the other files; its key comes from LABEL_STUDIO_API_KEY.
        maps: "PREFIX=DIR", for values that begin with PREFIX.
        cache: Folder that keeps remote media.
        cache_size: "10G", "500M", or a number of bytes.
    """

    document_root: Path | None = None
    upload_root: Path | None = None
    label_studio_url: str | None = None
    maps: tuple[str, ...] = ()
    cache: Path | None = None
    cache_size: str | None = None

    def build(self, root: Path | None, *, confined: bool = True, allowed_hosts: AllowedHosts | None = None) -> Media:
        """Check the options and return the `Media` that they describe.

        Args:
            root: Folder that plain paths are below; None: no plain path is read.
            confined: Whether a plain path has to lie below `root`.
            allowed_hosts: Hosts that may be asked; any, if not given.

        Raises:
            UsageError: An option has no valid value, or names a folder that does not exist.
        """
        from lsml_cli.media.fetcher import ANY_HOST, LabelStudioCredentials, Media

        for option, folder in (("--document-root", self.document_root), ("--upload-root", self.upload_root)):
            if folder is not None:
                _require_folder(option, folder)
        max_cache_bytes = parse_size(self.cache_size) if self.cache_size is not None else None
        url = self.label_studio_url
        return Media(
            root=root,
            confined=confined,
            document_root=self.document_root,
            upload_root=self.upload_root,
            prefix_map=tuple(map(parse_map, self.maps)),
            label_studio=LabelStudioCredentials.from_env(url) if url else None,
            allowed_hosts=ANY_HOST if allowed_hosts is None else allowed_hosts,
            cache=_make_cache(self.cache, max_cache_bytes) if self.cache is not None else None,
        )


def parse_map(text: str) -> tuple[str, Path]:
    """Parse PREFIX=DIR. The prefix may hold "=" itself, as that of /data/local-files/?d= does; the folder may not."""
    prefix, equals, folder = text.rpartition("=")
    if not (equals and prefix and folder):
        raise UsageError(
            f"--map {text!r} is not PREFIX=DIR.",
            "Write the beginning of the values, =, and a folder: s3://bucket/=DIR.",
        )
    _require_folder(f"--map {prefix}", Path(folder))
    return prefix, Path(folder)


def parse_size(text: str) -> int:
    """Parse a size in bytes: "10G" is 10 * 2**30."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = float(match[1]) * SIZE_UNITS[match[2].upper()] if match else 0
    if not 1 <= size < 1 << 63:
        raise UsageError(f"{text!r} is not a size.", "Write a number of bytes, or 500M, 10G.")
    return int(size)


def _make_cache(folder: Path, max_bytes: int | None) -> Cache:
    """Create the cache and its folder, readable by its owner alone: it holds what a key opened."""
    from lsml_cli.media.fetcher import Cache

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The folder {folder} (--media-cache) cannot be created: {error.strerror}.", "Name another."
        ) from None
    return Cache(folder) if max_bytes is None else Cache(folder, max_bytes)


def _require_folder(option: str, folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder} ({option}).", "Name the folder that the files are below.")
