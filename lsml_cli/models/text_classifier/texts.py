"""What an object tag of the label config shows, as one plain string."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

from lsml_cli.errors import LabelMismatch
from lsml_cli.schema.label_config import Object
from lsml_cli.schema.tasks import describe_json_type

TEXT_TAGS = ("Text", "HyperText", "Paragraphs")  # the tags a text can come from

_TAG = re.compile(r"<(/?)([a-zA-Z!][^<>]*)>")  # one repetition, which cannot run over the end: nothing to try twice
_CODE_TAG = re.compile(
    r"(?:script|style)(?![\w-])", re.IGNORECASE | re.ASCII
)  # what stands between these tags is no text
_EXPECTED_TYPES = {"text": "text", "hypertext": "text", "paragraphs": "a list of objects"}


def reject_url_values(object_tag: Object) -> None:
    """Raises LabelMismatch when the object's data is an address instead of the text itself."""
    if object_tag.attrs.get("valueType", "").lower() == "url":
        raise LabelMismatch(
            f'<{object_tag.tag} name="{object_tag.name}" valueType="url"> holds addresses, '
            "and reading texts from addresses is not supported yet.",
            f'Put the text itself into the tasks and remove valueType="url" from <{object_tag.tag}>.',
        )


def read_text(object_tag: Object, data: Mapping[str, Any]) -> str:
    """The text that `source` shows of a task's data.

    Of Paragraphs it is what was said (`textKey`), one line per turn, without who said it.
    Raises ValueError with a sentence when there is no text.
    """
    value = object_tag.read(data)
    tag = object_tag.tag.lower()
    if tag == "paragraphs":
        return _read_paragraphs(object_tag, value)
    if not isinstance(value, str):
        raise ValueError(_wrong_type_message(object_tag, value))
    return visible_text(value) if tag == "hypertext" else value


def visible_text(markup: str) -> str:
    """HTML without its tags, comments, scripts and styles; in time linear in its length, however broken it is."""
    if "<" not in markup:
        return html.unescape(markup)
    pieces, shown, start = [], True, 0
    for tag in _TAG.finditer(markup):
        if shown:
            pieces.append(markup[start : tag.start()])
        start = tag.end()
        if _CODE_TAG.match(tag[2]):
            shown = bool(tag[1])
    if shown:
        pieces.append(markup[start:])
    return html.unescape(" ".join(pieces))


def _read_paragraphs(object_tag: Object, value: object) -> str:
    key = object_tag.attrs.get("textKey", "text")
    if not isinstance(value, list):
        raise ValueError(_wrong_type_message(object_tag, value))
    lines = []
    for turn in value:
        said = turn.get(key) if isinstance(turn, Mapping) else None
        if not isinstance(said, str):
            raise ValueError(
                f'"{object_tag.data_key}" has a paragraph without a text under "{key}", which {object_tag} wants'
            )
        lines.append(said)
    return "\n".join(lines)


def _wrong_type_message(object_tag: Object, value: object) -> str:
    return f'"{object_tag.data_key}" is {describe_json_type(value)}, but {object_tag} wants {_EXPECTED_TYPES[object_tag.tag.lower()]}'
