"""What the older SDKs made of a label config, and the small functions that scripts import from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from lsml_cli.schema.label_config import CONTROLS, OBJECTS

DATA_UNDEFINED_NAME = "$undefined$"  # in the place of a task's data that is one value and has no name

ParsedConfig = Mapping[str, Mapping[str, Any]]


def parse_config(xml: str) -> dict[str, dict[str, Any]]:
    """{control: {"type", "to_name", "inputs", "labels", "labels_attrs"}}, as `label_studio_sdk` has it."""
    from defusedxml.ElementTree import fromstring

    root: Element = fromstring(xml)
    objects = {each.get("name"): each for each in root.iter() if each.tag.lower() in OBJECTS and each.get("name")}
    found: dict[str, dict[str, Any]] = {}
    for each in root.iter():
        name, to_names = each.get("name"), each.get("toName")
        if not (each.tag.lower() in CONTROLS and name and to_names):
            continue
        seen = [objects[to_name] for to_name in to_names.split(",") if to_name in objects]
        labels = {
            label.get("alias") or label.get("value") or "": dict(label.attrib)
            for label in each.iter()
            if label.tag in ("Choice", "Label") and label.get("value")
        }
        found[name] = {
            "type": each.tag,
            "to_name": to_names.split(","),
            "inputs": [
                {
                    "type": shown.tag,
                    "valueType": shown.get("valueType"),
                    "value": (shown.get("value") or shown.get("valueList") or "").lstrip("$"),
                }
                for shown in seen
            ],
            "labels": list(labels),
            "labels_attrs": labels,
        }
    return found


def get_single_tag_keys(parsed: ParsedConfig, control_type: str, object_type: str) -> tuple[str, str, str, list[str]]:
    """(from_name, to_name, value, labels) of a config that has one control of this type, about one such object."""
    assert len(parsed) == 1, f"expected one control, the label config has {len(parsed)}: {', '.join(parsed)}"
    [(from_name, control)] = parsed.items()
    assert control["type"] == control_type, f"expected <{control_type}>, the label config has <{control['type']}>"
    [to_name], [shown] = control["to_name"], control["inputs"]
    assert shown["type"] == object_type, f"expected <{object_type}>, the label config has <{shown['type']}>"
    return from_name, to_name, shown["value"], list(control["labels"])


def get_first_tag_keys(
    parsed: ParsedConfig,
    control_type: str | Sequence[str],
    object_type: str | Sequence[str],
    name_filter: Any = None,
    to_name_filter: Any = None,
) -> tuple[str, str, str, list[str]]:
    """The same for the first control of such a type that is about such an object. Raises ValueError without one."""
    controls, objects = (_as_tuple(each) for each in (control_type, object_type))
    for from_name, control in parsed.items():
        if control["type"] not in controls or (name_filter and not name_filter(from_name)):
            continue
        for to_name, shown in zip(control["to_name"], control["inputs"], strict=False):
            if shown["type"] in objects and (not to_name_filter or to_name_filter(to_name)):
                return from_name, to_name, shown["value"], list(control["labels"])
    raise ValueError(f"the label config has no <{'> or <'.join(controls)}> about <{'> or <'.join(objects)}>")


class Tag:
    """A control or an object, as `LabelInterface` gives it."""

    def __init__(self, name: str, tag: str, **attributes: Any) -> None:
        self.name = name
        self.tag = self.type = tag
        self.__dict__.update(attributes)


class LabelInterface:
    """The part of label_studio_sdk's class of this name that scripts use; lent where that is not installed."""

    def __init__(self, config: str, *_: Any, **__: Any) -> None:
        self.config = config
        self._parsed = parse_config(config)

    @property
    def controls(self) -> list[Tag]:
        return [
            Tag(name, each["type"], to_name=each["to_name"], labels=each["labels"], labels_attrs=each["labels_attrs"])
            for name, each in self._parsed.items()
        ]

    @property
    def objects(self) -> list[Tag]:
        found = {
            to_name: Tag(to_name, shown["type"], value=f"${shown['value']}", value_name=shown["value"])
            for each in self._parsed.values()
            for to_name, shown in zip(each["to_name"], each["inputs"], strict=False)
        }
        return list(found.values())

    def get_tag(self, name: str) -> Tag:
        return next(each for each in (*self.controls, *self.objects) if each.name == name)

    def get_control(self, name: str | None = None) -> Tag:
        return self.controls[0] if name is None else self.get_tag(name)

    def get_object(self, name: str | None = None) -> Tag:
        return self.objects[0] if name is None else self.get_tag(name)

    def get_first_tag_occurence(self, *args: Any, **filters: Any) -> tuple[str, str, str]:
        return get_first_tag_keys(self._parsed, *args, **filters)[:3]


def _as_tuple(types: str | Sequence[str]) -> tuple[str, ...]:
    return (types,) if isinstance(types, str) else tuple(types)


def build_label_map(parsed: ParsedConfig, tag_name: str, names: Iterable[str]) -> dict[str, str]:
    """{name of the model: label}: equal names first, regardless of case, then the labels' predicted_values."""
    attributes = parsed[tag_name]["labels_attrs"]
    known = {str(label).lower(): str(label) for label in attributes}
    values = {
        value.strip().lower(): str(label)
        for label, each in attributes.items()
        for value in str(each.get("predicted_values") or "").split(",")
        if value.strip()
    }
    return {name: label for name in names if (label := known.get(name.lower()) or values.get(name.lower()))}


def is_skipped(task: Mapping[str, Any], key: str) -> bool:
    """Whether its only annotation is a skipped one. `key`: "annotations", or "completions" in v0."""
    made = task[key]
    return len(made) == 1 and bool(made[0].get("skipped") or made[0].get("was_cancelled"))


def get_choice(task: Mapping[str, Any], key: str) -> str:
    return str(task[key][0]["result"][0]["value"]["choices"][0])


def get_image_size(path: Any) -> tuple[int, int]:
    """(width, height) in pixels, as a person sees the picture."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        turned = ImageOps.exif_transpose(image)
        return turned.size if turned is not None else image.size


def match_labels(task: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The names among the values of a task's data."""
    values = {str(value).lower() for value in task.get("data", {}).values()}
    return [name for name in names if name.lower() in values]


def compare_nested_structures(left: Any, right: Any, path: str = "") -> None:
    """Raises AssertionError where two structures of dictionaries and lists differ; numbers may by a thousandth."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        assert left.keys() == right.keys(), f"{path}: {sorted(left)} against {sorted(right)}"
        for key in left:
            compare_nested_structures(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list) and isinstance(right, list):
        assert len(left) == len(right), f"{path}: {len(left)} against {len(right)} items"
        for position, (first, second) in enumerate(zip(left, right, strict=True)):
            compare_nested_structures(first, second, f"{path}[{position}]")
    elif isinstance(left, float) and isinstance(right, float):
        assert abs(left - right) <= 1e-3, f"{path}: {left} against {right}"
    else:
        assert left == right, f"{path}: {left!r} against {right!r}"
