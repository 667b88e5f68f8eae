"""Parse labelling XML into controls and objects, with warnings about what Label Studio reads differently."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, NamedTuple

from lsml_cli.errors import LabelConfigError, sort_by_similarity
from lsml_cli.schema.controls import Control, Label, Object

OBJECT_TAGS = "Audio AudioPlus Chat HyperText Image List Object3D Paragraphs Pdf ReactCode Table Text TimeSeries Video"
CONTROL_TAGS = """
    Bitmask BitmaskLabels Brush BrushLabels Choices Cube CubeLabels DateTime Ellipse EllipseLabels HyperTextLabels
    KeyPoint KeyPointLabels Labels MagicWand Number OcrLabels OcrTokenLabels Pairwise ParagraphLabels PdfLabels Polygon
    PolygonLabels Ranker Rating Rectangle RectangleLabels TableLabels Taxonomy TextArea TimelineLabels
    TimeSeriesLabels Vector VectorLabels VideoRectangle VideoVector VideoVectorLabels
"""
OTHER_TAGS = """
    Bucket Channel Choice Collapse Dialog Filter Header Html Label Markdown MultiChannel Panel Relation Relations
    Repeater ResizableView Shortcut Style View
"""
TAGS = {tag.lower(): tag for tags in (OBJECT_TAGS, CONTROL_TAGS, OTHER_TAGS) for tag in tags.split()}
OBJECTS = frozenset(OBJECT_TAGS.lower().split())
CONTROLS = frozenset(CONTROL_TAGS.lower().split())
LABEL_TAGS = frozenset({"choice", "label", "relation"})
PROSE_TAGS = frozenset({"header", "html", "hypertext", "markdown", "reactcode", "style"})  # hold no labelling XML
SELF_CONTROL_TAGS = {"chat": "ChatMessage", "reactcode": "ReactCode"}  # objects that are their own control, of this tag


class ParsedConfig(NamedTuple):
    """What labelling XML declares: controls and objects by name, in document order, and warnings for the user."""

    controls: dict[str, Control]
    objects: dict[str, Object]
    warnings: tuple[str, ...]


def parse_label_config(xml: str) -> ParsedConfig:
    """Parse labelling XML; raise LabelConfigError if it is broken."""
    return _ConfigParser().parse(xml)


class _ConfigParser:
    """Collects what one XML document declares, element by element."""

    def __init__(self) -> None:
        self.tag_by_name: dict[str, str] = {}
        self.controls: dict[str, Control] = {}
        self.labels: dict[str, dict[str, Label]] = {}  # by control, then by name of the label
        self.objects: dict[str, Object] = {}
        self.warnings: list[str] = []

    def parse(self, xml: str) -> ParsedConfig:
        for element, owner, parents, is_prose in _walk_elements(parse_xml(xml)):
            tag = element.tag.lower()
            if tag not in TAGS and not is_prose:
                self.warnings.append(_unknown_tag_warning(element.tag))
            if name := element.attrib.get("name"):
                if name in self.tag_by_name:
                    raise LabelConfigError(f'<{self.tag_by_name[name]}> and <{element.tag}> are both named "{name}".')
                self.tag_by_name[name] = element.tag
            if tag in LABEL_TAGS:
                self._add_label(element, owner, parents)
            elif tag in SELF_CONTROL_TAGS:
                self._add_self_control(element)
            elif _is_control(element):
                self._add_control(element)
            elif tag in CONTROLS:
                missing = "toName" if name else "name"
                shown = f'<{element.tag} name="{name}">' if name else f"<{element.tag}>"
                self.warnings.append(f"{shown} has no {missing}, so nothing can be predicted for it.")
            elif name:
                self._add_object(element)
        controls = {name: self._resolve_control(control) for name, control in self.controls.items()}
        return ParsedConfig(controls, self.objects, tuple(dict.fromkeys(self.warnings)))

    def _add_control(self, element: Any) -> None:
        attrs = dict(element.attrib)
        dynamic = attrs.get("value", "").startswith("$") or bool(attrs.get("apiUrl"))
        to_names = tuple(attrs["toName"].split(","))
        self.controls[attrs["name"]] = Control(attrs["name"], element.tag, to_names, (), attrs, dynamic)

    def _add_object(self, element: Any) -> None:
        attrs = dict(element.attrib)
        value = attrs.get("valueList") or attrs.get("value") or ""
        if not value and element.tag.lower() not in OBJECTS:
            return  # a named <View> or <Bucket>: no control can be about it
        name = attrs["name"]
        self.objects[name] = Object(name, element.tag, value, attrs)
        if value and "$" not in value and element.tag.lower() in ("text", "hypertext", "image", "audio", "video"):
            self.warnings.append(
                f'<{element.tag} name="{name}" value="{value}"> shows every task the same; did you mean "${value}"?'
            )
        if not value:
            self.warnings.append(
                f'<{element.tag} name="{name}"> has no value: Label Studio refuses predictions for it.'
            )

    def _add_self_control(self, element: Any) -> None:
        """Add a <Chat> or <ReactCode>: one tag that is an object and the control about it."""
        attrs = dict(element.attrib)
        if not (name := attrs.get("name")):
            raise LabelConfigError(f"<{element.tag}> has no name.", 'Add name="...".')
        value = attrs.get("valueList") or attrs.get("value") or ""
        self.objects[name] = Object(name, element.tag, value, attrs)
        if attrs.get("toName"):
            self._add_control(element)
        else:
            self.controls[name] = Control(name, SELF_CONTROL_TAGS[element.tag.lower()], (name,), (), attrs)

    def _add_label(self, element: Any, owner: str | None, parents: tuple[str, ...]) -> None:
        value, alias = element.attrib.get("value"), element.attrib.get("alias") or None
        if owner is None or (value is None and alias is None):
            return
        if element.attrib.get("name") and value:
            # Label Studio's import reads it as something else than a label, which is never intended.
            self.warnings.append(
                f'<{element.tag} value="{value}"> has a name, so Label Studio does not take it for a label: remove it.'
            )
            return
        predicted = element.attrib.get("predicted_values", "").split(",")
        name = alias or value or ""
        predicted_values = tuple(text.strip() for text in predicted if text.strip())
        label = Label(value or name, alias, predicted_values, (*parents, name))
        self.labels.setdefault(owner, {}).setdefault(name, label)

    def _resolve_control(self, control: Control) -> Control:
        for to_name in control.to_names:
            if to_name not in self.objects:
                known = ", ".join(sort_by_similarity(to_name, self.objects)) or "none at all"
                problem = f'{control} has toName="{to_name}", but no object has that name; there is: {known}.'
                raise LabelConfigError(problem, "Correct the toName, or add the object.")
        labels = tuple(self.labels.get(control.name, {}).values())
        return Control(control.name, control.tag, control.to_names, labels, control.attrs, control.has_dynamic_labels)


def parse_xml(xml: str) -> Any:
    """Return the root element of labelling XML; raise LabelConfigError if it is broken."""
    from defusedxml import DefusedXmlException  # takes 14 ms, and not every user of this module parses
    from defusedxml.ElementTree import DefusedXMLParser, ParseError

    parser = DefusedXMLParser(forbid_dtd=True)
    try:
        parser.feed(xml)
        return parser.close()
    except ParseError as error:
        reason, _, position = str(error).rpartition(": line ")
        raise LabelConfigError(f"The label config is not well-formed XML: {reason} in line {position}.") from error
    except UnicodeEncodeError as error:
        raise LabelConfigError("The label config holds characters that no XML can hold.") from error
    except DefusedXmlException as error:
        line = parser.parser.CurrentLineNumber
        raise LabelConfigError(f"The label config has a DOCTYPE in line {line}.", "Remove it: none is read.") from error


def _walk_elements(root: Any) -> Iterator[tuple[Any, str | None, tuple[str, ...], bool]]:
    """Yield every element in document order, with what is above it.

    That is the name of the nearest control, the names of the labels between that and the element, and whether the
    element is prose.
    """
    stack: list[tuple[Any, str | None, tuple[str, ...], bool]] = [(root, None, (), False)]
    while stack:
        element, owner, parents, is_prose = stack.pop()
        yield element, owner, parents, is_prose
        if _is_control(element):
            owner, parents = element.attrib["name"], ()
        elif element.tag.lower() in LABEL_TAGS:
            parents = (*parents, element.attrib.get("alias") or element.attrib.get("value") or "")
        is_prose = is_prose or element.tag.lower() in PROSE_TAGS
        stack += [(child, owner, parents, is_prose) for child in reversed(element)]


def _is_control(element: Any) -> bool:
    """Return whether an element is a control by Label Studio's rule: it has a name and a toName, whatever its tag."""
    return bool(element.attrib.get("name") and element.attrib.get("toName")) and element.tag.lower() != "filter"


def _unknown_tag_warning(tag: str) -> str:
    closest = difflib.get_close_matches(tag.lower(), TAGS, n=1)
    suggestion = f"; did you mean <{TAGS[closest[0]]}>?" if closest else "."
    return f"<{tag}> is not a tag that Label Studio knows{suggestion}"
