"""Read the text of an object tag from a task, as one plain string."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

from lsml_cli.errors import LabelMismatch
from lsml_cli.schema.label_config import Object
from lsml_cli.schema.tasks import describe_json_type

TEXT_TAGS = ("Text", "HyperText", "Paragraphs")  # object tags that have a text

_TAG = re.compile(r"<(/?)([a-zA-Z!][^<>]*)>")  # a single bounded repetition, so there is no backtracking
_CODE_TAG = re.compile(r"(?:script|style)(?![\w-])", re.IGNORECASE | re.ASCII)  # tags whose content is not shown
_EXPECTED_TYPES = {"text": "text", "hypertext": "text", "paragraphs": "a list of objects"}


def reject_url_values(object_tag: Object) -> None:
    """Refuse an object whose data is an address instead of the text itself.

    Raises:
        LabelMismatch: The object has valueType="url".
    """
    if object_tag.attrs.get("valueType", "").lower() == "url":
        raise LabelMismatch(
            f'<{object_tag.tag} name="{object_tag.name}" valueType="url"> holds addresses, '
            "and reading texts from addresses is not supported yet.",
            f'Put the text itself into the tasks and remove valueType="url" from <{object_tag.tag}>.',
        )


def read_text(object_tag: Object, data: Mapping[str, Any]) -> str:
    """Read the text that an object shows of a task's data.

    The text of Paragraphs is one line per turn, its `textKey`, without the speaker.

    Raises:
        ValueError: There is no text, with a sentence that says why.
    """
    value = object_tag.read(data)
    tag = object_tag.tag.lower()
    if tag == "paragraphs":
        return _read_paragraphs(object_tag, value)
    if not isinstance(value, str):
        raise ValueError(_wrong_type_message(object_tag, value))
    return visible_text(value) if tag == "hypertext" else value


def is_empty(text: str) -> bool:
    """Tell whether a text has nothing to classify: no character at all, or nothing but whitespace."""
    return not text or text.isspace()


def visible_text(markup: str) -> str:
    """Remove tags, comments, scripts and styles from HTML, in time linear in its length even if it is malformed."""
    if "<" not in markup:
        return html.unescape(markup)
    pieces, is_visible, start = [], True, 0
    for tag in _TAG.finditer(markup):
        if is_visible:
            pieces.append(markup[start : tag.start()])
        start = tag.end()
        if _CODE_TAG.match(tag[2]):
            is_visible = bool(tag[1])
    if is_visible:
        pieces.append(markup[start:])
    return html.unescape(" ".join(pieces))


def _read_paragraphs(object_tag: Object, value: object) -> str:
    key = object_tag.attrs.get("textKey", "text")
    if not isinstance(value, list):
        raise ValueError(_wrong_type_message(object_tag, value))
    lines = []
    for turn in value:
        text = turn.get(key) if isinstance(turn, Mapping) else None
        if not isinstance(text, str):
            raise ValueError(
                f'"{object_tag.data_key}" has a paragraph without a text under "{key}", which {object_tag} wants'
            )
        lines.append(text)
    return "\n".join(lines)


def _wrong_type_message(object_tag: Object, value: object) -> str:
    expected = _EXPECTED_TYPES[object_tag.tag.lower()]
    return f'"{object_tag.data_key}" is {describe_json_type(value)}, but {object_tag} wants {expected}'
