"""Provide the SDKs' functions and classes for label configs, tasks and annotations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from lsml_cli.schema.label_config import CONTROLS, OBJECTS

DATA_UNDEFINED_NAME = "$undefined$"  # the key of task data that is a single value

ParsedConfig = Mapping[str, Mapping[str, Any]]


def parse_config(xml: str) -> dict[str, dict[str, Any]]:
    """Parse a label config as label_studio_sdk does.

    Returns:
        {control name: {"type", "to_name", "inputs", "labels", "labels_attrs"}}
    """
    from defusedxml.ElementTree import fromstring

    root: Element = fromstring(xml)
    objects = {tag.get("name"): tag for tag in root.iter() if tag.tag.lower() in OBJECTS and tag.get("name")}
    controls: dict[str, dict[str, Any]] = {}
    for tag in root.iter():
        name, to_names = tag.get("name"), tag.get("toName")
        if not (tag.tag.lower() in CONTROLS and name and to_names):
            continue
        labels = {
            label.get("alias") or label.get("value") or "": dict(label.attrib)
            for label in tag.iter()
            if label.tag in ("Choice", "Label") and label.get("value")
        }
        controls[name] = {
            "type": tag.tag,
            "to_name": to_names.split(","),
            "inputs": [_object_fields(objects[to_name]) for to_name in to_names.split(",") if to_name in objects],
            "labels": list(labels),
            "labels_attrs": labels,
        }
    return controls


def _object_fields(tag: Element) -> dict[str, Any]:
    return {
        "type": tag.tag,
        "valueType": tag.get("valueType"),
        "value": (tag.get("value") or tag.get("valueList") or "").lstrip("$"),
    }


def get_single_tag_keys(parsed: ParsedConfig, control_type: str, object_type: str) -> tuple[str, str, str, list[str]]:
    """Return the names of the only control, which has these types of control and object.

    Returns:
        (from_name, to_name, value, labels)

    Raises:
        AssertionError: the label config has other or more controls.
    """
    assert len(parsed) == 1, f"expected one control, the label config has {len(parsed)}: {', '.join(parsed)}"
    [(from_name, control)] = parsed.items()
    assert control["type"] == control_type, f"expected <{control_type}>, the label config has <{control['type']}>"
    [to_name], [object_tag] = control["to_name"], control["inputs"]
    assert object_tag["type"] == object_type, f"expected <{object_type}>, the label config has <{object_tag['type']}>"
    return from_name, to_name, object_tag["value"], list(control["labels"])


def get_first_tag_keys(
    parsed: ParsedConfig,
    control_type: str | Sequence[str],
    object_type: str | Sequence[str],
    name_filter: Any = None,
    to_name_filter: Any = None,
) -> tuple[str, str, str, list[str]]:
    """Return the names of the first control with one of these types of control and object.

    Args:
        name_filter: a predicate on the control's name.
        to_name_filter: a predicate on the object's name.

    Returns:
        (from_name, to_name, value, labels)

    Raises:
        ValueError: there is no such control.
    """
    controls, objects = _as_tuple(control_type), _as_tuple(object_type)
    for from_name, control in parsed.items():
        if control["type"] not in controls or (name_filter and not name_filter(from_name)):
            continue
        for to_name, object_tag in zip(control["to_name"], control["inputs"], strict=False):
            if object_tag["type"] in objects and (not to_name_filter or to_name_filter(to_name)):
                return from_name, to_name, object_tag["value"], list(control["labels"])
    raise ValueError(f"the label config has no <{'> or <'.join(controls)}> about <{'> or <'.join(objects)}>")


class Tag:
    """A control or an object of `LabelInterface`."""

    def __init__(self, name: str, tag: str, **attributes: Any) -> None:
        self.name = name
        self.tag = self.type = tag
        self.__dict__.update(attributes)


class LabelInterface:
    """The part of label_studio_sdk's LabelInterface that scripts use, for an environment without the SDK."""

    def __init__(self, config: str, *_: Any, **__: Any) -> None:
        self.config = config
        self._parsed = parse_config(config)

    @property
    def controls(self) -> list[Tag]:
        """The controls in the order of the label config."""
        return [
            Tag(
                name,
                control["type"],
                to_name=control["to_name"],
                labels=control["labels"],
                labels_attrs=control["labels_attrs"],
            )
            for name, control in self._parsed.items()
        ]

    @property
    def objects(self) -> list[Tag]:
        """The objects that a control refers to."""
        tags = {
            to_name: Tag(to_name, object_tag["type"], value=f"${object_tag['value']}", value_name=object_tag["value"])
            for control in self._parsed.values()
            for to_name, object_tag in zip(control["to_name"], control["inputs"], strict=False)
        }
        return list(tags.values())

    def get_tag(self, name: str) -> Tag:
        """Return the control or object of this name."""
        return next(tag for tag in (*self.controls, *self.objects) if tag.name == name)

    def get_control(self, name: str | None = None) -> Tag:
        """Return the control of this name, or the first one."""
        return self.controls[0] if name is None else self.get_tag(name)

    def get_object(self, name: str | None = None) -> Tag:
        """Return the object of this name, or the first one."""
        return self.objects[0] if name is None else self.get_tag(name)

    def get_first_tag_occurence(self, *args: Any, **filters: Any) -> tuple[str, str, str]:
        """Return (from_name, to_name, value); see `get_first_tag_keys`."""
        return get_first_tag_keys(self._parsed, *args, **filters)[:3]


def _as_tuple(types: str | Sequence[str]) -> tuple[str, ...]:
    return (types,) if isinstance(types, str) else tuple(types)


def build_label_map(parsed: ParsedConfig, tag_name: str, names: Iterable[str]) -> dict[str, str]:
    """Map model classes to labels: by name, ignoring case, else by the labels' `predicted_values`."""
    attributes = parsed[tag_name]["labels_attrs"]
    by_name = {str(label).lower(): str(label) for label in attributes}
    by_predicted_value = {
        value.strip().lower(): str(label)
        for label, label_attributes in attributes.items()
        for value in str(label_attributes.get("predicted_values") or "").split(",")
        if value.strip()
    }
    return {
        name: label for name in names if (label := by_name.get(name.lower()) or by_predicted_value.get(name.lower()))
    }


def is_skipped(task: Mapping[str, Any], key: str) -> bool:
    """Tell whether a task's only annotation is a skipped one.

    Args:
        key: of the annotations: "annotations", or "completions" in v0.
    """
    annotations = task[key]
    return len(annotations) == 1 and bool(annotations[0].get("skipped") or annotations[0].get("was_cancelled"))


def get_choice(task: Mapping[str, Any], key: str) -> str:
    """Return the first choice of a task's first annotation; see `is_skipped` for the key."""
    return str(task[key][0]["result"][0]["value"]["choices"][0])


def get_image_size(path: Any) -> tuple[int, int]:
    """Return (width, height) in pixels, with the EXIF orientation applied."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        transposed = ImageOps.exif_transpose(image)
        return transposed.size if transposed is not None else image.size


def match_labels(task: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the names that are values of a task's data, ignoring case."""
    values = {str(value).lower() for value in task.get("data", {}).values()}
    return [name for name in names if name.lower() in values]


def compare_nested_structures(left: Any, right: Any, path: str = "") -> None:
    """Raise AssertionError if two structures of dictionaries and lists differ; floats may differ by 0.001.

    Args:
        path: what the message calls the structures.
    """
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        assert left.keys() == right.keys(), f"{path}: {sorted(left)} against {sorted(right)}"
        for key in left:
            compare_nested_structures(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list) and isinstance(right, list):
        assert len(left) == len(right), f"{path}: {len(left)} against {len(right)} items"
        for index, (left_item, right_item) in enumerate(zip(left, right, strict=True)):
            compare_nested_structures(left_item, right_item, f"{path}[{index}]")
    elif isinstance(left, float) and isinstance(right, float):
        assert abs(left - right) <= 1e-3, f"{path}: {left} against {right}"
    else:
        assert left == right, f"{path}: {left!r} against {right!r}"
