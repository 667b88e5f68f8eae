"""The Jinja2 environment of the report: escaping of untrusted text, and the filters that format values.

Names of labels, texts and file names come from strangers. Autoescape turns all of them into text; only a value that is
`Markup` already, which the filters below make from constants and numbers, enters the page as it is.
"""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lsml_cli.evaluation.report.formatting import format_fixed, format_grouped, pluralize, shorten

_INVALID_CHARACTERS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def create_environment() -> Environment:
    """Create the environment that renders `templates/`, with autoescape on."""
    environment = Environment(
        loader=PackageLoader("lsml_cli.evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=replace_invalid_characters,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": format_fixed,
        "grouped": format_grouped,
        "number": format_number,
        "pluralize": pluralize,
        "shorten": shorten,
        "signed": format_signed,
    }
    return environment


def replace_invalid_characters(value: Any) -> Any:
    """Return a value as text, with U+FFFD for characters that are invalid in HTML; `Markup` stays as it is."""
    if hasattr(value, "__html__"):
        return value
    return _INVALID_CHARACTERS.sub("\ufffd", str(value))


def format_number(value: float | None, digits: int = 3) -> str:
    """Format a metric; None becomes a dash."""
    return Markup("&ndash;") if value is None else f"{value:.{digits}f}"


def format_signed(value: float) -> Markup:
    """Format a difference with its sign; the minus is as wide as the plus."""
    return Markup(f"{value:+.3f}".replace("-", "&minus;"))
