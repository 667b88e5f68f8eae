"""Detect the format of an image file by its first bytes, whatever its name, and describe other files in words."""

from __future__ import annotations

import re

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

# Format -> the Pillow plugin that reads it. The plugins are called directly, past Image.open and its warning about
# large images, and only those that are listed here: there is one that runs Ghostscript.
READERS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile,  # of an MPO this reads the first image
    "PNG": PngImageFile,
    "GIF": GifImageFile,
    "WebP": WebPImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "JPEG 2000": Jpeg2KImageFile,
    "PPM": PpmImageFile,
}
try:
    from PIL import AvifImagePlugin
except ImportError:  # before Pillow 11.3
    pass
else:
    if AvifImagePlugin.SUPPORTED:
        READERS["AVIF"] = AvifImagePlugin.AvifImageFile


_MAGIC_PATTERNS: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), description)
    for pattern, description in (
        (rb"\xff\xd8\xff", "JPEG"),
        (rb"\x89PNG\r\n\x1a\n", "PNG"),
        (rb"GIF8[79]a", "GIF"),
        (rb"RIFF....WEBP", "WebP"),
        (rb"BM....\0\0\0\0", "BMP"),
        (rb"BM.{8}..\0\0(\x0c|\x28|\x34|\x38|\x40|\x6c|\x7c)\0\0\0", "BMP"),
        (rb"II\*\0....CR", "a Canon raw file"),
        (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "TIFF"),
        (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG 2000"),
        (rb"P[1-6][ \t\r\n]|Pf[ \t\r\n]", "PPM"),
        (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL image"),
        (rb"8BPS", "a Photoshop document"),
        (rb"\0\0[\x01\x02]\0[^\0]\0", "a Windows icon or cursor"),
        (rb".{128}DICM", "a DICOM file"),
        (rb"%PDF-", "a PDF document"),
        (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript document"),
        (rb"PK(\x03\x04|\x05\x06)", "a ZIP archive or an Office document"),
        (rb"\x1f\x8b", "a gzip archive"),
        (rb"Rar!|7z\xbc\xaf|.{257}ustar", "an archive"),
        (rb"RIFF....AVI |\x1a\x45\xdf\xa3|\0\0\x01[\xb3\xba]|FLV\x01", "a video"),
        (rb"RIFF....WAVE|ID3|OggS|fLaC|\xff[\xfb\xf3\xf2]", "a sound"),
        (rb"\x93NUMPY", "a NumPy array"),
        (rb"version https://git-lfs", "a Git LFS pointer: the file itself was not fetched"),
        (rb"\0+\Z", "zeros: nothing was written to the file"),
    )
)

_MARKUP_PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE), description)
    for pattern, description in (
        (rb"<(!doctype html|html|head|body)\b", "an HTML page: a login, perhaps, or an error"),
        (rb"<svg\b", "an SVG drawing"),
        (rb"<(\?xml|error)\b", "an XML document: a bucket that refuses, perhaps"),
    )
)


def detect_format(content: bytes) -> str:
    """Return the format of an image file, a key of READERS.

    Raises:
        ValueError: It is no image, or one that is not supported; the message says what it is instead.
    """
    if not content:
        raise ValueError("an empty file")
    detected = _detect_iso_format(content) if content[4:8] == b"ftyp" else ""
    detected = detected or next((name for magic, name in _MAGIC_PATTERNS if magic.match(content)), "")
    detected = detected or _describe_text(content)
    if detected in READERS:
        return detected
    if detected == "AVIF":
        raise ValueError("an AVIF image, which this version of Pillow does not read")
    if detected.endswith("image"):
        raise ValueError(f"{detected}, which is not supported; convert it to JPEG or PNG")
    if detected:
        raise ValueError(f"not an image but {detected}")
    raise ValueError(f"not an image of a known format: it begins with the bytes {content[:8].hex(' ')}")


def _detect_iso_format(content: bytes) -> str:
    """Return the format of an ISO media file by its brands: images and videos share the container."""
    length = min(int.from_bytes(content[:4], "big"), 256)
    brands = {content[offset : offset + 4] for offset in (8, *range(16, length, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}:
        return "a HEIC image"
    return "a Canon raw file" if b"crx " in brands else "a video"


def _describe_text(content: bytes) -> str:
    """Return what kind of text a file holds, "" if it holds no text."""
    start = content[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] == b"<" and (markup := next((name for tag, name in _MARKUP_PATTERNS if tag.search(start)), "")):
        return markup
    words = start[:64].decode("utf-8", "replace")
    if len(content) > 64:
        words = words.rstrip("\N{REPLACEMENT CHARACTER}")  # a character that the slice cut in two
    if not words or not all(char.isprintable() or char.isspace() for char in words) or "\ufffd" in words:
        return ""
    if words[0] in "{[":
        return "JSON"
    return f"text that begins with {' '.join(words.split())[:40]!r}"
