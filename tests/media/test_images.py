"""Decode images: upright, RGB, 8 bits; one sentence for a file that is no image, truncated or broken."""

from __future__ import annotations

import io
import random
import struct
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, TiffImagePlugin

from lsml_cli.media import images
from lsml_cli.media.image_formats import READERS

QUICK: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}

Y, X = np.mgrid[:48, :64]
# Noise, so that compressed files are long enough to be cut.
GRAIN = np.random.default_rng(7).integers(0, 10, (48, 64, 3))
IMAGE = Image.fromarray((np.stack([X * 3, Y * 5, X + Y], axis=-1) + GRAIN).astype(np.uint8))
OTHER = IMAGE.rotate(180)
avif = pytest.mark.skipif("AVIF" not in READERS, reason="this Pillow reads no AVIF")


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif_with_orientation(orientation: object, tag: int = 0x0112) -> Image.Exif:
    exif = Image.Exif()
    exif[tag] = orientation
    return exif


def rejection_message(content: bytes, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        images.decode(content, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 300
    assert " at 0x" not in sentence
    return sentence


def is_same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    """Return the mean difference of two images of the same size, 0..255."""
    assert one.size == other.size
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


# ---- every format


LOSSLESS: dict[str, Callable[[], bytes]] = {
    "png": lambda: encode(IMAGE, "PNG"),
    "webp": lambda: encode(IMAGE, "WEBP", lossless=True),
    "bmp": lambda: encode(IMAGE, "BMP"),
    "tiff": lambda: encode(IMAGE, "TIFF"),
    "tiff-lzw": lambda: encode(IMAGE, "TIFF", compression="tiff_lzw"),
    "tiff-deflate": lambda: encode(IMAGE, "TIFF", compression="tiff_deflate"),
    "bigtiff": lambda: encode(IMAGE, "TIFF", big_tiff=True),
    "jpeg-2000": lambda: encode(IMAGE, "JPEG2000", irreversible=False),
    "j2k": lambda: encode(IMAGE, "JPEG2000", irreversible=False, no_jp2=True),
    "ppm": lambda: encode(IMAGE, "PPM"),
}
LOSSY: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encode(IMAGE, "JPEG", quality=95),
    "progressive": lambda: encode(IMAGE, "JPEG", quality=95, progressive=True),
    "mpo": lambda: encode(IMAGE, "MPO", quality=95, save_all=True, append_images=[OTHER]),
    "webp-lossy": lambda: encode(IMAGE, "WEBP", quality=95),
    "tiff-jpeg": lambda: encode(IMAGE, "TIFF", compression="jpeg", quality=95),
    "gif": lambda: encode(IMAGE.quantize(256), "GIF"),
}
FORMATS = LOSSLESS | LOSSY


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_decode_exactly(kind):
    content = LOSSLESS[kind]()
    assert is_same(images.decode(content), IMAGE)
    assert images.read_size(content) == IMAGE.size


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_formats_decode_to_similar_image(kind):
    content = LOSSY[kind]()
    image = images.decode(content)
    assert image.mode == "RGB"
    assert images.read_size(content) == IMAGE.size
    assert mean_difference(image, IMAGE) < 12
    assert mean_difference(image, OTHER) > 40


@avif
def test_avif_decodes():
    content = encode(IMAGE, "AVIF", quality=95)
    assert images.read_size(content) == IMAGE.size
    assert mean_difference(images.decode(content), IMAGE) < 12


def test_unsupported_avif_is_named(monkeypatch):
    monkeypatch.delitem(READERS, "AVIF", raising=False)
    content = struct.pack(">I", 24) + b"ftypmif1\0\0\0\0avifmif1" + bytes(40)
    assert rejection_message(content) == "an AVIF image, which this version of Pillow does not read"


@pytest.mark.parametrize("kind", FORMATS)
def test_one_pixel_image_decodes(kind):
    pixel = Image.new("RGB", (1, 1), (255, 255, 255))
    options = {"compression": "tiff_lzw"} if "lzw" in kind else {}
    name = {"png": "PNG", "bmp": "BMP", "ppm": "PPM", "gif": "GIF", "mpo": "JPEG", "j2k": "JPEG2000"}.get(kind)
    name = name or ("TIFF" if "tiff" in kind else "WEBP" if "webp" in kind else "JPEG")
    content = encode(pixel, name, **options)
    assert images.read_size(content) == (1, 1)
    assert images.decode(content, min_side=1).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png", "gif", "bmp", "ppm"])
def test_trailing_bytes_are_ignored(kind):
    content = FORMATS[kind]()
    assert is_same(images.decode(content + b"\0trailing\xff\xd8\xff" * 50), images.decode(content))


# ---- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", pytest.param("AVIF", marks=avif)])
def test_orientation_matches_pillow(kind, orientation):
    content = encode(IMAGE, kind, exif=exif_with_orientation(orientation))
    image = images.decode(content)
    with Image.open(io.BytesIO(content)) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    assert is_same(image, expected)
    assert images.read_size(content) == image.size == ((48, 64) if orientation > 4 else (64, 48))
    assert is_same(ImageOps.exif_transpose(image), image)  # a second call would not turn it again


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_of_either_byte_order_is_read(order):
    mark = b"II*\0" if order == "<" else b"MM\0*"
    exif = b"Exif\0\0" + mark + struct.pack(f"{order}LHHHLHHL", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    assert images.read_size(encode(IMAGE, "JPEG", exif=exif)) == (48, 64)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def test_exif_after_png_pixels_is_read():
    content = encode(IMAGE, "PNG")
    exif = exif_with_orientation(6).tobytes().removeprefix(b"Exif\0\0")
    late = content[:-12] + chunk(b"eXIf", exif) + content[-12:]
    assert images.read_size(late) == images.decode(late).size == (48, 64)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_xmp_orientation_is_ignored(kind):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    if kind == "PNG":
        content = encode(IMAGE, kind)
        content = content[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + content[33:]
    elif kind == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[700] = xmp
        content = encode(IMAGE, kind, tiffinfo=tags)
    else:
        content = encode(IMAGE, kind, xmp=xmp)
    assert images.read_size(content) == images.decode(content).size == (64, 48)


@pytest.mark.parametrize(
    "exif",
    [
        *(
            b"",
            b"x",
            b"II",
            b"II*\0",
            b"II*\0\xff\xff\xff\xff",
            b"MM\0*\0\0\0\x08",
            b"MM\0*\0\0\0\x08\xff\xff",
            bytes(64),
        ),
        exif_with_orientation(0).tobytes(),
        exif_with_orientation(9).tobytes(),
        b"II*\0" + struct.pack("<LHHHL4sL", 8, 1, 0x0112, 2, 4, b"six\0", 0),
        b"II*\0" + struct.pack("<LHHHLHHL", 8, 1, 0x0112, 3, 2, 6, 6, 0),
        b"II*\0" + struct.pack("<LHHH", 8, 1, 0x0112, 3),
        b"II*\0" + struct.pack("<LHHHLL", 8, 9999, 0x010F, 2, 1 << 31, 1 << 31),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_ignored(kind, exif):
    exif = b"Exif\0\0" + exif.removeprefix(b"Exif\0\0")
    content = encode(IMAGE, "JPEG", dpi=(0, 0), exif=exif) if kind == "JPEG" else encode(IMAGE, kind, exif=exif)
    plain = encode(IMAGE, kind)
    assert is_same(images.decode(content), images.decode(plain))
    assert images.read_size(content) == IMAGE.size


@given(seed=st.integers(0, 2**32), marker=st.integers(0, 10))
@settings(max_examples=150, **QUICK)
def test_jpeg_metadata_never_fails_decoding(seed, marker):
    """Any content of APP1..13, also after the identifiers that Pillow parses."""
    names = [
        b"Exif\0\0",
        b"ICC_PROFILE\0",
        b"Photoshop 3.0\0" + b"8BIM",
        b"MPF\0",
        b"http://ns.adobe.com/xap/1.0/\0",
        b"",
    ]
    body = random.Random(seed).choice(names) + random.Random(seed).randbytes(seed % 40)
    segment = b"\xff" + bytes([0xE1 + marker]) + struct.pack(">H", len(body) + 2) + body
    content = FORMATS["jpeg"]()
    assert is_same(images.decode(content[:20] + segment + content[20:]), images.decode(content))


def test_png_metadata_never_fails_decoding():
    content = encode(IMAGE, "PNG")
    odd = [
        chunk(b"iCCP", b"profile\0\7broken"),
        chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(5 << 20))),  # more than Pillow unpacks
        chunk(b"acTL", struct.pack(">2I", 0, 0)),
        chunk(b"fcTL", b"short"),
        chunk(b"gAMA", b""),
        chunk(b"tEXt", b"x")[:-1] + b"?",  # a wrong checksum
        chunk(b"prVt", b"x" * 1000),
    ]
    for case in [*([one] for one in odd), odd]:
        assert is_same(images.decode(content[:33] + b"".join(case) + content[33:]), IMAGE)


def test_odd_tiff_tags_give_no_warning():
    """Pillow warns about these, and in tests a warning is an error."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[65000] = bytes(100)
    content = bytearray(encode(IMAGE, "TIFF", tiffinfo=tags))
    tag = content.index(struct.pack("<H", 65000))
    content[tag + 8 : tag + 12] = struct.pack("<L", 1 << 30)  # an offset after the end of the file
    for _ in range(2):  # other filters may have been inserted before
        assert is_same(images.decode(bytes(content)), IMAGE)
        warnings.simplefilter("error")


# ---- colours


def encode_cmyk(ink: tuple[int, ...]) -> bytes:
    return encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)


def pixel_at(image: Image.Image, position: tuple[int, int]) -> tuple[int, ...]:
    pixel = image.getpixel(position)
    assert isinstance(pixel, tuple)
    return pixel


INKS = [((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))]


@pytest.mark.parametrize(("ink", "colour"), INKS)
@pytest.mark.parametrize("kind", ["CMYK", "YCCK", "TIFF"])
def test_cmyk_is_converted(kind, ink, colour):
    if kind == "TIFF":
        content = encode(Image.new("CMYK", (16, 16), ink), "TIFF")
    elif kind == "CMYK":
        content = encode_cmyk(ink)
    else:
        luma = pixel_at(Image.new("RGB", (1, 1), ink[:3]).convert("YCbCr"), (0, 0))
        content = encode_cmyk((*(255 - value for value in luma), ink[3]))
        adobe = content.index(b"Adobe")
        content = content[: adobe + 11] + b"\2" + content[adobe + 12 :]  # says that the first three are YCC
    pixel = pixel_at(images.decode(content), (8, 8))
    assert max(abs(one - other) for one, other in zip(pixel, colour, strict=True)) <= 4


def test_16_bit_images_keep_upper_8_bits():
    steps = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    grey = (steps >> 8).astype(np.uint8)
    for kind in ("PNG", "TIFF", "JPEG2000"):
        image = images.decode(encode(Image.fromarray(steps), kind))
        assert (np.asarray(image) == grey[..., None]).all()
    swapped = b"MM\0*" + encode_big_endian_tiff_tail(steps)
    assert (np.asarray(images.decode(swapped)) == grey[..., None]).all()
    portable = b"P5 64 64 65535\n" + steps.astype(">u2").tobytes()
    assert (np.asarray(images.decode(portable)) == grey[..., None]).all()


def encode_big_endian_tiff_tail(pixels: np.ndarray) -> bytes:
    """Return a big-endian grey TIFF of 16 bits, without its first four bytes."""
    height, width = pixels.shape
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 8 + 2 + 12 * 9 + 4), (277, 1)]
    tags += [(278, height), (279, pixels.size * 2)]
    entries = b"".join(struct.pack(">HHLL", tag, 4, 1, value) for tag, value in tags)
    return struct.pack(">LH", 8, len(tags)) + entries + bytes(4) + pixels.astype(">u2").tobytes()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.25, 0.5, 0.5], [64, 128, 128]),
        ([-10.0, 0.0, 10.0], [0, 128, 255]),
        ([0.0, 1000.0, 4000.0], [0, 64, 255]),
        ([float("nan"), 5.0, 7.0], [0, 0, 255]),
        ([-float("inf"), 5.0, float("inf"), 7.0], [0, 0, 255, 255]),
        ([3e38, -3e38, 0.0], [255, 0, 128]),
        ([float("nan")] * 3, [0, 0, 0]),
        ([7.0] * 3, [0, 0, 0]),
    ],
)
def test_float_images_are_scaled(values, expected):
    image = images.decode(encode(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF"))
    assert np.asarray(image)[0, :, 0].tolist() == expected


def test_32_bit_images_are_stretched():
    pixels = np.array([[-(2**31), 0, 2**31 - 1]], dtype=np.int32)
    assert np.asarray(images.decode(encode(Image.fromarray(pixels), "TIFF")))[0, :, 0].tolist() == [0, 128, 255]


def test_lab_is_converted():
    for lab, colour in (((255, 128, 128), (255, 255, 255)), ((0, 128, 128), (0, 0, 0)), ((138, 208, 195), (255, 0, 0))):
        content = encode(Image.new("LAB", (4, 4), lab), "TIFF")
        pixel = pixel_at(images.decode(content), (0, 0))
        assert max(abs(one - other) for one, other in zip(pixel, colour, strict=True)) <= 12, lab


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA"])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP"])
def test_every_mode_becomes_rgb(mode, kind):
    content = encode(IMAGE.convert(mode), kind)
    image = images.decode(content)
    assert image.mode == "RGB"
    assert image.size == IMAGE.size
    if mode in ("RGB", "RGBA") and kind != "GIF":
        assert mean_difference(image, IMAGE) < 12


def test_transparent_pixels_are_white():
    """The colour stored beneath, here red, which convert("RGB") shows, must not appear."""
    red = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    red.paste((255, 0, 0, 0), (0, 0, 2, 4))
    red.paste((0, 0, 0, 128), (2, 0, 4, 2))
    for content in (encode(red, "PNG"), encode(red, "WEBP", lossless=True, exact=True), encode(red, "TIFF")):
        image = images.decode(content)
        assert [image.getpixel(at) for at in ((0, 0), (3, 3), (3, 0))] == [(255,) * 3, (255, 0, 0), (127,) * 3]
    stripes = Image.fromarray((X[:4, :4] * 60).astype(np.uint8))
    keyed = [
        encode(Image.new("P", (4, 4), 0), "GIF", transparency=0),
        encode(Image.new("P", (4, 4), 0), "PNG", transparency=0),
        encode(Image.merge("RGB", [stripes, stripes, stripes]).quantize(4), "PNG", transparency=bytes(4)),
        encode(Image.new("L", (4, 4), 7), "PNG", transparency=7),
        encode(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
        encode(Image.new("1", (4, 4), 0), "PNG", transparency=0),
        encode(Image.new("LA", (4, 4), (9, 0)), "PNG"),
    ]
    for content in keyed:
        assert images.decode(content).getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", pytest.param("AVIF", marks=avif)])
def test_first_frame_is_decoded(kind):
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    first, *rest = (Image.new("RGB", (20, 10), colour) for colour in colours)
    content = encode(first, kind, save_all=True, append_images=rest)
    red, green, blue = pixel_at(images.decode(content), (5, 5))
    assert red > 230
    assert green < 20 > blue


def test_gif_frame_may_exceed_canvas():
    content = bytearray(encode(Image.new("L", (20, 10), 200), "GIF"))
    content[6:10] = struct.pack("<2H", 5, 5)
    assert images.read_size(bytes(content)) == images.decode(bytes(content)).size == (20, 10)


# ---- photographs


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> list[bytes]:
    paths = [*sorted((shared_data / "coco128" / "images").glob("*.jpg"))[:20]]
    paths += sorted((shared_data / "ants-bees" / "ants").glob("*.jpg"))[:20]
    return [path.read_bytes() for path in paths]


def test_photographs_match_pillow(photographs):
    for content in photographs:
        with Image.open(io.BytesIO(content)) as opened:
            expected = ImageOps.exif_transpose(opened).convert("RGB")
        assert is_same(images.decode(content), expected)
        assert images.read_size(content) == expected.size


@pytest.mark.parametrize("min_side", [1, 64, 224, 300, 5000])
def test_min_side_gives_similar_smaller_image(photographs, min_side):
    for content in photographs:
        whole = images.decode(content)
        small = images.decode(content, min_side=min_side)
        scale = next(scale for scale in (8, 4, 2, 1) if scale == 1 or min(whole.size) // scale >= min_side)
        assert small.size == tuple(-(-side // scale) for side in whole.size)
        assert min(small.size) >= min(min_side, *whole.size)
        assert mean_difference(small, whole.reduce(scale)) < 5


def test_min_side_applies_to_upright_shorter_side():
    tall = encode(Image.new("RGB", (800, 400)), "JPEG", exif=exif_with_orientation(6))
    assert images.decode(tall, min_side=100).size == (100, 200)
    assert images.decode(encode(IMAGE, "PNG"), min_side=6).size == IMAGE.size


def test_decoding_is_thread_safe(photographs):
    contents = [
        *photographs,
        *(make() for make in FORMATS.values()),
        encode(IMAGE, "JPEG", exif=exif_with_orientation(8)),
    ]
    expected = [images.decode(content).tobytes() for content in contents]
    broken = [content[: len(content) // 2] for content in contents]
    reasons = [rejection_message(content) for content in broken]

    def check(n: int) -> bool:
        if n % 2:
            return rejection_message(broken[n % len(broken)]) == reasons[n % len(broken)]
        return images.decode(contents[n % len(contents)]).tobytes() == expected[n % len(contents)]

    order = list(range(6 * len(contents) + 1))
    random.Random(1).shuffle(order)
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(check, order))


# ---- too large


def huge_png(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


def huge_tiff(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 8)]
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4)


def huge_jpeg(width: int, height: int) -> bytes:
    content = encode(IMAGE, "JPEG")
    frame = content.index(b"\xff\xc0")
    return content[: frame + 5] + struct.pack(">2H", height, width) + content[frame + 9 :]


def huge_gif(width: int, height: int) -> bytes:
    content = encode(Image.new("L", (8, 8)), "GIF")
    return content[:6] + struct.pack("<2H", width, height) + content[10:]


def huge_gif_frame(width: int, height: int) -> bytes:
    """A small canvas, a frame beyond it, and a disposal method that makes Pillow fill a second one."""
    extension = b"!\xf9\x04\x08\0\0\0\0"
    frame = b"," + struct.pack("<4H", 0, 0, width, height) + b"\0\x08\x01\0\0;"
    return b"GIF89a" + struct.pack("<2H", 1, 1) + b"\0\0\0" + extension + frame


def huge_webp(width: int, height: int) -> bytes:
    content = bytearray(encode(IMAGE, "WEBP", save_all=True, append_images=[OTHER]))
    assert content[12:16] == b"VP8X"
    content[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(content)


def huge_bmp(width: int, height: int) -> bytes:
    content = encode(IMAGE, "BMP")
    return content[:18] + struct.pack("<2i", width, height) + content[26:]


HUGE_IMAGES = [huge_png, huge_tiff, huge_jpeg, huge_gif, huge_gif_frame, huge_webp, huge_bmp]


@pytest.mark.parametrize("bomb", HUGE_IMAGES)
def test_too_large_images_are_rejected_by_header(bomb):
    content = bomb(65500, 65500)
    started = time.monotonic()
    assert "pixels" in rejection_message(content)
    with pytest.raises(ValueError, match="pixels"):
        images.read_size(content)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("bomb", HUGE_IMAGES)
def test_no_warning_between_pillows_limits(bomb, no_warnings):
    """Pillow warns above 89 million pixels and fails above 179 million."""
    content = bomb(10_000, 9_500)
    max_pixels = Image.MAX_IMAGE_PIXELS if bomb in (huge_tiff, huge_gif, huge_gif_frame) else 94_999_999
    assert f"10,000 x 9,500 pixels; no more than {max_pixels:,} are" in rejection_message(
        content, max_pixels=94_999_999
    )
    if bomb in (huge_png, huge_jpeg, huge_webp, huge_bmp):
        assert images.read_size(content) == (10_000, 9_500)


def test_max_pixels_is_a_limit():
    for make in FORMATS.values():
        images.decode(make(), max_pixels=64 * 48)
        assert "64 x 48 pixels; no more than 3,071 are decoded" in rejection_message(make(), max_pixels=64 * 48 - 1)


def test_jpeg_with_too_many_scans_is_rejected():
    content = encode(Image.new("L", (64, 64)), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    assert "more than 100 scans" in rejection_message(content[:-2] + content[last:-2] * 200 + b"\xff\xd9")
    assert "scans" not in str(images.decode(content + b"\xff\xda" * 50).size)


# ---- other files


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "an empty file"),
        (b"\n <!DOCTYPE html>\n<html><body><svg/>", "not an image but an HTML page"),
        (b"\xef\xbb\xbf<!-- hi --><html>", "not an image but an HTML page"),
        (b"<HTML>", "not an image but an HTML page"),
        (b'<?xml version="1.0"?><!DOCTYPE html><html>', "not an image but an HTML page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg">', "not an image but an SVG drawing"),
        (b"<svg>", "not an image but an SVG drawing"),
        (b"<?xml?><Error><Code>AccessDenied</Code></Error>", "not an image but an XML document"),
        (b'{"error": "not pixel"}', "not an image but JSON"),
        (b"[1, 2]", "not an image but JSON"),
        (b"Not   pixel\n", "not an image but text that begins with 'Not pixel'"),
        (b"Zugriff verweigert: " + "ü".encode() * 40, "text that begins with 'Zugriff verweigert: üüü"),
        (b"%PDF-1.7\n%\xe2", "not an image but a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image but a PostScript document"),
        (b"PK\3\4" + bytes(40), "not an image but a ZIP archive"),
        (b"\x1f\x8b\x08" + bytes(40), "not an image but a gzip archive"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isommp42", "not an image but a video"),
        (b"\x1a\x45\xdf\xa3" + bytes(40), "not an image but a video"),
        (b"RIFF\1\2\3\4AVI LIST", "not an image but a video"),
        (b"RIFF\1\2\3\4WAVEfmt ", "not an image but a sound"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image, which is not supported; convert it to JPEG or PNG"),
        (b"\xff\x0a" + bytes(9), "a JPEG XL image, which is not supported"),
        (b"8BPS\0\1", "not an image but a Photoshop document"),
        (b"II*\0\x10\0\0\0CR\2\0", "not an image but a Canon raw file"),
        (b"\0\0\1\0\1\0" + bytes(40), "not an image but a Windows icon"),
        (bytes(128) + b"DICM", "not an image but a DICOM file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "not an image but a Git LFS pointer"),
        (bytes(5000), "not an image but zeros"),
        (b"\1\2\3\4\5\6\7\x08\x09", "a known format: it begins with the bytes 01 02 03 04 05 06 07 08"),
        (b"BM is a company", "not an image but text that begins with 'BM is a company'"),
    ],
)
def test_other_files_are_named(content, sentence):
    assert sentence in rejection_message(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        images.read_size(content)
    assert sentence in str(caught.value)


def test_reduced_image_of_raw_file_is_rejected():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 1
    assert "small version" in rejection_message(encode(IMAGE, "TIFF", tiffinfo=tags))


# ---- truncated and broken


@pytest.fixture
def no_warnings() -> Iterator[None]:
    """Fail on every warning, also on one that became an error and was caught."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated_files_are_rejected(kind, part, no_warnings):
    content = FORMATS["jpeg" if kind == "mpo" else kind]()  # the second half of an MPO is not needed
    sentence = rejection_message(content[: int(len(content) * part)])
    assert "image is truncated" in sentence or (kind in ("bigtiff", "j2k") and "image is broken" in sentence)


def test_truncated_message_has_declared_length():
    for kind in ("webp", "bmp", "tiff", "jpeg-2000"):
        content = FORMATS[kind]()
        assert f"{len(content) - 400:,} of at least {len(content):,} bytes are there" in rejection_message(
            content[:-400]
        )


def test_jpeg_truncated_after_preview_is_rejected():
    preview = encode(IMAGE.resize((8, 8)), "JPEG")
    content = encode(IMAGE, "JPEG", exif=b"Exif\0\0" + preview)
    start = content.index(preview) + len(preview)
    for end in (start - 100, start, start + 30):
        assert "truncated" in rejection_message(content[:end])


ALL = FORMATS | {
    "apng": lambda: encode(IMAGE, "PNG", save_all=True, append_images=[OTHER]),
    "animated-gif": lambda: encode(IMAGE.quantize(64), "GIF", save_all=True, append_images=[OTHER], disposal=2),
    "animated-webp": lambda: encode(IMAGE, "WEBP", save_all=True, append_images=[OTHER]),
    "transparent": lambda: encode(IMAGE.quantize(8), "PNG", transparency=b"\0\x80"),
    "16-bit": lambda: encode(Image.fromarray((X * 1000).astype(np.uint16)), "TIFF", compression="tiff_deflate"),
    "float": lambda: encode(IMAGE.convert("F"), "TIFF"),
    "cmyk": lambda: encode(IMAGE.convert("CMYK"), "JPEG"),
    "exif": lambda: encode(IMAGE, "JPEG", exif=exif_with_orientation(6)),
    "tiff-exif": lambda: encode(IMAGE, "TIFF", exif=exif_with_orientation(6)),
    "rle": lambda: encode(IMAGE.quantize(4), "TIFF", compression="packbits"),
}
if "AVIF" in READERS:
    ALL["avif"] = lambda: encode(IMAGE, "AVIF")
SAMPLES = {kind: make() for kind, make in ALL.items()}


@given(data=st.data(), kind=st.sampled_from(sorted(SAMPLES)))
@settings(max_examples=1500, **QUICK)
def test_mutated_files_decode_or_give_one_sentence(data, kind, no_warnings):
    """Cut or change the file anywhere, more often in the header than in the pixels."""
    content = bytearray(SAMPLES[kind])
    offsets = st.one_of(st.integers(0, min(len(content), 200) - 1), st.integers(0, len(content) - 1))
    for offset, value in data.draw(st.lists(st.tuples(offsets, st.integers(0, 255)), max_size=4)):
        content[offset] = value
    if data.draw(st.booleans()):
        del content[data.draw(offsets) :]
    broken = bytes(content)
    started = time.monotonic()
    header, image = (attempt(call, broken) for call in (images.read_size, images.decode))
    if isinstance(image, Image.Image):
        assert image.mode == "RGB"
        assert image.size == header
        assert len(image.tobytes()) == 3 * image.width * image.height
    assert time.monotonic() - started < 5


def attempt(call: Callable[..., Any], content: bytes) -> object:
    """Return the result or the message of a ValueError; other exceptions propagate."""
    try:
        return call(content, max_pixels=1_000_000)
    except ValueError as error:
        sentence = str(error)
    assert sentence
    assert "\n" not in sentence
    return sentence


@given(content=st.binary(max_size=64), start=st.sampled_from([content[:16] for content in SAMPLES.values()] + [b""]))
@settings(max_examples=500, **QUICK)
def test_any_bytes_after_magic_decode_or_give_one_sentence(content, start, no_warnings):
    attempt(images.decode, start + content)
