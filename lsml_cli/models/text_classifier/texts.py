"""What an object tag of the label config shows, as one plain string."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

from lsml_cli.errors import LabelMismatch
from lsml_cli.schema.label_config import Object
from lsml_cli.schema.tasks import kind

TAGS = ("Text", "HyperText", "Paragraphs")  # the tags a text can come from

_TAG = re.compile(r"<(/?)([a-zA-Z!][^<>]*)>")  # one repetition, which cannot run over the end: nothing to try twice
_CODE = re.compile(r"(?:script|style)(?![\w-])", re.IGNORECASE | re.ASCII)  # what stands between these tags is no text
_WANTED = {"text": "text", "hypertext": "text", "paragraphs": "a list of objects"}


def refuse_urls(source: Object) -> None:
    """Raises LabelMismatch when the object's data is an address instead of the text itself."""
    if source.attrs.get("valueType", "").lower() == "url":
        raise LabelMismatch(
            f'<{source.tag} name="{source.name}" valueType="url"> holds addresses, '
            "and reading texts from addresses is not supported yet.",
            f'Put the text itself into the tasks and remove valueType="url" from <{source.tag}>.',
        )


def read_text(source: Object, data: Mapping[str, Any]) -> str:
    """The text that `source` shows of a task's data.

    Of Paragraphs it is what was said (`textKey`), one line per turn, without who said it.
    Raises ValueError with a sentence when there is no text.
    """
    value = source.read(data)
    tag = source.tag.lower()
    if tag == "paragraphs":
        return _paragraphs(source, value)
    if not isinstance(value, str):
        raise ValueError(_refusal(source, value))
    return visible_text(value) if tag == "hypertext" else value


def visible_text(source: str) -> str:
    """HTML without its tags, comments, scripts and styles; in time linear in its length, however broken it is."""
    if "<" not in source:
        return html.unescape(source)
    pieces, shown, start = [], True, 0
    for tag in _TAG.finditer(source):
        if shown:
            pieces.append(source[start : tag.start()])
        start = tag.end()
        if _CODE.match(tag[2]):
            shown = bool(tag[1])
    if shown:
        pieces.append(source[start:])
    return html.unescape(" ".join(pieces))


def _paragraphs(source: Object, value: object) -> str:
    key = source.attrs.get("textKey", "text")
    if not isinstance(value, list):
        raise ValueError(_refusal(source, value))
    lines = []
    for turn in value:
        said = turn.get(key) if isinstance(turn, Mapping) else None
        if not isinstance(said, str):
            raise ValueError(f'"{source.key}" has a paragraph without a text under "{key}", which {source} wants')
        lines.append(said)
    return "\n".join(lines)


def _refusal(source: Object, value: object) -> str:
    return f'"{source.key}" is {kind(value)}, but {source} wants {_WANTED[source.tag.lower()]}'
