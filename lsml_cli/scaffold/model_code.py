"""Write the `model.py` of a planned model: one fragment for each kind of object and for each control."""

from __future__ import annotations

import ast
import keyword
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lsml_cli.scaffold.recipes import KINDS_BY_TAG, FilledControl, ModelPlan, read_separator
from lsml_cli.scaffold.rendering import quote, render_template
from lsml_cli.schema.controls import Object
from lsml_cli.schema.data_key import MEDIA_TAGS

DEFAULT_MAX_RATING = 5
DEFAULT_NUMBER_RANGE = (0, 10)

# Names that fragments may use, and the module that each comes from; "" for a module itself, with its own name.
IMPORTS: dict[str, str] = {
    **dict.fromkeys(("csv", "io", "re", "wave"), ""),
    "Counter": "collections",
    **dict.fromkeys(("Iterator", "Mapping", "Sequence"), "collections.abc"),
    "HTMLParser": "html.parser",
    **dict.fromkeys(("Any", "NamedTuple"), "typing"),
    "np": "numpy as np",
    "NDArray": "numpy.typing",
    "Image": "PIL",
    **dict.fromkeys(("Binding", "Control", "Model", "Prediction", "Region", "Task"), "lsml_cli"),
    "images": "lsml_cli.media",
    "encode_rle": "lsml_cli.schema.brush_rle",
}
# Names that a class in `model.py` may not have.
RESERVED_NAMES = {
    *IMPORTS,
    *keyword.kwlist,
    *("Controls", "HtmlSpan", "Series", "Shape", "Sound", "Span", "TextNode", "TextNodeParser"),  # of fragments
}


def choose_class_name(project_name: str) -> str:
    """Return the name of the class in `model.py`: `ParcelPhotos` in the project parcel-photos."""
    name = "".join(part.capitalize() for part in re.split(r"[-_]", project_name))
    if not name[0].isalpha():
        return f"Model{name}"
    return f"{name}Model" if name in RESERVED_NAMES else name


def render_model_code(plan: ModelPlan, class_name: str) -> str:
    """Return the code of a model that fills the controls of a plan."""
    controls = [_control_values(plan, filled) for filled in plan.filled]
    values = {
        "class_name": class_name,
        "imports": "",
        "supported": _supported_controls(plan),
        "media": [shown.name for shown in plan.objects if _is_media(shown)],
        "objects": [{"name": shown.name, "encode": _encode_expression(plan, shown)} for shown in plan.objects],
        "takes_labels": any(control["takes_labels"] for control in controls),
        "controls": controls,
        "fragments": [*_object_fragments(plan, controls), *map(_control_fragment, controls)],
    }
    values["imports"] = _import_lines(render_template("recipes/model.jinja", values))
    return render_template("recipes/model.jinja", values)


def _supported_controls(plan: ModelPlan) -> dict[str, list[str]]:
    supported: dict[str, list[str]] = {}
    for filled in plan.filled:
        tags = supported.setdefault(filled.control.tag, [])
        tags += [shown.tag for shown in filled.objects if shown.tag not in tags]
    return supported


def _is_media(shown: Object) -> bool:
    """Tell whether `encode` gets the bytes that the task's value points to."""
    tag = shown.tag.lower()
    return tag in MEDIA_TAGS or (tag == "timeseries" and shown.attrs.get("valueType", "url").lower() == "url")


def _encode_expression(plan: ModelPlan, shown: Object) -> str:
    value = f"shown[{quote(shown.name)}].read(task.data)"
    content = f"media[{value}]"
    time = shown.attrs.get("timeColumn")
    return KINDS_BY_TAG[shown.tag.lower()].encode.format(
        value=value,
        content=content,
        columns=f"read_csv({content}, {quote(read_separator(shown))})" if _is_media(shown) else value,
        time=None if time is None else quote(time),
        channel=quote(next(iter(plan.channels.get(shown.name, ())), "")),
    )


def _control_values(plan: ModelPlan, filled: FilledControl) -> dict[str, Any]:
    """Return the variables of a recipe's template."""
    control, shown = filled.control, filled.objects[0]
    kinds = [KINDS_BY_TAG[other.tag.lower()] for other in filled.objects]
    labels_from = filled.label_control or (control if control.labels and filled.recipe.needs_labels else None)
    names = [kinds[0].argument] if len(kinds) == 1 else ["left", "right"]
    parameters = [f"{name}: {kind.parameter.partition(': ')[2]}" for name, kind in zip(names, kinds, strict=True)]
    arguments = [f"data[{quote(other.name)}]" for other in filled.objects]
    if labels_from is not None:
        parameters.append("labels: Sequence[str]")
        arguments.append(f"labels[{quote(labels_from.name)}]")
    measures = [
        kind.measure.replace(f"({kind.argument})", f"({name})") for name, kind in zip(names, kinds, strict=True)
    ]
    low, high = _number_range(control.attrs)
    return {
        "template": filled.recipe.template,
        "name": control.name,
        "slug": filled.slug,
        "parameters": ", ".join(parameters),
        "arguments": ", ".join(arguments),
        "measure": measures[0],
        "other_measure": measures[-1],
        "measured": kinds[0].measured,
        "text": kinds[0].text,
        "summary": kinds[0].summary,
        "summary_words": kinds[0].summary_words,
        "takes_labels": labels_from is not None,
        "label_key": control.type if control.type.endswith("labels") else None,
        "label_control": filled.label_control.name if filled.label_control else None,
        "is_single": control.is_single_choice,
        "max_rating": _max_rating(control.attrs),
        "low": low,
        "high": high,
        "text_key": shown.attrs.get("textKey", "text"),
        "bucket": next(iter(plan.buckets.get(control.name, ())), control.name),
    }


def _max_rating(attrs: Mapping[str, str]) -> int:
    text = attrs.get("maxRating", "")
    return int(text) if text.isdecimal() and int(text) > 0 else DEFAULT_MAX_RATING


def _number_range(attrs: Mapping[str, str]) -> tuple[int, int]:
    """Return the whole numbers between which a <Number> is predicted."""

    def read(name: str) -> int | None:
        try:
            return int(float(attrs.get(name, "")))
        except (ValueError, OverflowError):
            return None

    low, high = read("min"), read("max")
    span = DEFAULT_NUMBER_RANGE[1] - DEFAULT_NUMBER_RANGE[0]
    if low is None:
        low = DEFAULT_NUMBER_RANGE[0] if high is None else min(DEFAULT_NUMBER_RANGE[0], high)
    return low, max(low, low + span if high is None else high)


def _object_fragments(plan: ModelPlan, controls: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the alias and the functions that the fragments of the controls use."""
    if controls:
        yield "Controls = Mapping[str, Control]"
    if any(control["takes_labels"] for control in controls):
        yield render_template("objects/any.jinja", {}).strip()
    values = {
        "has_csv": any(shown.tag.lower() == "timeseries" and _is_media(shown) for shown in plan.objects),
        "has_spans": any(control["template"] == "text_labels" for control in controls),
        "has_html_spans": any(control["template"] == "hypertext_labels" for control in controls),
    }
    for name in dict.fromkeys(KINDS_BY_TAG[shown.tag.lower()].name for shown in plan.objects):
        yield render_template(f"objects/{name}.jinja", values).strip()


def _control_fragment(values: Mapping[str, Any]) -> str:
    return render_template(f"recipes/{values['template']}.jinja", values).strip()


def _import_lines(code: str) -> str:
    """Return the imports of the names that code uses: of the standard library, of other packages, and of lsml."""
    used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    modules: dict[str, list[str]] = {}
    for name in sorted(used & IMPORTS.keys(), key=str.lower):
        modules.setdefault(IMPORTS[name] or name, []).append("" if not IMPORTS[name] else name)
    groups: tuple[list[str], ...] = ([], [], [])
    for module, names in sorted(modules.items(), key=lambda item: item[0].lower()):
        root = module.partition(".")[0]
        group = groups[0] if root in sys.stdlib_module_names else groups[2] if root == "lsml_cli" else groups[1]
        is_whole = names == [""] or " as " in module
        group.append(f"import {module}" if is_whole else f"from {module} import {', '.join(names)}")
    for group in groups:
        group.sort(key=lambda line: line.startswith("from "))  # stable: `import …` first
    return "\n\n".join("\n".join(group) for group in groups if group)
