"""Build cards of tasks with what was predicted or annotated, without comparing it with anything."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from lsml_cli.evaluation.prediction_records import parse_score
from lsml_cli.evaluation.report.drawing import (
    DRAWING_WIDTH,
    MAX_LABEL_LENGTH,
    Caption,
    CaptionPlacer,
    Outline,
    bounding_box_area,
    scale_outline,
)
from lsml_cli.evaluation.report.examples import EmbeddedImage, build_task_url, format_value, load_image
from lsml_cli.evaluation.report.formatting import pluralize, shorten
from lsml_cli.evaluation.report.marked_text import MarkedSpan, TextSegment, mark_spans
from lsml_cli.evaluation.survey import ShownTask, Survey, SurveyedTask, region_labels, region_text
from lsml_cli.media.fetcher import Media
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.shapes import Point, Shape, parse_image_size, parse_keypoint, parse_shape
from lsml_cli.schema.value_checks import is_integer

MAX_TEXT_LENGTH = 2000  # characters of a task's text
MAX_LISTED_LABELS = 8  # of one control
MAX_LISTED_TEXTS = 12  # of one control
MAX_CAPTIONS = 40  # on one image
MAX_OUTLINES = 500  # on one image
MANY_OUTLINES = 10  # from more on, captions are small
MAX_FILTER_LABELS = 60
MAX_IMAGE_BYTES = 24 << 20  # of all images of a page together
FETCH_THREADS = 16
COLOURS = 10  # in style.css
KEYPOINT_RADIUS = 9  # units
DEFAULT_HEIGHT = DRAWING_WIDTH * 3 // 4  # units, of a drawing without an image whose size is not known

# The certainty of a task: name of the CSS class, what the filter calls it, the lowest and the highest value.
BANDS = (
    ("b0", "below 0.5", 0.0, 0.5),
    ("b1", "0.5 to 0.8", 0.5, 0.8),
    ("b2", "0.8 to 0.95", 0.8, 0.95),
    ("b3", "0.95 and above", 0.95, 2.0),
)
NO_BAND = ("bn", "without a score")

_IMAGE_SUFFIX = re.compile(r"\.(?:jpe?g|png|gif|webp|bmp|tiff?|avif|jp2|ppm)(?:[?#].*)?\Z", re.IGNORECASE)

LabelKey = tuple[str, str]  # names of a control and a label


@dataclass(frozen=True)
class ControlAnswer:
    """What is predicted for one control.

    Attributes:
        name: Of the control.
        labels: With how often each occurs and its colour, the most frequent first.
        other_labels: Number of labels left out.
        texts: Of a <TextArea>, or of spans that are not marked in a text.
        other_texts: Number of texts left out.
        region_count: Number of regions that have neither label nor text.
        score: The lowest of its regions.
    """

    name: str
    labels: Sequence[tuple[str, int, int]]
    other_labels: int
    texts: Sequence[str]
    other_texts: int
    region_count: int
    score: float | None


@dataclass(frozen=True)
class SurveyCard:
    """One task with its prediction; the fields that `card.html.j2` draws mean the same as those of `gallery.Card`.

    Attributes:
        answers: By control.
        certainty: The lowest score of the regions, else that of the prediction.
        labels: That the filter finds it by.
        css_class: Classes that the filters look for: only letters and digits.
        hidden_captions: Number of regions whose labels found no room on the image.
    """

    task_id: int | None
    position: int
    task_url: str | None
    image: EmbeddedImage | None
    image_error: str | None
    segments: Sequence[TextSegment]
    outlines: Sequence[Outline]
    height: float
    answers: Sequence[ControlAnswer]
    certainty: float | None
    labels: frozenset[LabelKey]
    css_class: str
    hidden_captions: int


@dataclass(frozen=True)
class FilterOption:
    """A choice of a filter, with the class of the cards that it keeps."""

    css_class: str
    text: str
    count: int


@dataclass(frozen=True)
class CardSet:
    """The cards of a page and the filters that fit them. `missing_images` is the number of images not shown.

    `first_missing` is the reason of the first of these.
    """

    cards: Sequence[SurveyCard]
    label_options: Sequence[FilterOption]
    score_options: Sequence[FilterOption]
    group_options: Sequence[FilterOption]
    missing_images: int
    first_missing: str = ""

    @property
    def has_drawings(self) -> bool:
        return any(card.outlines for card in self.cards)

    @property
    def has_images(self) -> bool:
        return any(card.image or card.outlines for card in self.cards)


def assign_colours(survey: Survey) -> dict[LabelKey, int]:
    """Give each label a colour, the frequent ones of a control different ones."""
    keys = [
        (control.name, label)
        for control in survey.controls.values()
        for label, _ in sorted(control.labels.items(), key=lambda entry: -entry[1].regions)
    ]
    return {key: number % COLOURS for number, key in enumerate(keys)}


def build_cards(
    survey: Survey,
    colours: Mapping[LabelKey, int],
    config: LabelConfig | None,
    media: Media,
    label_studio_url: str | None,
) -> CardSet:
    """Fetch the images of the shown tasks, and build their cards.

    Args:
        survey: The survey; without a label config its controls tell what the data of tasks are.
        colours: Of labels, see `assign_colours`.
        config: The label config, if there is one.
        media: Fetches images.
        label_studio_url: The server that links to tasks lead to; None for no links.
    """
    views = [_read_objects(shown.task, survey, config) for shown in survey.shown]
    images = _load_images([view.image for view in views], [shown.task.id for shown in survey.shown], media)
    cards = [
        _build_card(shown, view, image, colours, label_studio_url)
        for shown, view, image in zip(survey.shown, views, images, strict=True)
    ]
    label_options, classes = _build_label_options(cards, len(survey.controls) > 1)
    cards = [
        replace(
            card, css_class=" ".join([card.css_class, *(classes[key] for key in sorted(card.labels & classes.keys()))])
        )
        for card in cards
    ]
    missing = [image for image in images if isinstance(image, str)]
    return CardSet(
        cards,
        label_options,
        _build_score_options(cards),
        _build_group_options(survey),
        len(missing),
        next(iter(missing), ""),
    )


@dataclass(frozen=True)
class _Text:
    """A text of a task; `name` is that of its object, or the key of the data."""

    name: str
    text: str
    turns: Sequence[str] | None = None  # of a dialogue, which are the lines of `text`


@dataclass(frozen=True)
class _TaskView:
    """What a task shows: the address of its image, and its texts."""

    image: str | None
    texts: Sequence[_Text]


def _read_objects(task: SurveyedTask, survey: Survey, config: LabelConfig | None) -> _TaskView:
    if task.data is None:
        return _TaskView(None, ())
    image, texts = None, []
    for name, value, is_image in _iter_values(task.data, survey, config):
        if is_image and isinstance(value, str) and image is None:
            image = value
        else:
            turns = format_value(value).split("\n") if isinstance(value, list) else None
            texts.append(_Text(name, format_value(value), turns if turns and len(turns) == len(value) else None))
    return _TaskView(image, texts)


def _iter_values(
    data: Mapping[str, Any], survey: Survey, config: LabelConfig | None
) -> Iterator[tuple[str, Any, bool]]:
    """Yield the name, the value, and whether it is an image, of each object of a task."""
    if config is not None:
        referenced = {name for control in config.controls.values() for name in control.to_names}
        for obj in config.objects.values():
            if obj.name in referenced:
                try:
                    yield obj.name, obj.read(data), obj.tag.lower() == "image"
                except ValueError as error:
                    yield obj.name, str(error), False
        return
    image_names = {control.to_name for control in survey.controls.values() if control.has_image_size}
    for key, value in data.items():
        is_image = isinstance(value, str) and (
            key in image_names or value.startswith("data:image/") or _IMAGE_SUFFIX.search(value) is not None
        )
        if is_image or (isinstance(value, str | list) and value):
            yield key, value, is_image


def _load_images(
    addresses: Sequence[str | None], task_ids: Sequence[int | None], media: Media
) -> list[EmbeddedImage | str | None]:
    """Fetch images, several at a time, until the page has as much of them as it may have."""
    images: list[EmbeddedImage | str | None] = [None] * len(addresses)
    wanted = [i for i, address in enumerate(addresses) if address is not None]
    size = 0
    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        for start in range(0, len(wanted), FETCH_THREADS):
            batch = wanted[start : start + FETCH_THREADS]
            if size >= MAX_IMAGE_BYTES:
                for i in batch:
                    images[i] = f"This image is not shown: a page holds {MAX_IMAGE_BYTES >> 20} MB of images."
                continue
            loaded = pool.map(lambda i: load_image(addresses[i] or "", task_ids[i], media), batch)
            for i, image in zip(batch, loaded, strict=True):
                images[i] = image
                size += len(image.uri) if isinstance(image, EmbeddedImage) else 0
    return images


def _build_card(
    shown: ShownTask,
    view: _TaskView,
    image: EmbeddedImage | str | None,
    colours: Mapping[LabelKey, int],
    label_studio_url: str | None,
) -> SurveyCard:
    task = shown.task
    embedded = image if isinstance(image, EmbeddedImage) else None
    height = _drawing_height(embedded, task.result)
    outlines = _draw(task.result, colours, height)
    segments, unmarked = _mark_texts(view.texts, task.result, colours)
    has_note = task.data is None and not outlines
    named = {(str(region.get("from_name")), label) for region in task.result for label in region_labels(region)}
    return SurveyCard(
        task_id=task.id,
        position=task.index,
        task_url=build_task_url(task.id, task.project, label_studio_url),
        image=embedded,
        image_error=image
        if isinstance(image, str)
        else "The file holds the id of the task, not what it shows."
        if has_note
        else None,
        segments=segments,
        outlines=outlines,
        height=height,
        answers=_build_answers(task.result, unmarked, colours),
        certainty=task.certainty,
        labels=frozenset(named),
        css_class=" ".join([_find_band(task.certainty), *(f"g{group}" for group in sorted(shown.groups))]),
        hidden_captions=sum(bool(outline.title) and outline.caption is None for outline in outlines),
    )


def _drawing_height(image: EmbeddedImage | None, result: Sequence[Mapping[str, Any]]) -> float:
    """Return the height of a drawing whose width is `DRAWING_WIDTH`."""
    if image is not None:
        return DRAWING_WIDTH * image.height / image.width
    size = next((size for region in result if (size := parse_image_size(region))), None)
    return min(max(DRAWING_WIDTH * size[1] / size[0], 100), 4000) if size else DEFAULT_HEIGHT


def _draw(result: Sequence[Mapping[str, Any]], colours: Mapping[LabelKey, int], height: float) -> list[Outline]:
    """Draw the shapes of a result, large ones below small ones; regions that share an id are one outline."""
    by_id: dict[object, list[Mapping[str, Any]]] = {}
    for number, region in enumerate(result):
        by_id.setdefault(region.get("id") or number, []).append(region)
    drawn = []
    for regions in by_id.values():
        corners, area = _find_corners(regions, height)
        if corners:
            drawn.append((area, corners, regions))
    drawn.sort(key=lambda entry: -entry[0])
    placer = CaptionPlacer(height, is_small=len(drawn) > MANY_OUTLINES)
    outlines, captions = [], 0
    for _, corners, regions in drawn[:MAX_OUTLINES]:
        name, score, colour = _name_regions(regions, colours)
        title = name if score is None else f"{name} {score:.2f}".strip()
        caption: Caption | None = None
        if title and captions < MAX_CAPTIONS:
            short = shorten(name, MAX_LABEL_LENGTH)
            texts = [short] if score is None else [f"{short} {score:.2f}".strip(), short]
            placed = (placer.place(corners, text, "people") for text in texts if text)
            caption = next((place for place in placed if place is not None), None)
            captions += caption is not None
        outlines.append(Outline("model", False, corners, title, caption, colour))
    return outlines


def _find_corners(regions: Sequence[Mapping[str, Any]], height: float) -> tuple[Sequence[Point], float]:
    for region in regions:
        shape = parse_shape(region)
        if shape is not None and (corners := scale_outline(shape, height)):
            return corners, bounding_box_area(shape)
        if str(region.get("type")).startswith("keypoint") and (point := parse_keypoint(region)) is not None:
            [(x, y)] = scale_outline(Shape(points=(point,)), height)
            r = KEYPOINT_RADIUS
            return [(x - r, y), (x, y - r), (x + r, y), (x, y + r)], 0.0
    return (), 0.0


def _name_regions(
    regions: Sequence[Mapping[str, Any]], colours: Mapping[LabelKey, int]
) -> tuple[str, float | None, int]:
    """Return the text (or else the labels), the lowest score, and the colour of the regions of one outline."""
    labels = [(str(region.get("from_name")), label) for region in regions for label in region_labels(region)]
    texts = [text for region in regions if (text := region_text(region))]
    scores = [score for region in regions if (score := parse_score(region.get("score"))) is not None]
    name = texts[0] if texts else ", ".join(dict.fromkeys(label for _, label in labels))
    return name, min(scores, default=None), next((colours[key] for key in labels if key in colours), 0)


def _mark_texts(
    texts: Sequence[_Text], result: Sequence[Mapping[str, Any]], colours: Mapping[LabelKey, int]
) -> tuple[list[TextSegment], frozenset[int]]:
    """Return the texts of a task with the spans marked in them, and the `id()` of spans that are not marked."""
    segments: list[TextSegment] = []
    spans = [region for region in result if _is_span(region)]
    names = {text.name for text in texts}
    marked: set[int] = set()
    for text in texts:
        own = []
        shown = shorten(text.text, MAX_TEXT_LENGTH)
        for number, region in enumerate(spans):
            # Without a label config the name of an object need not be a key of the data.
            is_own = region.get("to_name") == text.name or region.get("to_name") not in names
            if is_own and number not in marked and (mark := _find_span(region, text, colours)) is not None:
                marked.add(number)
                own.append(mark)
        separator = [TextSegment("\n")] if segments else []
        segments += [*separator, *mark_spans(shown, own)] if shown else []
    return segments, frozenset(id(region) for number, region in enumerate(spans) if number not in marked)


def _is_span(region: Mapping[str, Any]) -> bool:
    value = region.get("value")
    return (
        region.get("type") in ("labels", "hypertextlabels", "paragraphlabels")
        and isinstance(value, Mapping)
        and "start" in value
    )


def _find_span(region: Mapping[str, Any], text: _Text, colours: Mapping[LabelKey, int]) -> MarkedSpan | None:
    """Find a span in a text; None if it is not there, or in markup, whose offsets do not count its characters."""
    value = region["value"]
    start, end = value.get("start"), value.get("end")
    if text.turns is not None:
        start = _turn_offset(start, value.get("startOffset"), text.turns)
        end = _turn_offset(end, value.get("endOffset"), text.turns)
    if not (is_integer(start) and is_integer(end) and 0 <= start < end <= len(text.text)):
        return None
    stated = value.get("text")
    has_breaks = isinstance(stated, str) and "\\n" in stated  # which the editor writes in its own way
    is_compared = isinstance(stated, str) and text.turns is None and not has_breaks
    if is_compared and str(stated).split() != text.text[start:end].split():
        return None
    name, score, colour = _name_labels(region, colours)
    return MarkedSpan(start, end, name, name if score is None else f"{name} {score:.2f}", colour)


def _name_labels(region: Mapping[str, Any], colours: Mapping[LabelKey, int]) -> tuple[str, float | None, int]:
    labels = region_labels(region)
    control = str(region.get("from_name"))
    colour = next((colours[control, label] for label in labels if (control, label) in colours), 0)
    return ", ".join(labels) or control, parse_score(region.get("score")), colour


def _turn_offset(turn: object, offset: object, turns: Sequence[str]) -> int | None:
    """Return the offset in the lines that turns become; that in a turn counts UTF-16 code units."""
    if not (
        isinstance(offset, int)
        and offset >= 0
        and re.fullmatch(r"[0-9]{1,9}", str(turn))
        and int(str(turn)) < len(turns)
    ):
        return None
    index = int(str(turn))
    before = turns[index].encode("utf-16-le", "surrogatepass")[: 2 * offset].decode("utf-16-le", "ignore")
    return sum(len(line) + 1 for line in turns[:index]) + len(before)


def _build_answers(
    result: Sequence[Mapping[str, Any]], unmarked: frozenset[int], colours: Mapping[LabelKey, int]
) -> list[ControlAnswer]:
    by_control: dict[str, list[Mapping[str, Any]]] = {}
    for region in result:
        if isinstance(region.get("from_name"), str):
            by_control.setdefault(region["from_name"], []).append(region)
    return [_build_answer(name, regions, unmarked, colours) for name, regions in by_control.items()]


def _build_answer(
    name: str,
    regions: Sequence[Mapping[str, Any]],
    unmarked: frozenset[int],
    colours: Mapping[LabelKey, int],
) -> ControlAnswer:
    counts = Counter(label for region in regions for label in region_labels(region))
    labels = [(label, count, colours.get((name, label), 0)) for label, count in counts.most_common(MAX_LISTED_LABELS)]
    texts = [
        text
        for region in regions
        if (region.get("type") == "textarea" or id(region) in unmarked) and (text := region_text(region))
    ]
    bare = sum(not region_labels(region) and region_text(region) is None for region in regions)
    scores = [score for region in regions if (score := parse_score(region.get("score"))) is not None]
    return ControlAnswer(
        name,
        labels,
        len(counts) - len(labels),
        texts[:MAX_LISTED_TEXTS],
        max(len(texts) - MAX_LISTED_TEXTS, 0),
        bare,
        min(scores, default=None),
    )


def _find_band(certainty: float | None) -> str:
    if certainty is None:
        return NO_BAND[0]
    return next((name for name, _, low, high in BANDS if low <= certainty < high), BANDS[0][0])


def _build_label_options(
    cards: Sequence[SurveyCard], names_control: bool
) -> tuple[list[FilterOption], dict[LabelKey, str]]:
    counts = Counter(key for card in cards for key in sorted(card.labels))
    classes = {key: f"l{number}" for number, (key, _) in enumerate(counts.most_common(MAX_FILTER_LABELS))}
    options = [
        FilterOption(classes[key], f"{key[0]}: {key[1]}" if names_control else key[1], counts[key]) for key in classes
    ]
    return options, classes


def _build_score_options(cards: Sequence[SurveyCard]) -> list[FilterOption]:
    counts = Counter(_find_band(card.certainty) for card in cards)
    names = [(name, text) for name, text, *_ in BANDS] + [NO_BAND]
    options = [FilterOption(name, text, counts[name]) for name, text in names if counts[name]]
    return options if len(options) > 1 else []


def _build_group_options(survey: Survey) -> list[FilterOption]:
    counts = Counter(group for shown in survey.shown for group in shown.groups)
    texts = (("least", "the least certain"), ("most", "the most certain"), ("sample", "a random sample"))
    return [FilterOption(f"g{group}", text, counts[group]) for group, text in texts if counts[group]]  # type: ignore[index]


def describe_shown(survey: Survey) -> str:
    """Say which tasks are shown: "200 of 5,000 tasks: the 25 least certain, the 25 most certain, and 150 at random."""
    if not survey.is_sampled:
        return f"All {pluralize(survey.tasks, 'task')}" if survey.tasks != 1 else "The only task"
    options = _build_group_options(survey)
    parts = [f"{option.text} ({option.count:,})" for option in options]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{len(survey.shown):,} of {survey.tasks:,} tasks: {listed}"
