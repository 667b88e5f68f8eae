"""The bytes of an image file -> the picture as a person sees it: upright, RGB, 8 bits a channel.

What is read: JPEG (also MPO), PNG, GIF, WebP, BMP, TIFF, JPEG 2000, PPM and its kin, AVIF where Pillow was built with
it. Names and suffixes do not matter. Of an animation the first frame counts, of a TIFF the first page.

Where there is a choice, the picture is what a browser shows, because that is what somebody annotates in:

- The orientation is that of EXIF (of TIFF's own tag, of AVIF's boxes), applied once. The one in XMP does not count, nor
  does EXIF that is broken; other metadata is not looked at, so nothing in it can spoil a picture (save in an AVIF,
  where Pillow insists that it can read EXIF).
- What is transparent is white, like the canvas of Label Studio, and never the colour that happens to lie beneath.
- CMYK is taken to be inverted in a JPEG, as Adobe does, and converted by the plain formula.
- Of 16 bits the upper 8 count. 32-bit integers and floating-point numbers have no white that everybody agrees on:
  floating-point numbers within 0..1 are taken at that, and whatever else is stretched from its least to its greatest.

One thing is not what a browser does: colour profiles (ICC) are not applied. torchvision, MMDetection and MMOCR do not
apply them either, so models were trained without.

Pillow's settings are those of the whole process, so none is changed here, and warnings.catch_warnings is not used: it
is not made for several threads in Python 3.11. Pillow's plugins are called by themselves, past Image.open and its
warning about large pictures, and only those that are listed here: there is one that runs Ghostscript. (libtiff alone
prints a line of its own to stderr about a TIFF that is broken inside; only the whole process could be told not to.)
"""

from __future__ import annotations

import io
import logging
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

MAX_PIXELS = 128_000_000  # pixels of a picture: the 108 megapixels of a phone fit in; 4 bytes each while it is decoded
MAX_SCANS = 100  # passes over a progressive JPEG; encoders write about 10, and each may cost as much as a picture

_READERS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile,  # of an MPO this is the first picture
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
        _READERS["AVIF"] = AvifImagePlugin.AvifImageFile

# Without a handler Python prints what Pillow logs as an error to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def decode(content: bytes, *, max_pixels: int = MAX_PIXELS, min_side: int | None = None) -> Image.Image:
    """The picture as a person sees it: RGB, 8 bits a channel, upright, (H, W) after EXIF. It carries no metadata, so
    nothing turns it a second time. Called in many threads at a time.

    largest   pixels; a picture that has more is refused by its header. A GIF or a TIFF is also refused above Pillow's
              own limit, Image.MAX_IMAGE_PIXELS (89 million unless somebody changed it)
    at_least  pixels, 1 or more: the length of the shorter side that is enough. A JPEG is then decoded at 1/2, 1/4 or
              1/8 of its size, by DCT scaling, as long as its shorter side does not get less. For 224 that takes 70 %
              of the time at 640 x 480, and a quarter of it at 12 megapixels. It is close to a picture that was averaged
              down, but not equal to it, and its sides are rounded up: only for models that scale pictures to a fixed
              size anyway. None: every pixel.

    Raises ValueError with a sentence: an empty file; no picture, and what it is instead; a kind that is not read; more
    pixels than allowed; a truncated picture; a broken one.
    """
    kind, image, orientation = _open_header(content, max_pixels)
    with _translate_errors(kind, content):
        if min_side is not None and isinstance(image, JpegImageFile):
            image.draft("RGB", (min_side, min_side))
        image.load()
        picture = _to_rgb(kind, image)
        if (turn := _ORIENTATION_TRANSPOSES.get(orientation)) is not None:
            picture = picture.transpose(turn)
    picture.info = {}
    return picture


def read_size(content: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height as a person sees the picture: those of `decode` without at_least. No pixel is decoded.

    Raises ValueError like `decode`, as far as the header shows it.
    """
    _, image, orientation = _open_header(content, max_pixels)
    width, height = image.size
    return (height, width) if orientation in _TRANSPOSED_ORIENTATIONS else (width, height)


def _open_header(content: bytes, max_pixels: int) -> tuple[str, ImageFile, int]:
    """The kind of a picture; the picture, of which only the header was read; its EXIF orientation, 1..8."""
    kind = _detect_format(content)
    if kind in ("GIF", "TIFF") and Image.MAX_IMAGE_PIXELS is not None:
        max_pixels = min(max_pixels, Image.MAX_IMAGE_PIXELS)  # Pillow warns about larger ones while it reads them
    if kind == "GIF":  # Pillow fills a canvas before it tells how large it is
        with _translate_errors(kind, content):
            canvas = _gif_size(content)
        _check_pixel_count(kind, canvas, max_pixels)
    orientation = 1
    plain = content
    with _translate_errors(kind, content):
        if kind == "JPEG":
            plain, orientation = _strip_jpeg_metadata(content)
        elif kind == "PNG":
            plain, orientation = _strip_png_metadata(content)
        elif kind in ("TIFF", "AVIF"):
            _silence_metadata_warnings()
        image = _READERS[kind](io.BytesIO(plain))
        if kind in ("WebP", "AVIF"):
            orientation = _exif_orientation(image.info.get("exif", b""))
        elif kind == "TIFF":  # Pillow turns these by itself, but after XMP as well, and then its size is wrong
            image.info.pop("xmp", None)
    _check_pixel_count(kind, image.size, max_pixels)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(254) in (1, 3):  # NewSubfileType: a reduced version
        raise ValueError("the TIFF begins with a small version of its picture, as a camera's raw file does")
    if image.info.get("progressive") and plain.count(b"\xff\xda") > MAX_SCANS:
        raise ValueError(f"the JPEG picture has more than {MAX_SCANS} scans, as only one made to be slow has")
    return kind, image, orientation


def _check_pixel_count(format_name: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ValueError(
            f"the {format_name} picture has {width:,} x {height:,} pixels; no more than {max_pixels:,} are decoded"
        )


# ---- what the bytes are

_MAGIC_PATTERNS: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), kind)
    for pattern, kind in (
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
        (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture"),
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
    (re.compile(pattern, re.IGNORECASE), kind)
    for pattern, kind in (
        (rb"<(!doctype html|html|head|body)\b", "an HTML page: a login, perhaps, or an error"),
        (rb"<svg\b", "an SVG drawing"),
        (rb"<(\?xml|error)\b", "an XML document: a bucket that refuses, perhaps"),
    )
)


def _detect_format(content: bytes) -> str:
    """Which of _READERS the content is for. Raises ValueError with what it is instead."""
    if not content:
        raise ValueError("an empty file")
    kind = _detect_iso_format(content) if content[4:8] == b"ftyp" else ""
    kind = (
        kind or next((kind for magic, kind in _MAGIC_PATTERNS if magic.match(content)), "") or _describe_text(content)
    )
    if kind in _READERS:
        return kind
    if kind == "AVIF":
        raise ValueError("an AVIF picture, which this version of Pillow does not read")
    if kind.endswith("picture"):
        raise ValueError(f"{kind}, which is not read here; convert it to JPEG or PNG")
    if kind:
        raise ValueError(f"no picture but {kind}")
    raise ValueError(f"no picture of a kind that is known here: it begins with the bytes {content[:8].hex(' ')}")


def _detect_iso_format(content: bytes) -> str:
    """A file of ISO boxes, by its brands: pictures and videos share the container."""
    length = min(int.from_bytes(content[:4], "big"), 256)
    brands = {content[at : at + 4] for at in (8, *range(16, length, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}:
        return "a HEIC picture"
    return "a Canon raw file" if b"crx " in brands else "a video"


def _describe_text(content: bytes) -> str:
    """What kind of text it is; empty when it is none."""
    start = content[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] == b"<" and (markup := next((kind for tag, kind in _MARKUP_PATTERNS if tag.search(start)), "")):
        return markup
    words = start[:64].decode("utf-8", "replace")
    if len(content) > 64:
        words = words.rstrip("\N{REPLACEMENT CHARACTER}")  # a character that was cut in two
    if not words or not all(char.isprintable() or char.isspace() for char in words) or "\ufffd" in words:
        return ""
    if words[0] in "{[":
        return "JSON"
    shown = " ".join(words.split())
    return f"text that begins with {shown[:40]!r}"


# ---- headers that Pillow is better not asked for


def _strip_jpeg_metadata(content: bytes) -> tuple[bytes, int]:
    """A JPEG without its metadata, and its EXIF orientation.

    Pillow reads metadata when it opens a file and gives up where EXIF, a colour profile or a note of Photoshop's is
    broken; or it warns. What stays besides the picture is JFIF and Adobe's marker: they say what the colours mean.
    """
    kept = [content[:2]]
    orientation = 0
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # a byte to fill up
            at += 1
            continue
        if marker == 0xDA or marker in _STANDALONE_MARKERS:
            break
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        segment = content[at:end]
        if marker not in _METADATA_MARKERS:
            kept.append(segment)
        elif marker == 0xE1 and segment[4:10] == b"Exif\0\0" and not orientation:
            orientation = _exif_orientation(segment[4:])
        at = end
    kept.append(content[at:])
    return b"".join(kept), orientation or 1


_METADATA_MARKERS = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # APP1..APP13, APP15, comments
_STANDALONE_MARKERS = {0x00, 0x01, *range(0xD0, 0xDA)}  # markers without a length; none belongs before the picture


def _strip_png_metadata(content: bytes) -> tuple[bytes, int]:
    """A PNG without its metadata and without the frames of an animation, and its EXIF orientation.

    Pillow refuses a picture for a long description or a broken colour profile, and warns about odd animations.
    """
    kept: list[bytes] = []
    orientation = 1
    since = at = 8
    while at + 8 <= len(content):
        name = content[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        if name == b"eXIf":
            orientation = _exif_orientation(content[at + 8 : end - 4])
        if name not in _ESSENTIAL_PNG_CHUNKS:
            kept.append(content[since:at])
            since = end
        at = end
        if name == b"IEND":
            break
    if not kept:
        return content, orientation
    return b"".join([content[:8], *kept, content[since:]]), orientation


_ESSENTIAL_PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}


def _gif_size(content: bytes) -> tuple[int, int]:
    """Width and height of a GIF with its first frame, which may reach beyond the canvas that is announced.

    Raises IndexError or struct.error where it ends before that.
    """
    width, height = struct.unpack_from("<2H", content, 6)
    flags = content[10]
    at = 13 + (6 << (flags & 7) if flags & 0x80 else 0)
    while (block := content[at]) != 0x2C:  # until an image
        if block == 0x3B:
            raise IndexError("no frame")
        at += 1
        if block == 0x21:  # an extension: its label, then pieces with their lengths
            at += 1
            while length := content[at]:
                at += 1 + length
            at += 1
    left, top, wide, high = struct.unpack_from("<4H", content, at + 1)
    return max(width, left + wide), max(height, top + high)


_TRANSPOSED_ORIENTATIONS = (5, 6, 7, 8)
_ORIENTATION_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _exif_orientation(exif: bytes) -> int:
    """The orientation in EXIF, 1..8; 1 where there is none, or where EXIF is broken. As browsers do, only a single
    16-bit number counts."""
    exif = exif.removeprefix(b"Exif\0\0")
    for tag, kind, count, value in _iter_tiff_tags(exif):
        if tag == 0x0112:
            number = int.from_bytes(value[:2], "little" if exif[:1] == b"I" else "big")
            return number if kind == 3 and count == 1 and 1 <= number <= 8 else 1
    return 1


def _iter_tiff_tags(tiff: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Tag, type, count and the four bytes of the value, or of its place, for the first directory of a TIFF."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return
    try:
        (at,) = struct.unpack_from(f"{order}L", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * entries, 12):
            yield struct.unpack_from(f"{order}HHL4s", tiff, entry)
    except struct.error:
        return


# ---- pixels


def _to_rgb(format_name: str, image: Image.Image) -> Image.Image:
    """8 bits of red, green and blue, whatever the file has."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8bit_grey(format_name, image)
    elif image.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
        assert converted is not None  # it is only where the picture is changed in place
        return converted
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema() != (255, 255):  # an opaque picture is what most of these are
            canvas = Image.new("RGB", image.size, (255, 255, 255))
            canvas.paste(image, mask=alpha)
            return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8bit_grey(format_name: str, image: Image.Image) -> Image.Image:
    """8 bits of a grey picture that has more."""
    pixels = np.asarray(image)  # (H, W): uint16, int32 or float32
    if image.mode.startswith("I;16") or (format_name == "PPM" and image.mode == "I"):  # 0..65535
        bits = image.tag_v2.get(258) if isinstance(image, TiffImageFile) else None
        return Image.fromarray((pixels >> (4 if bits in (12, (12,)) else 8)).astype(np.uint8))
    with np.errstate(invalid="ignore"):  # a NaN may be one that signals
        pixels = pixels.astype(np.float64)
    finite = pixels[np.isfinite(pixels)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = np.nan_to_num(pixels, copy=False, nan=low, posinf=high, neginf=low)
    scaled -= low
    scaled /= high - low or 1.0
    scaled *= 255
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


# ---- what went wrong


@contextmanager
def _translate_errors(format_name: str, content: bytes) -> Iterator[None]:
    """Whatever Pillow raises over broken data (it may be anything) -> ValueError with a sentence."""
    try:
        yield
    except MemoryError as error:
        raise ValueError(f"the {format_name} picture needs more memory than there is") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"the {format_name} picture has more pixels than Pillow decodes") from error
    except Exception as error:
        raise ValueError(_describe_failure(format_name, content, error)) from error


_TRUNCATED_PATTERN = re.compile(
    "truncated|not large enough|not enough image data|end of file|unexpected end|reached EOF", re.IGNORECASE
)
_UNINFORMATIVE_PATTERN = re.compile(
    r"not identified by|cannot load this|invalid literal|could not convert|decoder error|[-\d]*$", re.IGNORECASE
)


def _describe_failure(format_name: str, content: bytes, error: Exception) -> str:
    announced = _declared_length(format_name, content)
    if announced > len(content):
        return f"the {format_name} picture is truncated: {len(content):,} of at least {announced:,} bytes are there"
    causes = (error, error.__cause__)
    ended = any(isinstance(cause, EOFError | IndexError | struct.error) for cause in causes)
    if ended or _TRUNCATED_PATTERN.search(str(error)) or _is_truncated(format_name, content):
        return f"the {format_name} picture is truncated: the file ends, after {len(content):,} bytes, before the picture does"
    said = " ".join(str(error).split()) if isinstance(error, OSError | SyntaxError | ValueError) else ""
    return f"the {format_name} picture is broken" + ("" if _UNINFORMATIVE_PATTERN.match(said) else f": {said[:200]}")


def _is_truncated(format_name: str, content: bytes) -> bool:
    """Whether the last bytes of a picture, which these three have, are missing."""
    if format_name == "JPEG":  # whose metadata may hold another one
        return content.count(b"\xff\xd8\xff") > content.count(b"\xff\xd9")
    return (format_name == "PNG" and b"IEND" not in content[-1024:]) or (
        format_name == "GIF" and not content.endswith(b";")
    )


def _declared_length(format_name: str, content: bytes) -> int:
    """The bytes that a file has at least by what it says itself; 0 when it does not say."""
    if format_name == "WebP":
        return 8 + int.from_bytes(content[4:8], "little")
    if format_name == "BMP":
        return int.from_bytes(content[2:6], "little")
    if format_name == "TIFF":
        return _tiff_end(content)
    if format_name in ("AVIF", "JPEG 2000") and content[:1] == b"\0":
        at = 0
        while at + 8 <= len(content):
            length = int.from_bytes(content[at : at + 4], "big")
            if length < 8:  # up to the end, or a length of 64 bits
                return 0
            at += length
        return at if at >= len(content) else at + 8
    return 0


def _tiff_end(content: bytes) -> int:
    """Where the first page ends, its tags and its pixels; 0 for a BigTIFF."""
    if content[2:4] not in (b"*\0", b"\0*"):
        return 0
    little = content[:1] == b"I"
    order = "<" if little else ">"
    end = int.from_bytes(content[4:8], "little" if little else "big")
    end += 2 + 12 * int.from_bytes(content[end : end + 2], "little" if little else "big")
    numbers: dict[int, tuple[int, ...]] = {}
    for tag, kind, count, value in _iter_tiff_tags(content):
        length = count * _TIFF_TYPE_SIZES.get(kind, 0)
        if length > 4:
            (place,) = struct.unpack(f"{order}L", value)
            end = max(end, place + length)
            value = content[place : place + length]
        if any(tag in pair for pair in _STRIP_TAGS) and kind in (3, 4) and len(value) >= length:
            numbers[tag] = struct.unpack_from(f"{order}{count}{'H' if kind == 3 else 'L'}", value)
    for starts, lengths in _STRIP_TAGS:
        pairs = zip(numbers.get(starts, ()), numbers.get(lengths, ()), strict=False)
        end = max([end, *(start + length for start, length in pairs)])
    return end


_TIFF_TYPE_SIZES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8), 1))  # bytes of one value of each type
_STRIP_TAGS = ((273, 279), (324, 325))  # the tags of where the strips begin and how long they are, or the tiles


_PIL_MODULES = r"PIL\."
_FILTER_LOCK = threading.Lock()


def _silence_metadata_warnings() -> None:
    """Keep quiet what Pillow warns of in TIFF and in EXIF: odd tags, which most cameras write, beside the picture.

    The filter stays; one for the length of a call would be taken away under another thread. Warnings about large
    pictures are of another category and stay as they are.
    """
    with _FILTER_LOCK:
        first = warnings.filters[0][3] if warnings.filters else None
        if first is None or first.pattern != _PIL_MODULES:
            warnings.filterwarnings("ignore", category=UserWarning, module=_PIL_MODULES)
