"""Read the metadata of image files that matter, and strip those that Pillow fails on."""

from __future__ import annotations

import struct
import threading
import warnings
from collections.abc import Iterator

_PIL_MODULES = r"PIL\."
_FILTER_LOCK = threading.Lock()

# JPEG markers
_METADATA_MARKERS = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # APP1..APP13, APP15, comments
_STANDALONE_MARKERS = {0x00, 0x01, *range(0xD0, 0xDA)}  # without a length; none belongs before the image data

_ESSENTIAL_PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}


def strip_jpeg_metadata(content: bytes) -> tuple[bytes, int]:
    """Return a JPEG without its metadata, and its EXIF orientation, 1..8.

    Pillow reads metadata when it opens a file, and fails or warns if EXIF, a colour profile or a Photoshop block is
    broken. JFIF and Adobe's marker stay: they say what the colours mean.
    """
    kept = [content[:2]]
    orientation = 0
    offset = 2
    while offset + 4 <= len(content) and content[offset] == 0xFF:
        marker = content[offset + 1]
        if marker == 0xFF:  # a fill byte
            offset += 1
            continue
        if marker == 0xDA or marker in _STANDALONE_MARKERS:
            break
        end = offset + 2 + int.from_bytes(content[offset + 2 : offset + 4], "big")
        segment = content[offset:end]
        if marker not in _METADATA_MARKERS:
            kept.append(segment)
        elif marker == 0xE1 and segment[4:10] == b"Exif\0\0" and not orientation:
            orientation = exif_orientation(segment[4:])
        offset = end
    kept.append(content[offset:])
    return b"".join(kept), orientation or 1


def strip_png_metadata(content: bytes) -> tuple[bytes, int]:
    """Return a PNG without its metadata and the frames of an animation, and its EXIF orientation, 1..8.

    Pillow rejects an image for a long description or a broken colour profile, and warns about odd animations.
    """
    kept: list[bytes] = []
    orientation = 1
    kept_until = offset = 8
    while offset + 8 <= len(content):
        name = content[offset + 4 : offset + 8]
        end = offset + 12 + int.from_bytes(content[offset : offset + 4], "big")
        if name == b"eXIf":
            orientation = exif_orientation(content[offset + 8 : end - 4])
        if name not in _ESSENTIAL_PNG_CHUNKS:
            kept.append(content[kept_until:offset])
            kept_until = end
        offset = end
        if name == b"IEND":
            break
    if not kept:
        return content, orientation
    return b"".join([content[:8], *kept, content[kept_until:]]), orientation


def gif_size(content: bytes) -> tuple[int, int]:
    """Return width and height of a GIF with its first frame, which may reach beyond the announced canvas.

    Raises:
        IndexError: The file ends before its first frame.
        struct.error: The file ends before its first frame.
    """
    width, height = struct.unpack_from("<2H", content, 6)
    flags = content[10]
    offset = 13 + (6 << (flags & 7) if flags & 0x80 else 0)
    while (block := content[offset]) != 0x2C:  # until an image
        if block == 0x3B:
            raise IndexError("no frame")
        offset += 1
        if block == 0x21:  # an extension: its label, then blocks with their lengths
            offset += 1
            while length := content[offset]:
                offset += 1 + length
            offset += 1
    left, top, frame_width, frame_height = struct.unpack_from("<4H", content, offset + 1)
    return max(width, left + frame_width), max(height, top + frame_height)


def exif_orientation(exif: bytes) -> int:
    """Return the orientation in EXIF, 1..8; 1 without one or if EXIF is broken.

    Only a single 16-bit number counts, as in browsers.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    for tag, value_type, count, value in iter_tiff_tags(exif):
        if tag == 0x0112:
            number = int.from_bytes(value[:2], "little" if exif[:1] == b"I" else "big")
            return number if value_type == 3 and count == 1 and 1 <= number <= 8 else 1
    return 1


def iter_tiff_tags(tiff: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield (tag, type, count, value or offset) for the first directory of a TIFF; the last are four raw bytes."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return
    try:
        (directory,) = struct.unpack_from(f"{order}L", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for offset in range(directory + 2, directory + 2 + 12 * entries, 12):
            yield struct.unpack_from(f"{order}HHL4s", tiff, offset)
    except struct.error:
        return


def silence_metadata_warnings() -> None:
    """Ignore Pillow's warnings about odd tags in TIFF and EXIF, which most cameras write.

    The filter stays: one for the length of a call would be removed while another thread needs it. Warnings about large
    images have another category and stay.
    """
    with _FILTER_LOCK:
        first = warnings.filters[0][3] if warnings.filters else None
        if first is None or first.pattern != _PIL_MODULES:
            warnings.filterwarnings("ignore", category=UserWarning, module=_PIL_MODULES)
