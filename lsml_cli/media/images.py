"""Decode the bytes of an image file to the image that a person sees: upright, RGB, 8 bits a channel.

Supported are JPEG (and MPO), PNG, GIF, WebP, BMP, TIFF, JPEG 2000, PPM and its relatives, and AVIF if Pillow was built
with it. Names and suffixes do not matter. Of an animation the first frame is decoded, of a TIFF the first page.

Where there is a choice, the result is what a browser shows, because that is what annotators see:

- The orientation is that of EXIF (of the tag of a TIFF, of the boxes of an AVIF), applied once. Orientation in XMP and
  broken EXIF are ignored. Other metadata are not read, so none of them can make an image fail (except in an AVIF, where
  Pillow insists on readable EXIF).
- Transparent pixels are white, like the canvas of Label Studio, never the colour stored beneath.
- CMYK in a JPEG is taken to be inverted, as Adobe does, and converted by the plain formula.
- Of 16 bits the upper 8 count. 32-bit integers and floating-point numbers have no agreed white: floating-point numbers
  within 0..1 are scaled by 255, everything else is stretched from its minimum to its maximum.

Unlike in a browser, colour profiles (ICC) are not applied. torchvision, MMDetection and MMOCR do not apply them either,
so models were trained without.

Pillow's settings belong to the whole process, so none is changed here, and warnings.catch_warnings is not used: it is
not thread-safe in Python 3.11. (libtiff itself prints a line to stderr about a TIFF that is broken inside; only the
whole process could silence it.)
"""

from __future__ import annotations

import io
import logging

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from lsml_cli.media.image_errors import translate_errors
from lsml_cli.media.image_formats import READERS, detect_format
from lsml_cli.media.image_metadata import (
    exif_orientation,
    gif_size,
    silence_metadata_warnings,
    strip_jpeg_metadata,
    strip_png_metadata,
)

MAX_PIXELS = 128_000_000  # pixels of an image, 4 bytes each while it is decoded; phones have up to 108 megapixels
MAX_SCANS = 100  # scans of a progressive JPEG; encoders write about 10, and each may cost as much as an image

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


# Without a handler Python prints what Pillow logs as an error to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def decode(content: bytes, *, max_pixels: int = MAX_PIXELS, min_side: int | None = None) -> Image.Image:
    """Decode an image: RGB, 8 bits a channel, upright, without metadata. Thread-safe.

    Args:
        content: Bytes of the file.
        max_pixels: An image with more pixels is rejected by its header. A GIF or a TIFF is also rejected above Pillow's
            own limit, Image.MAX_IMAGE_PIXELS (89 million by default).
        min_side: Length of the shorter side that is enough, in pixels, 1 or more; None decodes every pixel. A JPEG is
            then decoded at 1/2, 1/4 or 1/8 of its size, by DCT scaling, as long as its shorter side is not below that.
            For 224 this takes 70 % of the time at 640 x 480, and a quarter of it at 12 megapixels. The result is close
            to an image that was averaged down but not equal to it, and its sides are rounded up: use it only for models
            that resize images to a fixed size anyway.

    Raises:
        ValueError: The file is empty, no image, of an unsupported format, too large, truncated or broken; the message
            is one sentence.
    """
    format_name, image, orientation = _open_header(content, max_pixels)
    with translate_errors(format_name, content):
        if min_side is not None and isinstance(image, JpegImageFile):
            image.draft("RGB", (min_side, min_side))
        image.load()
        rgb = _to_rgb(format_name, image)
        if (transpose := _ORIENTATION_TRANSPOSES.get(orientation)) is not None:
            rgb = rgb.transpose(transpose)
    rgb.info = {}  # without an orientation that would be applied again
    return rgb


def read_size(content: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return width and height of the upright image, without decoding a pixel.

    Raises:
        ValueError: As for `decode`, as far as the header shows it.
    """
    _, image, orientation = _open_header(content, max_pixels)
    width, height = image.size
    return (height, width) if orientation in _TRANSPOSED_ORIENTATIONS else (width, height)


def _open_header(content: bytes, max_pixels: int) -> tuple[str, ImageFile, int]:
    """Open an image without decoding it; return its format, the image and its EXIF orientation, 1..8."""
    format_name = detect_format(content)
    if format_name in ("GIF", "TIFF") and Image.MAX_IMAGE_PIXELS is not None:
        max_pixels = min(max_pixels, Image.MAX_IMAGE_PIXELS)  # Pillow warns about larger ones while it reads them
    if format_name == "GIF":  # Pillow allocates the canvas before it tells the size
        with translate_errors(format_name, content):
            canvas = gif_size(content)
        _check_pixel_count(format_name, canvas, max_pixels)
    with translate_errors(format_name, content):
        stripped, image, orientation = _open_without_metadata(format_name, content)
    _check_pixel_count(format_name, image.size, max_pixels)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(254) in (1, 3):  # NewSubfileType: a reduced version
        raise ValueError("the TIFF begins with a small version of its image, as a camera's raw file does")
    if image.info.get("progressive") and stripped.count(b"\xff\xda") > MAX_SCANS:
        raise ValueError(f"the JPEG image has more than {MAX_SCANS} scans, as only one made to be slow has")
    return format_name, image, orientation


def _open_without_metadata(format_name: str, content: bytes) -> tuple[bytes, ImageFile, int]:
    """Return the bytes that Pillow reads, the opened image, and its EXIF orientation, 1..8."""
    orientation = 1
    if format_name == "JPEG":
        content, orientation = strip_jpeg_metadata(content)
    elif format_name == "PNG":
        content, orientation = strip_png_metadata(content)
    elif format_name in ("TIFF", "AVIF"):
        silence_metadata_warnings()
    image = READERS[format_name](io.BytesIO(content))
    if format_name in ("WebP", "AVIF"):
        orientation = exif_orientation(image.info.get("exif", b""))
    elif format_name == "TIFF":  # Pillow turns these itself, but also by XMP, and then its size is wrong
        image.info.pop("xmp", None)
    return content, image, orientation


def _check_pixel_count(format_name: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ValueError(
            f"the {format_name} image has {width:,} x {height:,} pixels; no more than {max_pixels:,} are decoded"
        )


def _to_rgb(format_name: str, image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, 8 bits a channel."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8bit_grey(format_name, image)
    elif image.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
        assert converted is not None  # None is for changes in place
        return converted
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema() != (255, 255):  # most images with an alpha channel are opaque
            canvas = Image.new("RGB", image.size, (255, 255, 255))
            canvas.paste(image, mask=alpha)
            return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8bit_grey(format_name: str, image: Image.Image) -> Image.Image:
    """Convert a grey image of 16 or 32 bits to 8 bits."""
    pixels = np.asarray(image)  # (H, W): uint16, int32 or float32
    if image.mode.startswith("I;16") or (format_name == "PPM" and image.mode == "I"):  # 0..65535
        bits = image.tag_v2.get(258) if isinstance(image, TiffImageFile) else None
        return Image.fromarray((pixels >> (4 if bits in (12, (12,)) else 8)).astype(np.uint8))
    with np.errstate(invalid="ignore"):  # a signalling NaN raises
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
