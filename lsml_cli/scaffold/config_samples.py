"""Generate sample tasks for any label config: values that its objects can show, with tiny media files.

They are always the same, and differ from task to task in what the rules of a new model look at.
"""

from __future__ import annotations

import io
import math
import struct
import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsml_cli.scaffold.recipes import names_below, read_separator
from lsml_cli.schema.controls import Object
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.label_config_parser import parse_xml

TASKS = 8
MEDIA_FOLDER = "media"
VIDEO_FRAMES = 24  # of a sample video, one second long; `templates/objects/video.jinja` knows them

_OPENINGS = ("Hello.", "Good morning.", "To whom it may concern.", "Dear Anna.")
_SENTENCES = (
    "The parcel from Berlin arrived on 2026-03-{day:02}.",
    "The lamp in it was broken, but the Kettle works well.",
    "Please call Mr Brown or write to the Service in Paris.",
    "We would like to order Another one, if that is possible.",
)


def make_tasks(config: LabelConfig, folder: Path) -> list[dict[str, Any]]:
    """Return tasks without annotations; write their media into `media` below a folder."""
    channels = names_below(config, "channel", "column")
    tasks: list[dict[str, Any]] = [{"id": number + 1, "data": {}} for number in range(TASKS)]
    for key in _other_keys(config):
        for task in tasks:
            task["data"][key] = f"Sample {task['id']}"
    for position, shown in enumerate(config.objects.values()):
        if shown.data_key is None:
            continue
        for number, task in enumerate(tasks):
            seed = number + 3 * position
            task["data"][shown.data_key] = _make_value(shown, seed, folder, channels.get(shown.name, ()))
    for control in config.controls.values():
        value = control.attrs.get("value", "")
        if control.has_dynamic_labels and value.startswith("$"):
            for task in tasks:
                task["data"][value[1:]] = [{"value": "First"}, {"value": "Second"}]
    return tasks


def _other_keys(config: LabelConfig) -> list[str]:
    """Return the keys of what has no name, such as <Header value="$title">."""
    values = [
        element.attrib.get("value", "") for element in parse_xml(config.xml).iter() if "name" not in element.attrib
    ]
    return [value[1:] for value in values if value.startswith("$") and value[1:]]


def _make_value(shown: Object, seed: int, folder: Path, channels: Sequence[str]) -> Any:
    """Return the value of an object in one task, as its tag and attributes want it."""
    tag, is_url = shown.tag.lower(), shown.attrs.get("valueType", "").lower()
    if "valueList" in shown.attrs:
        return [_write_media(folder, shown, seed + n, "png", make_image(seed + n)) for n in range(2)]
    if tag == "timeseries":
        columns = make_series(seed, shown.attrs.get("timeColumn"), channels, "timeFormat" in shown.attrs)
        if is_url == "json":
            return columns
        return _write_media(folder, shown, seed, "csv", make_csv(columns, read_separator(shown)))
    if tag in _MEDIA:
        suffix, make = _MEDIA[tag]
        return _write_media(folder, shown, seed, suffix, make(seed))
    if tag == "paragraphs":
        return make_dialogue(seed, shown.attrs.get("nameKey", "author"), shown.attrs.get("textKey", "text"))
    if tag == "list":
        return [{"id": f"item-{n}", "title": f"Result {n}", "body": make_text(seed + n)} for n in range(1, 4)]
    if tag == "table":
        return {"customer": f"C-{seed}", "orders": str(seed % 5)}
    if tag == "chat":
        return [{"role": "user", "content": make_text(seed)}]
    if tag == "hypertext":
        return f"<h2>Message {seed}</h2><p>{make_text(seed)}</p>"
    return make_text(seed)


def _write_media(folder: Path, shown: Object, seed: int, suffix: str, content: bytes) -> str:
    """Write a file; return its path below the project's folder."""
    stem = "".join(char if char.isascii() and char.isalnum() else "-" for char in shown.name.lower())
    path = folder / MEDIA_FOLDER / f"{stem}-{seed + 1:02}.{suffix}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return f"{MEDIA_FOLDER}/{path.name}"


def make_text(seed: int) -> str:
    """Return one to four sentences."""
    return " ".join([_OPENINGS[seed % 4], *_SENTENCES[: 1 + seed % 4]]).format(day=1 + seed % 28)


def make_dialogue(seed: int, name_key: str, text_key: str) -> list[dict[str, str]]:
    """Return two to five turns of two people."""
    turns = (*_OPENINGS, *_SENTENCES[1:])[: 2 + seed % 4]
    return [{name_key: ("Anna", "Ben")[n % 2], text_key: text} for n, text in enumerate(turns)]


def make_image(seed: int) -> bytes:
    """Return a PNG: a bright rectangle on a darker ground."""
    return _encode_image(_draw(seed, (64 + 8 * (seed % 3), 48)), "PNG")


def _draw(seed: int, size: tuple[int, int], shift: int = 0) -> Any:
    from PIL import Image

    ground = 20 + 22 * (seed % 8)
    image = Image.new("RGB", size, (ground, ground, ground + 30))
    left, top, side = (7 * seed + shift) % 30, (5 * seed) % 20, 10 + seed % 8
    image.paste((255, 250, 210), (left, top, left + 2 * side, top + side))
    return image


def _encode_image(image: Any, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def make_sound(seed: int) -> bytes:
    """Return a WAV file, mono, 8 kHz: half a second or more of a tone that is louder in its middle."""
    rate, count = 8000, 4000 + 800 * (seed % 6)
    loud = range(count // 4 + 100 * (seed % 5), 3 * count // 4)
    samples = (
        int((12_000 if n in loud else 1_500) * math.sin(2 * math.pi * (220 + 40 * (seed % 6)) * n / rate))
        for n in range(count)
    )
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return buffer.getvalue()


def make_series(seed: int, time: str | None, channels: Sequence[str], has_dates: bool) -> dict[str, list[Any]]:
    """Return columns of 40 to 60 values: waves, and the times if there is a column of them."""
    count = 40 + 4 * (seed % 6)
    columns: dict[str, list[Any]] = {}
    if time is not None:
        dates = [f"2026-03-05 10:{n // 60:02}:{n % 60:02}" for n in range(count)]
        columns[time] = list(dates) if has_dates else list(range(count))
    for position, channel in enumerate(channels):
        columns[channel] = [round(math.sin((n + seed + 5 * position) / 8), 3) for n in range(count)]
    return columns


def make_csv(columns: Mapping[str, Sequence[Any]], separator: str) -> bytes:
    """Return a CSV file with a header."""
    import csv

    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return buffer.getvalue().encode()


def make_video(seed: int) -> bytes:
    """Return a WebM file, a second long: a rectangle that moves.

    Pillow's lossy WebP is one frame of VP8, which browsers play from a WebM file of such frames.
    """
    frames = []
    for number in range(VIDEO_FRAMES):
        webp = _encode_image(_draw(seed, (64, 48), shift=number), "WEBP", quality=10 + 12 * (seed % 8))
        start = webp.index(b"VP8 ")
        (length,) = struct.unpack("<I", webp[start + 4 : start + 8])
        frames.append(webp[start + 8 : start + 8 + length])
    milliseconds = 1000 / VIDEO_FRAMES
    blocks = b"".join(
        _element("A3", struct.pack(">Bhb", 0x81, round(number * milliseconds), -0x80) + frame)  # every frame is a key
        for number, frame in enumerate(frames)
    )
    header = _element("1A45DFA3", _element("4282", b"webm") + _element("4287", b"\x02") + _element("4285", b"\x02"))
    duration = _element("4489", struct.pack(">d", 1000.0))
    info = _element("1549A966", _element("2AD7B1", struct.pack(">I", 1_000_000)) + duration)
    size = _element("B0", struct.pack(">H", 64)) + _element("BA", struct.pack(">H", 48))
    identity = _element("D7", b"\x01") + _element("73C5", b"\x01") + _element("83", b"\x01")
    tracks = _element("1654AE6B", _element("AE", identity + _element("86", b"V_VP8") + _element("E0", size)))
    cluster = _element("1F43B675", _element("E7", b"\x00") + blocks)
    return header + _element("18538067", info + tracks + cluster)


def _element(identifier: str, content: bytes) -> bytes:
    """Return an element of EBML: its identifier, its length in 8 bytes, its content."""
    return bytes.fromhex(identifier) + struct.pack(">Q", len(content) | 1 << 56) + content


_MEDIA: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "image": ("png", make_image),
    "audio": ("wav", make_sound),
    "audioplus": ("wav", make_sound),
    "video": ("webm", make_video),
}
