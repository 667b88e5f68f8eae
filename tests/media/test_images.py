"""Bytes -> pictures: upright, RGB, 8 bits; and a sentence for whatever is no picture, or is broken."""

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

QUICK: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}

Y, X = np.mgrid[:48, :64]
GRAIN = np.random.default_rng(7).integers(0, 10, (48, 64, 3))  # without it nothing is left to be cut off
PICTURE = Image.fromarray((np.stack([X * 3, Y * 5, X + Y], axis=-1) + GRAIN).astype(np.uint8))
OTHER = PICTURE.rotate(180)
avif = pytest.mark.skipif("AVIF" not in images._READERS, reason="this Pillow reads no AVIF")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: object, tag: int = 0x0112) -> Image.Exif:
    exif = Image.Exif()
    exif[tag] = orientation
    return exif


def refusal(content: bytes, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        images.decode(content, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 300
    assert " at 0x" not in sentence
    return sentence


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


def apart(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of two pictures of one size, 0..255."""
    assert one.size == other.size
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


# ---- every kind


LOSSLESS: dict[str, Callable[[], bytes]] = {
    "png": lambda: encoded(PICTURE, "PNG"),
    "webp": lambda: encoded(PICTURE, "WEBP", lossless=True),
    "bmp": lambda: encoded(PICTURE, "BMP"),
    "tiff": lambda: encoded(PICTURE, "TIFF"),
    "tiff-lzw": lambda: encoded(PICTURE, "TIFF", compression="tiff_lzw"),
    "tiff-deflate": lambda: encoded(PICTURE, "TIFF", compression="tiff_deflate"),
    "bigtiff": lambda: encoded(PICTURE, "TIFF", big_tiff=True),
    "jpeg-2000": lambda: encoded(PICTURE, "JPEG2000", irreversible=False),
    "j2k": lambda: encoded(PICTURE, "JPEG2000", irreversible=False, no_jp2=True),
    "ppm": lambda: encoded(PICTURE, "PPM"),
}
LOSSY: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded(PICTURE, "JPEG", quality=95),
    "progressive": lambda: encoded(PICTURE, "JPEG", quality=95, progressive=True),
    "mpo": lambda: encoded(PICTURE, "MPO", quality=95, save_all=True, append_images=[OTHER]),
    "webp-lossy": lambda: encoded(PICTURE, "WEBP", quality=95),
    "tiff-jpeg": lambda: encoded(PICTURE, "TIFF", compression="jpeg", quality=95),
    "gif": lambda: encoded(PICTURE.quantize(256), "GIF"),
}
KINDS = LOSSLESS | LOSSY


@pytest.mark.parametrize("kind", LOSSLESS)
def test_what_was_encoded_comes_back(kind):
    content = LOSSLESS[kind]()
    assert same(images.decode(content), PICTURE)
    assert images.read_size(content) == PICTURE.size


@pytest.mark.parametrize("kind", LOSSY)
def test_what_was_encoded_comes_back_nearly(kind):
    content = LOSSY[kind]()
    picture = images.decode(content)
    assert picture.mode == "RGB"
    assert images.read_size(content) == PICTURE.size
    assert apart(picture, PICTURE) < 12
    assert apart(picture, OTHER) > 40


@avif
def test_avif():
    content = encoded(PICTURE, "AVIF", quality=95)
    assert images.read_size(content) == PICTURE.size
    assert apart(images.decode(content), PICTURE) < 12


def test_avif_without_a_reader_is_named(monkeypatch):
    monkeypatch.delitem(images._READERS, "AVIF", raising=False)
    content = struct.pack(">I", 24) + b"ftypmif1\0\0\0\0avifmif1" + bytes(40)
    assert refusal(content) == "an AVIF picture, which this version of Pillow does not read"


@pytest.mark.parametrize("kind", KINDS)
def test_one_pixel(kind):
    pixel = Image.new("RGB", (1, 1), (255, 255, 255))
    options = {"compression": "tiff_lzw"} if "lzw" in kind else {}
    name = {"png": "PNG", "bmp": "BMP", "ppm": "PPM", "gif": "GIF", "mpo": "JPEG", "j2k": "JPEG2000"}.get(kind)
    name = name or ("TIFF" if "tiff" in kind else "WEBP" if "webp" in kind else "JPEG")
    content = encoded(pixel, name, **options)
    assert images.read_size(content) == (1, 1)
    assert images.decode(content, min_side=1).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png", "gif", "bmp", "ppm"])
def test_what_follows_the_picture_does_not_matter(kind):
    content = KINDS[kind]()
    assert same(images.decode(content + b"\0trailing\xff\xd8\xff" * 50), images.decode(content))


# ---- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", pytest.param("AVIF", marks=avif)])
def test_pictures_are_upright(kind, orientation):
    content = encoded(PICTURE, kind, exif=turned(orientation))
    picture = images.decode(content)
    with Image.open(io.BytesIO(content)) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    assert same(picture, expected)
    assert images.read_size(content) == picture.size == ((48, 64) if orientation > 4 else (64, 48))
    assert same(ImageOps.exif_transpose(picture), picture)  # nobody turns it again


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_in_either_order_of_bytes(order):
    mark = b"II*\0" if order == "<" else b"MM\0*"
    exif = b"Exif\0\0" + mark + struct.pack(f"{order}LHHHLHHL", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    assert images.read_size(encoded(PICTURE, "JPEG", exif=exif)) == (48, 64)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def test_exif_behind_the_pixels_of_a_png_counts():
    content = encoded(PICTURE, "PNG")
    exif = turned(6).tobytes().removeprefix(b"Exif\0\0")
    late = content[:-12] + chunk(b"eXIf", exif) + content[-12:]
    assert images.read_size(late) == images.decode(late).size == (48, 64)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_orientation_in_xmp_does_not_count(kind):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    if kind == "PNG":
        content = encoded(PICTURE, kind)
        content = content[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + content[33:]
    elif kind == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[700] = xmp
        content = encoded(PICTURE, kind, tiffinfo=tags)
    else:
        content = encoded(PICTURE, kind, xmp=xmp)
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
        turned(0).tobytes(),
        turned(9).tobytes(),
        b"II*\0" + struct.pack("<LHHHL4sL", 8, 1, 0x0112, 2, 4, b"six\0", 0),
        b"II*\0" + struct.pack("<LHHHLHHL", 8, 1, 0x0112, 3, 2, 6, 6, 0),
        b"II*\0" + struct.pack("<LHHH", 8, 1, 0x0112, 3),
        b"II*\0" + struct.pack("<LHHHLL", 8, 9999, 0x010F, 2, 1 << 31, 1 << 31),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_no_exif(kind, exif):
    exif = b"Exif\0\0" + exif.removeprefix(b"Exif\0\0")
    content = encoded(PICTURE, "JPEG", dpi=(0, 0), exif=exif) if kind == "JPEG" else encoded(PICTURE, kind, exif=exif)
    plain = encoded(PICTURE, kind)
    assert same(images.decode(content), images.decode(plain))
    assert images.read_size(content) == PICTURE.size


@given(seed=st.integers(0, 2**32), place=st.integers(0, 10))
@settings(max_examples=150, **QUICK)
def test_nothing_in_the_metadata_of_a_jpeg_spoils_it(seed, place):
    """Whatever stands in APP1..13, also behind the names that Pillow looks into."""
    names = [
        b"Exif\0\0",
        b"ICC_PROFILE\0",
        b"Photoshop 3.0\0" + b"8BIM",
        b"MPF\0",
        b"http://ns.adobe.com/xap/1.0/\0",
        b"",
    ]
    body = random.Random(seed).choice(names) + random.Random(seed).randbytes(seed % 40)
    segment = b"\xff" + bytes([0xE1 + place]) + struct.pack(">H", len(body) + 2) + body
    content = KINDS["jpeg"]()
    assert same(images.decode(content[:20] + segment + content[20:]), images.decode(content))


def test_nothing_in_the_metadata_of_a_png_spoils_it():
    content = encoded(PICTURE, "PNG")
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
        assert same(images.decode(content[:33] + b"".join(case) + content[33:]), PICTURE)


def test_odd_tags_of_a_tiff_are_passed_over_quietly():
    """Pillow warns of these; here a warning would be an error."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[65000] = bytes(100)
    content = bytearray(encoded(PICTURE, "TIFF", tiffinfo=tags))
    tag = content.index(struct.pack("<H", 65000))
    content[tag + 8 : tag + 12] = struct.pack("<L", 1 << 30)  # it lies behind the end of the file
    for _ in range(2):  # other filters may have come in front
        assert same(images.decode(bytes(content)), PICTURE)
        warnings.simplefilter("error")


# ---- colours


def inked(cyan: int, magenta: int, yellow: int, black: int, **options: Any) -> bytes:
    return encoded(Image.new("CMYK", (16, 16), (cyan, magenta, yellow, black)), "JPEG", quality=100, **options)


INKS = [((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))]


@pytest.mark.parametrize(("ink", "colour"), INKS)
@pytest.mark.parametrize("kind", ["CMYK", "YCCK", "TIFF"])
def test_four_inks(kind, ink, colour):
    if kind == "TIFF":
        content = encoded(Image.new("CMYK", (16, 16), ink), "TIFF")
    elif kind == "CMYK":
        content = inked(*ink)
    else:
        luma = Image.new("RGB", (1, 1), ink[:3]).convert("YCbCr").getpixel((0, 0))
        content = inked(*(255 - value for value in luma), ink[3])
        adobe = content.index(b"Adobe")
        content = content[: adobe + 11] + b"\2" + content[adobe + 12 :]  # says that the first three are YCC
    found = images.decode(content).getpixel((8, 8))
    assert max(abs(one - other) for one, other in zip(found, colour, strict=True)) <= 4


def test_sixteen_bits_lose_the_lower_eight():
    steps = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    grey = (steps >> 8).astype(np.uint8)
    for kind in ("PNG", "TIFF", "JPEG2000"):
        picture = images.decode(encoded(Image.fromarray(steps), kind))
        assert (np.asarray(picture) == grey[..., None]).all()
    swapped = b"MM\0*" + encoded_big_endian(steps)
    assert (np.asarray(images.decode(swapped)) == grey[..., None]).all()
    portable = b"P5 64 64 65535\n" + steps.astype(">u2").tobytes()
    assert (np.asarray(images.decode(portable)) == grey[..., None]).all()


def encoded_big_endian(pixels: np.ndarray) -> bytes:
    """The rest of a 16-bit grey TIFF whose bytes stand the other way round."""
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
def test_floating_point_numbers(values, expected):
    picture = images.decode(encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF"))
    found = np.asarray(picture)[0, :, 0].tolist()
    assert found == expected


def test_thirty_two_bits_are_stretched():
    pixels = np.array([[-(2**31), 0, 2**31 - 1]], dtype=np.int32)
    assert np.asarray(images.decode(encoded(Image.fromarray(pixels), "TIFF")))[0, :, 0].tolist() == [0, 128, 255]


def test_lab():
    for lab, colour in (((255, 128, 128), (255, 255, 255)), ((0, 128, 128), (0, 0, 0)), ((138, 208, 195), (255, 0, 0))):
        content = encoded(Image.new("LAB", (4, 4), lab), "TIFF")
        found = images.decode(content).getpixel((0, 0))
        assert max(abs(one - other) for one, other in zip(found, colour, strict=True)) <= 12, lab


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA"])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP"])
def test_modes(mode, kind):
    content = encoded(PICTURE.convert(mode), kind)
    picture = images.decode(content)
    assert picture.mode == "RGB"
    assert picture.size == PICTURE.size
    if mode in ("RGB", "RGBA") and kind != "GIF":
        assert apart(picture, PICTURE) < 12


def test_what_is_transparent_is_white():
    """And not the colour beneath, here red, that convert("RGB") uncovers."""
    red = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    red.paste((255, 0, 0, 0), (0, 0, 2, 4))
    red.paste((0, 0, 0, 128), (2, 0, 4, 2))
    for content in (encoded(red, "PNG"), encoded(red, "WEBP", lossless=True, exact=True), encoded(red, "TIFF")):
        picture = images.decode(content)
        assert [picture.getpixel(at) for at in ((0, 0), (3, 3), (3, 0))] == [(255,) * 3, (255, 0, 0), (127,) * 3]
    stripes = Image.fromarray((X[:4, :4] * 60).astype(np.uint8))
    keyed = [
        encoded(Image.new("P", (4, 4), 0), "GIF", transparency=0),
        encoded(Image.new("P", (4, 4), 0), "PNG", transparency=0),
        encoded(Image.merge("RGB", [stripes, stripes, stripes]).quantize(4), "PNG", transparency=bytes(4)),
        encoded(Image.new("L", (4, 4), 7), "PNG", transparency=7),
        encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
        encoded(Image.new("1", (4, 4), 0), "PNG", transparency=0),
        encoded(Image.new("LA", (4, 4), (9, 0)), "PNG"),
    ]
    for content in keyed:
        assert images.decode(content).getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", pytest.param("AVIF", marks=avif)])
def test_of_several_the_first_counts(kind):
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    first, *rest = (Image.new("RGB", (20, 10), colour) for colour in colours)
    content = encoded(first, kind, save_all=True, append_images=rest)
    red, green, blue = images.decode(content).getpixel((5, 5))
    assert red > 230
    assert green < 20 > blue


def test_a_frame_beyond_the_canvas_of_a_gif():
    content = bytearray(encoded(Image.new("L", (20, 10), 200), "GIF"))
    content[6:10] = struct.pack("<2H", 5, 5)
    assert images.read_size(bytes(content)) == images.decode(bytes(content)).size == (20, 10)


# ---- photographs


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> list[bytes]:
    paths = [*sorted((shared_data / "coco128" / "images").glob("*.jpg"))[:20]]
    paths += sorted((shared_data / "ants-bees" / "ants").glob("*.jpg"))[:20]
    return [path.read_bytes() for path in paths]


def test_photographs_are_those_of_pillow(photographs):
    for content in photographs:
        with Image.open(io.BytesIO(content)) as opened:
            expected = ImageOps.exif_transpose(opened).convert("RGB")
        assert same(images.decode(content), expected)
        assert images.read_size(content) == expected.size


@pytest.mark.parametrize("enough", [1, 64, 224, 300, 5000])
def test_a_smaller_photograph_is_large_enough_and_looks_alike(photographs, enough):
    for content in photographs:
        whole = images.decode(content)
        small = images.decode(content, min_side=enough)
        scale = next(scale for scale in (8, 4, 2, 1) if scale == 1 or min(whole.size) // scale >= enough)
        assert small.size == tuple(-(-side // scale) for side in whole.size)
        assert min(small.size) >= min(enough, *whole.size)
        assert apart(small, whole.reduce(scale)) < 5


def test_at_least_goes_for_the_shorter_side_of_a_turned_picture():
    tall = encoded(Image.new("RGB", (800, 400)), "JPEG", exif=turned(6))
    assert images.decode(tall, min_side=100).size == (100, 200)
    assert images.decode(encoded(PICTURE, "PNG"), min_side=6).size == PICTURE.size


def test_many_threads(photographs):
    contents = [*photographs, *(make() for make in KINDS.values()), encoded(PICTURE, "JPEG", exif=turned(8))]
    expected = [images.decode(content).tobytes() for content in contents]
    broken = [content[: len(content) // 2] for content in contents]
    reasons = [refusal(content) for content in broken]

    def one(place: int) -> bool:
        if place % 2:
            return refusal(broken[place % len(broken)]) == reasons[place % len(broken)]
        return images.decode(contents[place % len(contents)]).tobytes() == expected[place % len(contents)]

    order = list(range(6 * len(contents) + 1))
    random.Random(1).shuffle(order)
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(one, order))


# ---- too large


def bomb_png(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


def bomb_tiff(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 8)]
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4)


def bomb_jpeg(width: int, height: int) -> bytes:
    content = encoded(PICTURE, "JPEG")
    frame = content.index(b"\xff\xc0")
    return content[: frame + 5] + struct.pack(">2H", height, width) + content[frame + 9 :]


def bomb_gif(width: int, height: int) -> bytes:
    content = encoded(Image.new("L", (8, 8)), "GIF")
    return content[:6] + struct.pack("<2H", width, height) + content[10:]


def bomb_gif_frame(width: int, height: int) -> bytes:
    """A small canvas, a frame beyond it, and a way to dispose of it that makes Pillow fill another one."""
    extension = b"!\xf9\x04\x08\0\0\0\0"
    frame = b"," + struct.pack("<4H", 0, 0, width, height) + b"\0\x08\x01\0\0;"
    return b"GIF89a" + struct.pack("<2H", 1, 1) + b"\0\0\0" + extension + frame


def bomb_webp(width: int, height: int) -> bytes:
    content = bytearray(encoded(PICTURE, "WEBP", save_all=True, append_images=[OTHER]))
    assert content[12:16] == b"VP8X"
    content[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(content)


def bomb_bmp(width: int, height: int) -> bytes:
    content = encoded(PICTURE, "BMP")
    return content[:18] + struct.pack("<2i", width, height) + content[26:]


BOMBS = [bomb_png, bomb_tiff, bomb_jpeg, bomb_gif, bomb_gif_frame, bomb_webp, bomb_bmp]


@pytest.mark.parametrize("bomb", BOMBS)
def test_pictures_that_are_too_large_are_refused_by_their_header(bomb):
    content = bomb(65500, 65500)
    started = time.monotonic()
    assert "pixels" in refusal(content)
    with pytest.raises(ValueError, match="pixels"):
        images.read_size(content)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("bomb", BOMBS)
def test_between_the_limits_of_pillow_nothing_is_warned_of(bomb, unwarned):
    """Pillow warns above 89 million pixels, and refuses above 179."""
    content = bomb(10_000, 9_500)
    least = Image.MAX_IMAGE_PIXELS if bomb in (bomb_tiff, bomb_gif, bomb_gif_frame) else 94_999_999
    assert f"10,000 x 9,500 pixels; no more than {least:,} are" in refusal(content, max_pixels=94_999_999)
    if bomb in (bomb_png, bomb_jpeg, bomb_webp, bomb_bmp):
        assert images.read_size(content) == (10_000, 9_500)


def test_a_limit_of_ones_own():
    for make in KINDS.values():
        images.decode(make(), max_pixels=64 * 48)
        assert "64 x 48 pixels; no more than 3,071 are decoded" in refusal(make(), max_pixels=64 * 48 - 1)


def test_a_jpeg_of_endless_scans():
    content = encoded(Image.new("L", (64, 64)), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    assert "more than 100 scans" in refusal(content[:-2] + content[last:-2] * 200 + b"\xff\xd9")
    assert "scans" not in str(images.decode(content + b"\xff\xda" * 50).size)


# ---- no pictures


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "an empty file"),
        (b"\n <!DOCTYPE html>\n<html><body><svg/>", "no picture but an HTML page"),
        (b"\xef\xbb\xbf<!-- hi --><html>", "no picture but an HTML page"),
        (b"<HTML>", "no picture but an HTML page"),
        (b'<?xml version="1.0"?><!DOCTYPE html><html>', "no picture but an HTML page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg">', "no picture but an SVG drawing"),
        (b"<svg>", "no picture but an SVG drawing"),
        (b"<?xml?><Error><Code>AccessDenied</Code></Error>", "no picture but an XML document"),
        (b'{"error": "not found"}', "no picture but JSON"),
        (b"[1, 2]", "no picture but JSON"),
        (b"Not   found\n", "no picture but text that begins with 'Not found'"),
        (b"Zugriff verweigert: " + "ü".encode() * 40, "text that begins with 'Zugriff verweigert: üüü"),
        (b"%PDF-1.7\n%\xe2", "no picture but a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture but a PostScript document"),
        (b"PK\3\4" + bytes(40), "no picture but a ZIP archive"),
        (b"\x1f\x8b\x08" + bytes(40), "no picture but a gzip archive"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isommp42", "no picture but a video"),
        (b"\x1a\x45\xdf\xa3" + bytes(40), "no picture but a video"),
        (b"RIFF\1\2\3\4AVI LIST", "no picture but a video"),
        (b"RIFF\1\2\3\4WAVEfmt ", "no picture but a sound"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture, which is not read here; convert it to JPEG or PNG"),
        (b"\xff\x0a" + bytes(9), "a JPEG XL picture, which is not read here"),
        (b"8BPS\0\1", "no picture but a Photoshop document"),
        (b"II*\0\x10\0\0\0CR\2\0", "no picture but a Canon raw file"),
        (b"\0\0\1\0\1\0" + bytes(40), "no picture but a Windows icon"),
        (bytes(128) + b"DICM", "no picture but a DICOM file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "no picture but a Git LFS pointer"),
        (bytes(5000), "no picture but zeros"),
        (b"\1\2\3\4\5\6\7\x08\x09", "a kind that is known here: it begins with the bytes 01 02 03 04 05 06 07 08"),
        (b"BM is a company", "no picture but text that begins with 'BM is a company'"),
    ],
)
def test_what_is_no_picture_is_named(content, sentence):
    assert sentence in refusal(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        images.read_size(content)
    assert sentence in str(caught.value)


def test_the_small_version_in_a_raw_file_is_not_taken_for_the_picture():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 1
    assert "small version" in refusal(encoded(PICTURE, "TIFF", tiffinfo=tags))


# ---- truncated and broken


@pytest.fixture
def unwarned() -> Iterator[None]:
    """Every warning is one too many, also one that was made into an error and caught."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield
    assert [str(warning.message) for warning in found] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated_files(kind, part, unwarned):
    content = KINDS["jpeg" if kind == "mpo" else kind]()  # of which the second half is not needed
    sentence = refusal(content[: int(len(content) * part)])
    assert "picture is truncated" in sentence or (kind in ("bigtiff", "j2k") and "picture is broken" in sentence)


def test_how_much_is_missing_is_said_where_the_file_says_it():
    for kind in ("webp", "bmp", "tiff", "jpeg-2000"):
        content = KINDS[kind]()
        assert f"{len(content) - 400:,} of at least {len(content):,} bytes are there" in refusal(content[:-400])


def test_truncated_in_the_header_behind_a_preview():
    preview = encoded(PICTURE.resize((8, 8)), "JPEG")
    content = encoded(PICTURE, "JPEG", exif=b"Exif\0\0" + preview)
    start = content.index(preview) + len(preview)
    for end in (start - 100, start, start + 30):
        assert "truncated" in refusal(content[:end])


ALL = KINDS | {
    "apng": lambda: encoded(PICTURE, "PNG", save_all=True, append_images=[OTHER]),
    "animated-gif": lambda: encoded(PICTURE.quantize(64), "GIF", save_all=True, append_images=[OTHER], disposal=2),
    "animated-webp": lambda: encoded(PICTURE, "WEBP", save_all=True, append_images=[OTHER]),
    "transparent": lambda: encoded(PICTURE.quantize(8), "PNG", transparency=b"\0\x80"),
    "16-bit": lambda: encoded(Image.fromarray((X * 1000).astype(np.uint16)), "TIFF", compression="tiff_deflate"),
    "float": lambda: encoded(PICTURE.convert("F"), "TIFF"),
    "cmyk": lambda: encoded(PICTURE.convert("CMYK"), "JPEG"),
    "exif": lambda: encoded(PICTURE, "JPEG", exif=turned(6)),
    "tiff-exif": lambda: encoded(PICTURE, "TIFF", exif=turned(6)),
    "rle": lambda: encoded(PICTURE.quantize(4), "TIFF", compression="packbits"),
}
if "AVIF" in images._READERS:
    ALL["avif"] = lambda: encoded(PICTURE, "AVIF")
CONTENTS = {kind: make() for kind, make in ALL.items()}


@given(data=st.data(), kind=st.sampled_from(sorted(CONTENTS)))
@settings(max_examples=1500, **QUICK)
def test_whatever_bytes_say_it_is_a_picture_or_a_sentence(data, kind, unwarned):
    """Cut anywhere, changed anywhere, oftener in the header than in the pixels."""
    content = bytearray(CONTENTS[kind])
    place = st.one_of(st.integers(0, min(len(content), 200) - 1), st.integers(0, len(content) - 1))
    for at, value in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=4)):
        content[at] = value
    if data.draw(st.booleans()):
        del content[data.draw(place) :]
    broken = bytes(content)
    started = time.monotonic()
    header, picture = (attempt(call, broken) for call in (images.read_size, images.decode))
    if isinstance(picture, Image.Image):
        assert picture.mode == "RGB"
        assert picture.size == header
        assert len(picture.tobytes()) == 3 * picture.width * picture.height
    assert time.monotonic() - started < 5


def attempt(call: Callable[..., Any], content: bytes) -> object:
    """What comes back, or the sentence; whatever else is raised goes on."""
    try:
        return call(content, max_pixels=1_000_000)
    except ValueError as error:
        sentence = str(error)
    assert sentence
    assert "\n" not in sentence
    return sentence


@given(content=st.binary(max_size=64), start=st.sampled_from([content[:16] for content in CONTENTS.values()] + [b""]))
@settings(max_examples=500, **QUICK)
def test_whatever_follows_the_first_bytes(content, start, unwarned):
    attempt(images.decode, start + content)
