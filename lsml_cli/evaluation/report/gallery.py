"""The tasks on which model and people disagree most: their texts, and their pictures with both answers on them."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from lsml_cli.errors import LsmlError
from lsml_cli.evaluation.evaluate import ControlEvaluation, Disagreement
from lsml_cli.evaluation.metrics.geometry import iou_matrix
from lsml_cli.evaluation.metrics.regions import ScoredRegion, match_detections
from lsml_cli.evaluation.metrics.texts import Transcription, character_edits, match_texts
from lsml_cli.evaluation.report.markup import escape_text, format_name, pluralize, shorten
from lsml_cli.evaluation.scorers import extract_regions, extract_texts, lowest_control_score
from lsml_cli.media.fetcher import Media
from lsml_cli.schema.annotations import extract_labels
from lsml_cli.schema.label_config import Control, LabelConfig, Object
from lsml_cli.schema.shapes import Shape, parse_image_size

MAX_IMAGE_SIDE = 800  # pixels of the longer side of a picture in the page
JPEG_QUALITY = 78  # of its JPEG
DRAWING_WIDTH = 1000  # units of a drawing
FONT_SIZE = 34  # units that letters are high
MAX_TEXT_LENGTH = 700  # characters of a text
MAX_NAMED_REGIONS = 4  # regions of each side whose labels are written on a picture; more would cover it
MAX_LISTED_TEXTS = 8  # texts of a picture that are listed


@dataclass(frozen=True)
class EmbeddedImage:
    """A picture for the page: a JPEG as a data URI, its sides in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Example:
    """One card. `picture` is the reason where there is none; None for a task that shows no picture."""

    disagreement: Disagreement
    image: EmbeddedImage | str | None
    text: str
    task_url: str | None


def build_examples(
    evaluation: ControlEvaluation, config: LabelConfig, media: Media, label_studio_url: str | None
) -> list[Example]:
    """The worst tasks of a control, with what they show. Media that cannot be had cost their own picture only."""
    about = [config.objects[to_name] for to_name in evaluation.control.to_names]
    return [_build_example(each, about, media, label_studio_url) for each in evaluation.disagreements]


def _build_example(
    disagreement: Disagreement, objects: Sequence[Object], media: Media, label_studio_url: str | None
) -> Example:
    picture: EmbeddedImage | str | None = None
    texts = []
    for shown in objects:
        try:
            value = shown.read(disagreement.task.data)
        except ValueError as error:
            texts.append(str(error))
            continue
        if shown.tag.lower() == "image" and isinstance(value, str) and picture is None:
            picture = _load_image(value, disagreement.task.id, media)
        else:
            texts.append(_as_text(value))
    return Example(disagreement, picture, "\n".join(texts), build_task_url(disagreement, label_studio_url))


def build_task_url(disagreement: Disagreement, label_studio_url: str | None) -> str | None:
    """Where the task is in Label Studio; None where that is not known."""
    task = disagreement.task
    if (
        label_studio_url is None
        or task.project is None
        or task.id is None
        or not label_studio_url.startswith(("http://", "https://"))
    ):
        return None
    return f"{label_studio_url.rstrip('/')}/projects/{quote(task.project, safe='')}/data?task={task.id}"


def _load_image(value: str, task_id: int | None, media: Media) -> EmbeddedImage | str:
    from lsml_cli.media import images

    try:
        picture = images.decode(media.fetch(value, task_id), min_side=MAX_IMAGE_SIDE)
    except (ValueError, OSError, LsmlError) as error:
        return f"The picture cannot be shown: {error}"
    picture.thumbnail((MAX_IMAGE_SIDE, MAX_IMAGE_SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    code = base64.b64encode(file.getvalue()).decode()
    return EmbeddedImage(f"data:image/jpeg;base64,{code}", picture.width, picture.height)


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        lines = [each.get("text", each) if isinstance(each, dict) else each for each in value]
        return "\n".join(map(str, lines))
    return str(value)


# ---- cards


def render_gallery(evaluation: ControlEvaluation, examples: Sequence[Example]) -> str:
    """All cards of a control, with switches for what is drawn on pictures."""
    if not examples:
        return ""
    cards = "".join(_render_card(evaluation, each) for each in examples)
    drawn = evaluation.kind != "choices" and any(isinstance(each.image, EmbeddedImage) for each in examples)
    wide = " pictures" if drawn else ""
    place = f"g-{escape_text(evaluation.control.name)}"
    switches = (
        '<fieldset class="switches"><legend>Draw</legend>'
        '<label><input type="checkbox" class="show-people" checked> <span class="key people">people</span></label>'
        '<label><input type="checkbox" class="show-model" checked> <span class="key model">model</span></label>'
    )
    if evaluation.kind == "regions":
        switches += '<label><input type="checkbox" class="show-agreed" checked> <span>where both agree</span></label>'
    return (
        f'<section class="gallery" aria-labelledby="{place}"><h3 id="{place}">Where model and people disagree most</h3>'
        f'{f"{switches}</fieldset>" if drawn else ""}<div class="cards{wide}">{cards}</div></section>'
    )


def _render_card(evaluation: ControlEvaluation, example: Example) -> str:
    control, found = evaluation.control, example.disagreement
    # A drawing is ACROSS wide, and as high as the picture's sides ask for, so that letters keep their form.
    down = (
        DRAWING_WIDTH * example.image.height / example.image.width
        if isinstance(example.image, EmbeddedImage)
        else DRAWING_WIDTH
    )
    drawing, says = {"choices": _render_choices, "regions": _render_regions, "texts": _render_texts}[evaluation.kind](
        control, found, down
    )
    shown = ""
    if isinstance(example.image, EmbeddedImage):
        shown = _render_image(example.image, drawing, down, found)
    elif example.image is not None:
        shown = f'<p class="missing">{escape_text(example.image)}</p>'
    if example.text:
        shown += f'<blockquote dir="auto">{escape_text(shorten(example.text, MAX_TEXT_LENGTH))}</blockquote>'
    number = found.task.id if found.task.id is not None else f"at position {found.task.index:,}"
    where = f"Task {number}"
    if example.task_url:
        where = f'<a href="{escape_text(example.task_url)}" rel="noreferrer">{where} in Label Studio</a>'
    return f'<article class="card">{shown}<div class="says">{says}</div><footer>{where}</footer></article>'


def _render_image(image: EmbeddedImage, drawing: str, height: float, disagreement: Disagreement) -> str:
    alt = f"Picture of task {disagreement.task.id if disagreement.task.id is not None else disagreement.task.index}"
    overlay = f'<svg viewBox="0 0 {DRAWING_WIDTH} {height:.1f}" aria-hidden="true">{drawing}</svg>' if drawing else ""
    sides = f'width="{image.width}" height="{image.height}"'
    return (
        f'<div class="picture" style="aspect-ratio:{image.width}/{image.height}">'
        f'<img src="{image.uri}" {sides} alt="{escape_text(alt)}">{overlay}</div>'
    )


def _render_choices(control: Control, disagreement: Disagreement, height: float) -> tuple[str, str]:
    sides = []
    for side, result in (("people", disagreement.truth), ("model", disagreement.prediction)):
        labels = extract_labels(control, result)
        score = lowest_control_score(control, result) if side == "model" else None
        sure = f' <span class="score">{score:.2f}</span>' if score is not None else ""
        sides.append(
            _render_side(side, "".join(_render_label(label) for label in labels) + sure if labels else "<i>nothing</i>")
        )
    return "", "".join(sides)


def _render_regions(control: Control, disagreement: Disagreement, height: float) -> tuple[str, str]:
    """Both answers drawn, and in words what was missed and what was invented."""
    truths = extract_regions(control, disagreement.truth)
    guesses = sorted(extract_regions(control, disagreement.prediction), key=lambda each: -each.score)
    size = next(
        (size for region in (*disagreement.truth, *disagreement.prediction) if (size := parse_image_size(region))), None
    )
    right = _matched_predictions(truths, guesses, size)
    seen = _matched_truths(truths, guesses, size, right)
    drawing = _render_outlines(truths, seen, height, "people") + _render_outlines(guesses, right, height, "model")
    missed = [each.label for each, agreed in zip(truths, seen, strict=True) if not agreed]
    invented = [each.label for each, agreed in zip(guesses, right, strict=True) if not agreed]
    says = _render_side("people", f"{_render_label_counts(missed)} that the model missed") if missed else ""
    says += _render_side("model", f"{_render_label_counts(invented)} that people did not mark") if invented else ""
    return drawing, says + f'<p class="note">{pluralize(sum(right), "region")} in agreement</p>'


def _matched_predictions(
    truths: Sequence[ScoredRegion], predictions: Sequence[ScoredRegion], image_size: tuple[int, int] | None
) -> list[bool]:
    right = [False] * len(predictions)
    for label in {each.label for each in predictions}:
        mine = [i for i, each in enumerate(predictions) if each.label == label]
        true = [each.shape for each in truths if each.label == label]
        for i, matched in zip(
            mine,
            match_detections(iou_matrix([predictions[i].shape for i in mine], true, image_size), (0.5,)),
            strict=True,
        ):
            right[i] = bool(matched)
    return right


def _matched_truths(
    truths: Sequence[ScoredRegion],
    predictions: Sequence[ScoredRegion],
    image_size: tuple[int, int] | None,
    is_matched: Sequence[bool],
) -> list[bool]:
    """Which true regions were found: as many of a class as there are right ones, those that overlap most."""
    seen = [False] * len(truths)
    for guess, matched in zip(predictions, is_matched, strict=True):
        free = [i for i, each in enumerate(truths) if each.label == guess.label and not seen[i]]
        if matched and free:
            overlap = iou_matrix([guess.shape], [truths[i].shape for i in free], image_size)[0]
            seen[free[int(overlap.argmax())]] = True
    return seen


def _render_texts(control: Control, disagreement: Disagreement, height: float) -> tuple[str, str]:
    truths, guesses = extract_texts(control, disagreement.truth), extract_texts(control, disagreement.prediction)
    size = next(
        (size for region in (*disagreement.truth, *disagreement.prediction) if (size := parse_image_size(region))), None
    )
    drawing = [_render_shape(each.shape, height, "people", False, "", each.text) for each in truths if each.shape]
    drawing += [_render_shape(each.shape, height, "model", False, "", each.text) for each in guesses if each.shape]
    return "".join(drawing), _render_text_errors(truths, guesses, size)


def _render_text_errors(
    truths: Sequence[Transcription], predictions: Sequence[Transcription], image_size: tuple[int, int] | None
) -> str:
    """A table of what was read wrongly, the worst first."""
    pairs, missed, invented = match_texts(truths, predictions, image_size)
    wrong: list[tuple[int, str, str]] = [
        (edits, true, guess) for true, guess in pairs if (edits := character_edits(true, guess)[0])
    ]
    wrong += [(len(text), text, "") for text in missed] + [(len(text), "", text) for text in invented]
    wrong.sort(key=lambda each: -each[0])
    rows = "".join(
        f"<tr><td>{format_name(shorten(true, 60))}</td><td>{format_name(shorten(guess, 60))}</td></tr>"
        for _, true, guess in wrong[:MAX_LISTED_TEXTS]
    )
    more = f'<p class="note">and {len(wrong) - MAX_LISTED_TEXTS:,} more</p>' if len(wrong) > MAX_LISTED_TEXTS else ""
    return (
        '<table class="read"><thead><tr><th scope="col"><span class="key people">people</span></th>'
        f'<th scope="col"><span class="key model">model</span></th></tr></thead><tbody>{rows}</tbody></table>{more}'
    )


def _render_shape(shape: Shape, height: float, side: str, agreed: bool, label: str, title: str) -> str:
    """An outline, with a label if there is one, and a title that appears when it is pointed at."""
    corners = [(x * DRAWING_WIDTH / 100, y * height / 100) for x, y in shape.outline()]
    if not corners:
        return ""
    kind = f"{side} agreed" if agreed else side
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + "Z"
    text = ""
    if label:
        left, right = min(x for x, _ in corners), max(x for x, _ in corners)
        top, bottom = min(y for _, y in corners), max(y for _, y in corners)
        at_end = left > DRAWING_WIDTH * 0.7
        y = (
            max(top - 8, FONT_SIZE) if side == "people" else min(bottom + FONT_SIZE, height - 6)
        )  # neither over the other
        x, anchor = (right, "end") if at_end else (left, "start")
        text = f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape_text(label)}</text>'
    return f'<path class="{kind}" d="{path}"><title>{side}: {escape_text(title)}</title></path>{text}'


def _render_outlines(regions: Sequence[ScoredRegion], agreed: Sequence[bool], height: float, side: str) -> str:
    """All regions of one side, the largest below; the largest of those that only this side has bear their names."""
    order = sorted(range(len(regions)), key=lambda i: -_area(regions[i].shape))
    named = [i for i in order if not agreed[i]][:MAX_NAMED_REGIONS]
    drawn = []
    for i in order:
        label = regions[i].label if side == "people" else f"{shorten(regions[i].label, 28)} {regions[i].score:.2f}"
        drawn.append(_render_shape(regions[i].shape, height, side, agreed[i], label if i in named else "", label))
    return "".join(drawn)


def _area(shape: Shape) -> float:
    """Of the box around a shape."""
    across, down = zip(*(shape.outline() or [(0.0, 0.0)]), strict=True)
    return float((max(across) - min(across)) * (max(down) - min(down)))


def _render_label_counts(labels: Sequence[str]) -> str:
    counts = Counter(labels)
    shown = [_render_label(label, f" &times; {count:,}" if count > 1 else "") for label, count in counts.most_common(6)]
    more = f" and {pluralize(len(counts) - 6, 'other class', 'other classes')}" if len(counts) > 6 else ""
    return " ".join(shown) + more


def _render_label(label: str, times: str = "") -> str:
    return f'<span class="chip">{format_name(shorten(label, 60))}{times}</span>'


def _render_side(side: str, content: str) -> str:
    return f'<p><span class="key {side}">{side}</span> {content}</p>'
