"""Plan which controls of a label config a new model fills, and how: one recipe for each type of control.

A recipe is a template in `templates/recipes` with two functions, `predict_…` and `regions_for_…`. It works on what a
kind of object shows; the templates in `templates/objects` read and measure that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from lsml_cli.schema.controls import Control, Object
from lsml_cli.schema.data_key import MEDIA_TAGS
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.label_config_parser import parse_xml


@dataclass(frozen=True)
class ObjectKind:
    """What a model gets of one kind of object.

    Attributes:
        name: Of its template, and the word in the table of recipes.
        tags: Of the objects.
        parameter: Name and type in the signature of `predict_…`.
        encode: How `encode` makes it: {value} is the task's value, {content} are the bytes that it points to, {columns}
            are those of a series, {time} and {channel} the names of two of them.
        measure: A number in 0..1 that the rules use in place of a model.
        measured: What that number says.
        text: The text that it shows, for those that show one.
        summary: What a <TextArea> gets.
        summary_words: What that is.
    """

    name: str
    tags: tuple[str, ...]
    parameter: str
    encode: str
    measure: str
    measured: str
    summary: str
    summary_words: str
    text: str = ""

    @property
    def argument(self) -> str:
        return self.parameter.partition(":")[0]


TEXT = ObjectKind(
    "text",
    ("text",),
    "text: str",
    "str({value})",
    "measure_text(text)",
    "the length of the text",
    'text.partition(".")[0]',
    "the first sentence",
    text="text",
)
HYPERTEXT = ObjectKind(
    "hypertext",
    ("hypertext",),
    "html: str",
    "str({value})",
    "measure_html(html)",
    "the length of the text",
    'visible_text(html).partition(".")[0]',
    "the first sentence",
    text="visible_text(html)",
)
PARAGRAPHS = ObjectKind(
    "paragraphs",
    ("paragraphs",),
    "dialogue: Sequence[Mapping[str, Any]]",
    "list({value})",
    "measure_dialogue(dialogue)",
    "the number of turns",
    'f"{len(dialogue)} turns"',
    "the number of turns",
)
IMAGE = ObjectKind(
    "image",
    ("image",),
    "image: Image.Image",
    "images.decode({content})",
    "measure_image(image)",
    "the brightness",
    'f"An image of {image.width} x {image.height} pixels"',
    "the size of the image",
)
AUDIO = ObjectKind(
    "audio",
    ("audio", "audioplus"),
    "sound: Sound",
    "read_sound({content})",
    "measure_sound(sound)",
    "the length of the sound",
    'f"{sound.seconds:.1f} seconds of sound"',
    "the length of the sound",
)
VIDEO = ObjectKind(
    "video",
    ("video",),
    "video: bytes",
    "{content}",
    "measure_video(video)",
    "the size of the file",
    'f"A video of {len(video)} bytes"',
    "the size of the file",
)
TIME_SERIES = ObjectKind(
    "timeseries",
    ("timeseries",),
    "series: Series",
    "read_series({columns}, {time}, {channel})",
    "measure_series(series)",
    "the length of the series",
    'f"{len(series.values)} values"',
    "the number of values",
)
LIST = ObjectKind(
    "list",
    ("list",),
    "items: Sequence[Mapping[str, Any]]",
    "list({value})",
    "measure_items(items)",
    "the number of items",
    'f"{len(items)} items"',
    "the number of items",
)
ANY_KIND = (TEXT, HYPERTEXT, PARAGRAPHS, IMAGE, AUDIO, VIDEO, TIME_SERIES)
KINDS_BY_TAG = {tag: kind for kind in (*ANY_KIND, LIST) for tag in kind.tags}


@dataclass(frozen=True)
class Recipe:
    """How a type of control is filled.

    Attributes:
        template: Below `templates/recipes`.
        kinds: The kinds of object that it can be about.
        needs_labels: It chooses among labels, so it needs some.
        can_take_labels: A <Labels> about the same object gives its labels, where it has none of its own.
    """

    template: str
    kinds: tuple[ObjectKind, ...]
    needs_labels: bool = False
    can_take_labels: bool = False

    def can_be_about(self, tag: str) -> bool:
        """Tell whether it works on an object with this tag."""
        return KINDS_BY_TAG.get(tag.lower()) in self.kinds


# Templates by what is drawn on an image.
SHAPES = {
    "rectangle": "rectangle",
    "ellipse": "ellipse",
    "polygon": "polygon",
    "keypoint": "key_point",
    "brush": "brush",
}
# By type of the control; the first that fits the control's object counts.
RECIPES: dict[str, tuple[Recipe, ...]] = {
    "choices": (Recipe("choices", ANY_KIND, needs_labels=True),),
    "taxonomy": (Recipe("taxonomy", ANY_KIND, needs_labels=True),),
    "rating": (Recipe("rating", ANY_KIND),),
    "number": (Recipe("number", ANY_KIND),),
    "datetime": (Recipe("date", (TEXT, HYPERTEXT)),),
    "textarea": (Recipe("text_area", ANY_KIND),),
    "pairwise": (Recipe("pairwise", ANY_KIND),),
    "ranker": (Recipe("ranker", (LIST,)),),
    "labels": (
        Recipe("text_labels", (TEXT,), needs_labels=True),
        Recipe("hypertext_labels", (HYPERTEXT,), needs_labels=True),
        Recipe("audio_labels", (AUDIO,), needs_labels=True),
    ),
    "hypertextlabels": (Recipe("hypertext_labels", (HYPERTEXT,), needs_labels=True),),
    "paragraphlabels": (Recipe("paragraph_labels", (PARAGRAPHS,), needs_labels=True),),
    "timeserieslabels": (Recipe("time_series_labels", (TIME_SERIES,), needs_labels=True),),
    "timelinelabels": (Recipe("timeline_labels", (VIDEO,), needs_labels=True),),
    "videorectangle": (Recipe("video_rectangle", (VIDEO,), can_take_labels=True),),
    **{f"{shape}labels": (Recipe(template, (IMAGE,), needs_labels=True),) for shape, template in SHAPES.items()},
    **{shape: (Recipe(template, (IMAGE,), can_take_labels=True),) for shape, template in SHAPES.items()},
}


@dataclass(frozen=True)
class FilledControl:
    """A control that the model fills.

    Attributes:
        control: The control.
        recipe: How it is filled.
        objects: What it is about; two for a <Pairwise>.
        slug: Its name in identifiers.
        label_control: The <Labels> that names what this control draws, if any.
    """

    control: Control
    recipe: Recipe
    objects: tuple[Object, ...]
    slug: str
    label_control: Control | None = None

    @property
    def name(self) -> str:
        return self.control.name


@dataclass(frozen=True)
class ModelPlan:
    """What a new model does with a label config.

    Attributes:
        config: The label config.
        filled: The controls that it fills.
        empty: (control, reason) of those that it leaves empty.
        channels: The columns of each <TimeSeries> that are shown, by its name.
        buckets: The names of the buckets of each <Ranker>, by its name.
    """

    config: LabelConfig
    filled: tuple[FilledControl, ...]
    empty: tuple[tuple[Control, str], ...]
    channels: Mapping[str, Sequence[str]]
    buckets: Mapping[str, Sequence[str]]

    @property
    def filled_controls(self) -> list[Control]:
        """Return the controls that get regions, the <Labels> of shapes on images included.

        A box in a video carries its labels itself.
        """
        labels = {filled.label_control for filled in self.filled if filled.control.type != "videorectangle"}
        filled = {filled.control for filled in self.filled} | labels
        return [control for control in self.config.controls.values() if control in filled]

    @property
    def objects(self) -> list[Object]:
        """Return the objects that the filled controls are about, in the order of the label config."""
        names = {shown.name for filled in self.filled for shown in filled.objects}
        return [shown for name, shown in self.config.objects.items() if name in names]


def plan_model(config: LabelConfig) -> ModelPlan:
    """Choose a recipe for each control of a label config."""
    channels = names_below(config, "channel", "column")
    planned = {name: _find_recipe(control, config, channels) for name, control in config.controls.items()}
    label_controls = {
        name: label_control
        for name, recipe in planned.items()
        if isinstance(recipe, Recipe)
        and recipe.can_take_labels
        and (label_control := _find_label_control(config.controls[name], config)) is not None
    }
    filled: list[FilledControl] = []
    empty: list[tuple[Control, str]] = []
    slugs: set[str] = set()
    for name, recipe in planned.items():
        control = config.controls[name]
        if isinstance(recipe, Recipe):
            objects = tuple(config.objects[name] for name in control.to_names)
            filled.append(FilledControl(control, recipe, objects, _make_slug(name, slugs), label_controls.get(name)))
        elif control not in label_controls.values():
            empty.append((control, recipe))
    return ModelPlan(config, tuple(filled), tuple(empty), channels, names_below(config, "bucket", "name"))


def _find_recipe(control: Control, config: LabelConfig, channels: Mapping[str, Sequence[str]]) -> Recipe | str:
    """Return the recipe of a control, or why it is left empty."""
    objects = [config.objects[name] for name in control.to_names]
    fitting = [
        recipe for recipe in RECIPES.get(control.type, ()) if all(recipe.can_be_about(shown.tag) for shown in objects)
    ]
    if not fitting:
        return f"there is no recipe for {control.tag} over {objects[0].tag}"
    if fitting[0].needs_labels and not control.labels and not control.has_dynamic_labels:
        return "it has no labels"
    if control.type == "pairwise" and len({shown.tag.lower() for shown in objects}) * len(objects) != 2:
        return "it does not compare two objects of one kind"
    return _why_empty(control, objects, channels) or fitting[0]


def _why_empty(control: Control, objects: Sequence[Object], channels: Mapping[str, Sequence[str]]) -> str | None:
    """Return why a control is left empty although there is a recipe for its type; None if it is not."""
    if control.per_region:
        return "it describes regions of other controls"
    if control.per_item or any("valueList" in shown.attrs for shown in objects):
        return "it is about a list of images"
    if control.has_dynamic_labels:
        return "its labels come with each task"
    for shown in objects:
        tag = shown.tag.lower()
        if shown.data_key is None and tag in MEDIA_TAGS | {"timeseries", "paragraphs", "list"}:
            return f"{shown.name} shows every task the same"
        if tag == "timeseries" and not channels.get(shown.name):
            return f"{shown.name} shows no channel"
        if tag != "timeseries" and shown.attrs.get("valueType", "").lower() == "url":
            return f"{shown.name} shows what is behind a URL"
    return None


def _find_label_control(control: Control, config: LabelConfig) -> Control | None:
    """Return the <Labels> that names what a tool without labels draws on the same object."""
    for other in config.controls.values():
        is_usable = other.labels and not (other.has_dynamic_labels or other.per_region or other.per_item)
        if other.type == "labels" and other.to_names == control.to_names and is_usable:
            return other
    return None


def names_below(config: LabelConfig, tag: str, attribute: str) -> dict[str, tuple[str, ...]]:
    """Return an attribute of all elements of a tag below each named element, by its name."""
    return {
        element.attrib["name"]: tuple(
            child.attrib[attribute]
            for child in element.iter()
            if child is not element and child.tag.lower() == tag and child.attrib.get(attribute)
        )
        for element in parse_xml(config.xml).iter()
        if element.attrib.get("name")
    }


def read_separator(shown: Object) -> str:
    """Return the character between the columns of a <TimeSeries>; its `sep` may be written as "tab" or "\\t"."""
    text = shown.attrs.get("sep") or ","
    return {"tab": "\t", "\\t": "\t", "auto": ","}.get(text.lower(), text[0])


def _make_slug(name: str, taken: set[str]) -> str:
    """Return a name as a part of an identifier, and add it to those that are taken."""
    base = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "control"
    slug = next(slug for n in count(1) if (slug := base if n == 1 else f"{base}_{n}") not in taken)
    taken.add(slug)
    return slug
