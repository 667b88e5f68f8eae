"""Controls, objects and labels of a label config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lsml_cli.errors import format_list, sort_by_similarity
from lsml_cli.schema.predictions import Region, region_id
from lsml_cli.schema.tasks import Task


@dataclass(frozen=True)
class Label:
    """One <Choice> or <Label>.

    Attributes:
        value: The label as annotators see it.
        alias: What stands for it in annotations and predictions, if given.
        predicted_values: A model's own names for it.
        path: Names of the labels above it and its own, as a <Taxonomy> stores it: ("Europe", "France").
    """

    value: str
    alias: str | None = None
    predicted_values: tuple[str, ...] = ()
    path: tuple[str, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        """The only spelling that a prediction may use: the alias if there is one."""
        return self.alias or self.value


@dataclass(frozen=True)
class Object:
    """What is shown to the annotator.

    Attributes:
        name: Name that controls refer to.
        tag: "Image", "Text", ...
        value: The raw attribute: "$text", or a literal.
        attrs: All attributes of the tag.
    """

    name: str
    tag: str
    value: str
    attrs: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def data_key(self) -> str | None:
        """The key of the task's data: "text" for "$text", None for a literal value."""
        return self.value[1:] if re.fullmatch(r"\$[^, ]+", self.value) else None

    def read(self, data: Mapping[str, Any]) -> Any:
        """Return the value that this object shows: `data[key]`, else the value at the path `key` ("pages[0].url").

        A literal value is returned as it stands.

        Raises:
            ValueError: The task has no such value.
        """
        key = self.data_key
        if key is None:
            return self.value
        value = data[key] if key in data else _get_by_path(data, key)
        if value is None:
            problem = f'has null for "{key}"' if key in data else f'has no "{key}"'
            known = format_list(sort_by_similarity(key, data)) or "nothing"
            raise ValueError(f"the task {problem}, which {self} wants; it has: {known}")
        return value

    def __str__(self) -> str:
        attribute = "valueList" if "valueList" in self.attrs else "value"
        return f'<{self.tag} name="{self.name}" {attribute}="{self.value}">'


@dataclass(frozen=True)
class Control:
    """What an annotator or a prediction fills in.

    Attributes:
        name: Name of the control: the from_name of its regions.
        tag: "Choices", "RectangleLabels", ...
        to_names: Names of the objects that it is about; several for Pairwise only.
        labels: In the order of the config, nested ones flattened.
        attrs: All attributes of the tag.
        has_dynamic_labels: Whether the labels come from the task (value="$options").

    Example:
        >>> control = binding.config.controls["thing"]
        >>> value = {"x": 10, "y": 20, "width": 30, "height": 5, "rotation": 0, "rectanglelabels": ["Boat"]}
        >>> region = control.region(task, value, score=0.9, image_size=(1600, 1200))
    """

    name: str
    tag: str
    to_names: tuple[str, ...]
    labels: tuple[Label, ...] = ()
    attrs: Mapping[str, str] = field(default_factory=dict, hash=False)
    has_dynamic_labels: bool = False

    @property
    def type(self) -> str:
        """The type of its regions: the tag in lower case."""
        return self.tag.lower()

    @property
    def is_single_choice(self) -> bool:
        """Tell whether this is a <Choices> that accepts at most one choice."""
        return self.type == "choices" and self.attrs.get("choice", "single") in ("single", "single-radio")

    @property
    def per_region(self) -> bool:
        """Tell whether it describes regions of other controls instead of the task: perRegion="true"."""
        return self._flag("perRegion")

    @property
    def per_item(self) -> bool:
        """Tell whether it is filled once for each image of a list: perItem="true"."""
        return self._flag("perItem")

    @cached_property
    def label_names(self) -> Mapping[str, str]:
        """Names of labels by value and by alias: annotations made before a label had an alias hold its value."""
        return {label.value: label.name for label in self.labels} | {label.name: label.name for label in self.labels}

    def _flag(self, attribute: str) -> bool:
        value = self.attrs.get(attribute) or self.attrs.get(attribute.lower()) or ""
        return value.lower() == "true"

    def region(
        self,
        task: Task,
        value: Mapping[str, Any],
        *,
        score: float | None = None,
        ordinal: int = 0,
        to_name: str | None = None,
        id: str | None = None,
        image_size: tuple[int, int] | None = None,
        **extra: Any,
    ) -> Region:
        """Return a region of this control.

        Args:
            task: The task that is predicted.
            value: Label Studio's value object. Geometry is in percent of the image. `start` and `end` of a span in a
                <Text> count code points, as slices in Python do, so that `text[start:end]` is its `text`; the offsets
                in a turn of <Paragraphs> count UTF-16 code units, and an emoji is two of them.
            score: Probability in 0..1.
            ordinal: Number of the region among those of this control in the task, from 0; each needs its own.
            to_name: Name of the object, if the control is about several.
            id: Id of the region that this one describes (OCR: box, label and text share one id).
            image_size: Width and height in pixels of the image that the region lies on; regions on images need it.
            extra: Further fields at the top level of the region: original_length=12.5 (seconds), ...

        Raises:
            ValueError: The control is not about `to_name`.
        """
        if to_name is None:
            to_name = self.to_names[0]
        elif to_name not in self.to_names:
            raise ValueError(f'{self} is not about "{to_name}", only about {", ".join(self.to_names)}')
        if id is None:
            id = region_id(task, self.name, ordinal)
        if score is not None and type(score) is not float and hasattr(score, "item"):  # of numpy or torch
            score = score.item()
        if image_size is not None:
            width, height = image_size
            extra = {"original_width": width, "original_height": height, "image_rotation": 0, **extra}
        return Region(id, self.name, to_name, self.type, value, score, extra)

    def __str__(self) -> str:
        return f'<{self.tag} name="{self.name}">'


def _get_by_path(data: Any, path: str) -> Any:
    """Return the value at a path like "a.b[0]", None if there is none."""
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            data = data[int(index)] if index else data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data
