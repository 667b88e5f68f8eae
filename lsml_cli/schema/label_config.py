"""Label configs: the controls to fill, the objects they are about, and whether a prediction fits them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lsml_cli.errors import LabelConfigError, LabelMismatch, UsageError, format_list
from lsml_cli.schema import validation
from lsml_cli.schema.controls import Control, Label, Object
from lsml_cli.schema.label_config_parser import CONTROLS, OBJECTS, SELF_CONTROL_TAGS, parse_label_config
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.shape_checks import MERGEABLE_CHECKS
from lsml_cli.schema.value_checks import ControlRule

__all__ = ["CONTROLS", "OBJECTS", "Control", "Label", "LabelConfig", "Object"]

LABELING_XML_HINT = (
    "Name a file with the labelling XML of the project: Label Studio shows it under Settings, Labeling Interface, Code."
)
MAX_UNPICKLED_CONFIGS = 16  # kept in a process that gets its configs pickled


@dataclass(frozen=True)
class LabelConfig:
    """A project's labelling interface. Two are equal if their XML is.

    Attributes:
        xml: The labelling XML.
        controls: By name, in the order of the XML.
        objects: By name, in the order of the XML.
        warnings: Sentences that the user should read once.

    Example:
        >>> config = LabelConfig.load(Path("config.xml"))
        >>> [label.name for label in config.only("Choices").labels]
        ['Business', 'Sports']
    """

    xml: str
    controls: Mapping[str, Control] = field(compare=False, repr=False)
    objects: Mapping[str, Object] = field(compare=False, repr=False)
    warnings: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def parse(cls, xml: str | bytes) -> LabelConfig:
        """Parse labelling XML; raise LabelConfigError if it is broken."""
        if isinstance(xml, bytes):
            try:
                xml = xml.decode()
            except UnicodeDecodeError as error:
                raise LabelConfigError("The label config is not UTF-8.", "Save it as UTF-8.") from error
        xml = xml.removeprefix("\ufeff")
        if not xml.strip():
            hint = "Copy it from the project's Settings > Labeling Interface > Code."
            raise LabelConfigError("The label config is empty.", hint)
        controls, objects, warnings = parse_label_config(xml)
        return cls(xml, controls, objects, warnings)

    @classmethod
    def load(cls, path: Path) -> LabelConfig:
        """Read a file of labelling XML.

        Raises:
            UsageError: The file cannot be read.
            LabelConfigError: The XML is broken.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
            raise UsageError(f"The label config {path} {reason}.", LABELING_XML_HINT) from error
        try:
            return cls.parse(content)
        except LabelConfigError as error:
            raise LabelConfigError(f"{path}: {error.message}", error.hint or LABELING_XML_HINT) from error

    @cached_property
    def digest(self) -> str:
        """Hexadecimal digest of the XML, without the whitespace between its tags."""
        return blake2b(re.sub(r">\s+<", "><", self.xml.strip()).encode(), digest_size=16).hexdigest()

    def find_pairs(self, control_tag: str, object_tags: Sequence[str]) -> list[tuple[Control, Object]]:
        """Return the controls of a tag that a prediction can fill, each with an object that it is about.

        Controls with perRegion are left out.

        Args:
            control_tag: Tag of the controls, in any case.
            object_tags: Tags of the objects, in any case.
        """
        object_types = {tag.lower() for tag in object_tags}
        return [
            (control, self.objects[name])
            for control in self.controls.values()
            if control.type == control_tag.lower() and not control.per_region
            for name in control.to_names
            if self.objects[name].tag.lower() in object_types
        ]

    def only(self, tag: str) -> Control:
        """Return the only control of a tag; raise LabelMismatch if there is none, or more than one."""
        matching = [control for control in self.controls.values() if control.type == tag.lower()]
        if len(matching) == 1:
            return matching[0]
        known = format_list(map(str, matching or self.controls.values())) or "no control at all"
        number = f"{len(matching)} of them" if matching else f"no <{tag}>"
        raise LabelMismatch(
            f"One <{tag}> is needed, but the label config has {number}: it has {known}.",
            "A model that fits a label config is written by: lsml init NAME -c config.xml",
        )

    def check(self, prediction: Prediction, data: Mapping[str, Any] | None = None) -> str | None:
        """Return the first problem of a prediction as one sentence, None if Label Studio accepts it.

        Args:
            prediction: The prediction.
            data: The data of its task, so that spans are compared with the text that they mark (see `data_checks` for
                the unit of offsets); None if the task is elsewhere.
        """
        return validation.find_first_problem(self._rules, prediction, data)

    @cached_property
    def _rules(self) -> validation.ConfigRules:
        rules = {name: self._build_rule(control) for name, control in self.controls.items()}
        return validation.ConfigRules(rules, self.objects)

    def _build_rule(self, control: Control) -> ControlRule:
        # Label Studio's import ignores objects without a value.
        objects = [
            obj
            for name in control.to_names
            if (obj := self.objects[name]).value or obj.tag.lower() in SELF_CONTROL_TAGS
        ]
        types_on_same_objects = {
            other.type for other in self.controls.values() if not set(other.to_names).isdisjoint(control.to_names)
        }
        is_single_result = control.type in validation.SINGLE_RESULT_TYPES
        mergeable_types = types_on_same_objects & MERGEABLE_CHECKS.keys() if control.type == "labels" else ()
        return ControlRule(
            name=control.name,
            type=control.type,
            to_names=tuple(obj.name for obj in objects),
            image_names=tuple(obj.name for obj in objects if obj.tag.lower() == "image"),
            labels=dict.fromkeys(label.name for label in control.labels),
            is_single_choice=control.is_single_choice,
            is_once_per_task=is_single_result and not (control.per_region or control.per_item),
            mergeable_types=frozenset(mergeable_types),
            max_rating=control.attrs.get("maxRating", "5"),
        )

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return _parse_once, (self.xml,)  # the rules hold functions, and parsing is as fast as unpickling


@lru_cache(MAX_UNPICKLED_CONFIGS)
def _parse_once(xml: str) -> LabelConfig:
    """Parse the XML of an unpickled config. A replica gets it with every batch, and 50,000 labels take a second."""
    return LabelConfig.parse(xml)
