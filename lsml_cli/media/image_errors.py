"""Translate errors of Pillow into messages: whether an image is truncated or broken, and how many bytes are missing."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from lsml_cli.media.image_metadata import iter_tiff_tags

MAX_DETAIL_CHARS = 200  # characters of Pillow's own message

_TIFF_TYPE_SIZES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8), 1))  # bytes of one value of each type
_STRIP_TAGS = ((273, 279), (324, 325))  # (tag of the offsets, tag of the lengths) of strips and of tiles

_TRUNCATED_PATTERN = re.compile(
    "truncated|not large enough|not enough image data|end of file|unexpected end|reached EOF", re.IGNORECASE
)
_UNINFORMATIVE_PATTERN = re.compile(
    r"not identified by|cannot load this|invalid literal|could not convert|decoder error|[-\d]*$", re.IGNORECASE
)


@contextmanager
def translate_errors(format_name: str, content: bytes) -> Iterator[None]:
    """Raise ValueError with one sentence for whatever Pillow raises in the block; over broken data that is anything."""
    try:
        yield
    except MemoryError as error:
        raise ValueError(f"the {format_name} image needs more memory than there is") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"the {format_name} image has more pixels than Pillow decodes") from error
    except Exception as error:
        raise ValueError(_describe_failure(format_name, content, error)) from error


def _describe_failure(format_name: str, content: bytes, error: Exception) -> str:
    declared = _declared_length(format_name, content)
    if declared > len(content):
        return f"the {format_name} image is truncated: {len(content):,} of at least {declared:,} bytes are there"
    causes = (error, error.__cause__)
    has_ended = any(isinstance(cause, EOFError | IndexError | struct.error) for cause in causes)
    if has_ended or _TRUNCATED_PATTERN.search(str(error)) or _is_truncated(format_name, content):
        return (
            f"the {format_name} image is truncated: the file ends after {len(content):,} bytes, before the image does"
        )
    detail = " ".join(str(error).split()) if isinstance(error, OSError | SyntaxError | ValueError) else ""
    message = f"the {format_name} image is broken"
    return message if _UNINFORMATIVE_PATTERN.match(detail) else f"{message}: {detail[:MAX_DETAIL_CHARS]}"


def _is_truncated(format_name: str, content: bytes) -> bool:
    """Return whether the end marker is missing that JPEG, PNG and GIF have."""
    if format_name == "JPEG":  # its metadata may hold a second image
        return content.count(b"\xff\xd8\xff") > content.count(b"\xff\xd9")
    return (format_name == "PNG" and b"IEND" not in content[-1024:]) or (
        format_name == "GIF" and not content.endswith(b";")
    )


def _declared_length(format_name: str, content: bytes) -> int:
    """Return how many bytes a file must have according to its header; 0 if that does not say."""
    if format_name == "WebP":
        return 8 + int.from_bytes(content[4:8], "little")
    if format_name == "BMP":
        return int.from_bytes(content[2:6], "little")
    if format_name == "TIFF":
        return _tiff_length(content)
    if format_name in ("AVIF", "JPEG 2000") and content[:1] == b"\0":
        return _iso_length(content)
    return 0


def _iso_length(content: bytes) -> int:
    offset = 0
    while offset + 8 <= len(content):
        length = int.from_bytes(content[offset : offset + 4], "big")
        if length < 8:  # up to the end of the file, or a length of 64 bits
            return 0
        offset += length
    return offset if offset >= len(content) else offset + 8


def _tiff_length(content: bytes) -> int:
    """Return where the tags and the pixels of the first page end; 0 for a BigTIFF."""
    if content[2:4] not in (b"*\0", b"\0*"):
        return 0
    is_little = content[:1] == b"I"
    order = "<" if is_little else ">"
    end = int.from_bytes(content[4:8], "little" if is_little else "big")
    end += 2 + 12 * int.from_bytes(content[end : end + 2], "little" if is_little else "big")
    numbers_by_tag: dict[int, tuple[int, ...]] = {}
    for tag, value_type, count, value in iter_tiff_tags(content):
        length = count * _TIFF_TYPE_SIZES.get(value_type, 0)
        if length > 4:
            (offset,) = struct.unpack(f"{order}L", value)
            end = max(end, offset + length)
            value = content[offset : offset + length]
        if any(tag in pair for pair in _STRIP_TAGS) and value_type in (3, 4) and len(value) >= length:
            numbers_by_tag[tag] = struct.unpack_from(f"{order}{count}{'H' if value_type == 3 else 'L'}", value)
    for offset_tag, length_tag in _STRIP_TAGS:
        strips = zip(numbers_by_tag.get(offset_tag, ()), numbers_by_tag.get(length_tag, ()), strict=False)
        end = max([end, *(offset + length for offset, length in strips)])
    return end
