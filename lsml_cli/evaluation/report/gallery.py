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
from lsml_cli.evaluation.evaluate import Disagreement, Judged
from lsml_cli.evaluation.metrics.geometry import Shape, overlaps, size_of
from lsml_cli.evaluation.metrics.regions import Found, match
from lsml_cli.evaluation.metrics.texts import Text, character_edits, meet
from lsml_cli.evaluation.report.markup import counted, escaped, name, shortened
from lsml_cli.evaluation.scorers import regions_of, score_of, texts_of
from lsml_cli.media.fetcher import Media
from lsml_cli.schema.annotations import chosen
from lsml_cli.schema.label_config import Control, LabelConfig, Object

LONGEST = 800  # pixels of the longer side of a picture in the page
QUALITY = 78  # of its JPEG
ACROSS = 1000  # units of a drawing
LETTERS = 34  # units that letters are high
MOST_TEXT = 700  # characters of a text
MOST_NAMED = 4  # regions of each side whose labels are written on a picture; more would cover it
MOST_READ = 8  # texts of a picture that are listed


@dataclass(frozen=True)
class Picture:
    """A picture for the page: a JPEG as a data URI, its sides in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Example:
    """One card. `picture` is the reason where there is none; None for a task that shows no picture."""

    found: Disagreement
    picture: Picture | str | None
    text: str
    link: str | None


def examples_of(judged: Judged, config: LabelConfig, media: Media, label_studio_url: str | None) -> list[Example]:
    """The worst tasks of a control, with what they show. Media that cannot be had cost their own picture only."""
    about = [config.objects[to_name] for to_name in judged.control.to_names]
    return [_example(each, about, media, label_studio_url) for each in judged.worst]


def _example(found: Disagreement, about: Sequence[Object], media: Media, url: str | None) -> Example:
    picture: Picture | str | None = None
    texts = []
    for shown in about:
        try:
            value = shown.read(found.task.data)
        except ValueError as error:
            texts.append(str(error))
            continue
        if shown.tag.lower() == "image" and isinstance(value, str) and picture is None:
            picture = _picture(value, found.task.id, media)
        else:
            texts.append(_as_text(value))
    return Example(found, picture, "\n".join(texts), link_to(found, url))


def link_to(found: Disagreement, url: str | None) -> str | None:
    """Where the task is in Label Studio; None where that is not known."""
    task = found.task
    if url is None or task.project is None or task.id is None or not url.startswith(("http://", "https://")):
        return None
    return f"{url.rstrip('/')}/projects/{quote(task.project, safe='')}/data?task={task.id}"


def _picture(value: str, task_id: int | None, media: Media) -> Picture | str:
    from lsml_cli.media import images

    try:
        picture = images.decode(media.fetch(value, task_id), at_least=LONGEST)
    except (ValueError, OSError, LsmlError) as error:
        return f"The picture cannot be shown: {error}"
    picture.thumbnail((LONGEST, LONGEST))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, optimize=True)
    code = base64.b64encode(file.getvalue()).decode()
    return Picture(f"data:image/jpeg;base64,{code}", picture.width, picture.height)


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        lines = [each.get("text", each) if isinstance(each, dict) else each for each in value]
        return "\n".join(map(str, lines))
    return str(value)


# ---- cards


def gallery(judged: Judged, examples: Sequence[Example]) -> str:
    """All cards of a control, with switches for what is drawn on pictures."""
    if not examples:
        return ""
    cards = "".join(_card(judged, each) for each in examples)
    drawn = judged.kind != "choices" and any(isinstance(each.picture, Picture) for each in examples)
    wide = " pictures" if drawn else ""
    place = f"g-{escaped(judged.control.name)}"
    switches = (
        '<fieldset class="switches"><legend>Draw</legend>'
        '<label><input type="checkbox" class="show-people" checked> <span class="key people">people</span></label>'
        '<label><input type="checkbox" class="show-model" checked> <span class="key model">model</span></label>'
    )
    if judged.kind == "regions":
        switches += '<label><input type="checkbox" class="show-agreed" checked> <span>where both agree</span></label>'
    return (
        f'<section class="gallery" aria-labelledby="{place}"><h3 id="{place}">Where model and people disagree most</h3>'
        f'{f"{switches}</fieldset>" if drawn else ""}<div class="cards{wide}">{cards}</div></section>'
    )


def _card(judged: Judged, example: Example) -> str:
    control, found = judged.control, example.found
    # A drawing is ACROSS wide, and as high as the picture's sides ask for, so that letters keep their form.
    down = ACROSS * example.picture.height / example.picture.width if isinstance(example.picture, Picture) else ACROSS
    drawing, says = {"choices": _choices, "regions": _regions, "texts": _texts}[judged.kind](control, found, down)
    shown = ""
    if isinstance(example.picture, Picture):
        shown = _drawn(example.picture, drawing, down, found)
    elif example.picture is not None:
        shown = f'<p class="missing">{escaped(example.picture)}</p>'
    if example.text:
        shown += f'<blockquote dir="auto">{escaped(shortened(example.text, MOST_TEXT))}</blockquote>'
    number = found.task.id if found.task.id is not None else f"at position {found.task.index:,}"
    where = f"Task {number}"
    if example.link:
        where = f'<a href="{escaped(example.link)}" rel="noreferrer">{where} in Label Studio</a>'
    return f'<article class="card">{shown}<div class="says">{says}</div><footer>{where}</footer></article>'


def _drawn(picture: Picture, drawing: str, down: float, found: Disagreement) -> str:
    alt = f"Picture of task {found.task.id if found.task.id is not None else found.task.index}"
    overlay = f'<svg viewBox="0 0 {ACROSS} {down:.1f}" aria-hidden="true">{drawing}</svg>' if drawing else ""
    sides = f'width="{picture.width}" height="{picture.height}"'
    return (
        f'<div class="picture" style="aspect-ratio:{picture.width}/{picture.height}">'
        f'<img src="{picture.uri}" {sides} alt="{escaped(alt)}">{overlay}</div>'
    )


def _choices(control: Control, found: Disagreement, down: float) -> tuple[str, str]:
    sides = []
    for side, result in (("people", found.truth), ("model", found.guess)):
        labels = chosen(control, result)
        score = score_of(control, result) if side == "model" else None
        sure = f' <span class="score">{score:.2f}</span>' if score is not None else ""
        sides.append(_side(side, "".join(_chip(label) for label in labels) + sure if labels else "<i>nothing</i>"))
    return "", "".join(sides)


def _regions(control: Control, found: Disagreement, down: float) -> tuple[str, str]:
    """Both answers drawn, and in words what was missed and what was invented."""
    truths = regions_of(control, found.truth)
    guesses = sorted(regions_of(control, found.guess), key=lambda each: -each.score)
    size = next((size for region in (*found.truth, *found.guess) if (size := size_of(region))), None)
    right = _right(truths, guesses, size)
    seen = _seen(truths, guesses, size, right)
    drawing = _outlines(truths, seen, down, "people") + _outlines(guesses, right, down, "model")
    missed = [each.label for each, agreed in zip(truths, seen, strict=True) if not agreed]
    invented = [each.label for each, agreed in zip(guesses, right, strict=True) if not agreed]
    says = _side("people", f"{_tally(missed)} that the model missed") if missed else ""
    says += _side("model", f"{_tally(invented)} that people did not mark") if invented else ""
    return drawing, says + f'<p class="note">{counted(sum(right), "region")} in agreement</p>'


def _right(truths: Sequence[Found], guesses: Sequence[Found], size: tuple[int, int] | None) -> list[bool]:
    right = [False] * len(guesses)
    for label in {each.label for each in guesses}:
        mine = [i for i, each in enumerate(guesses) if each.label == label]
        true = [each.shape for each in truths if each.label == label]
        for i, matched in zip(mine, match(overlaps([guesses[i].shape for i in mine], true, size), (0.5,)), strict=True):
            right[i] = bool(matched)
    return right


def _seen(
    truths: Sequence[Found], guesses: Sequence[Found], size: tuple[int, int] | None, right: Sequence[bool]
) -> list[bool]:
    """Which true regions were found: as many of a class as there are right ones, those that overlap most."""
    seen = [False] * len(truths)
    for guess, matched in zip(guesses, right, strict=True):
        free = [i for i, each in enumerate(truths) if each.label == guess.label and not seen[i]]
        if matched and free:
            overlap = overlaps([guess.shape], [truths[i].shape for i in free], size)[0]
            seen[free[int(overlap.argmax())]] = True
    return seen


def _texts(control: Control, found: Disagreement, down: float) -> tuple[str, str]:
    truths, guesses = texts_of(control, found.truth), texts_of(control, found.guess)
    size = next((size for region in (*found.truth, *found.guess) if (size := size_of(region))), None)
    drawing = [_shape(each.shape, down, "people", False, "", each.text) for each in truths if each.shape]
    drawing += [_shape(each.shape, down, "model", False, "", each.text) for each in guesses if each.shape]
    return "".join(drawing), _read(truths, guesses, size)


def _read(truths: Sequence[Text], guesses: Sequence[Text], size: tuple[int, int] | None) -> str:
    """A table of what was read wrongly, the worst first."""
    pairs, missed, invented = meet(truths, guesses, size)
    wrong: list[tuple[int, str, str]] = [
        (edits, true, guess) for true, guess in pairs if (edits := character_edits(true, guess)[0])
    ]
    wrong += [(len(text), text, "") for text in missed] + [(len(text), "", text) for text in invented]
    wrong.sort(key=lambda each: -each[0])
    rows = "".join(
        f"<tr><td>{name(shortened(true, 60))}</td><td>{name(shortened(guess, 60))}</td></tr>"
        for _, true, guess in wrong[:MOST_READ]
    )
    more = f'<p class="note">and {len(wrong) - MOST_READ:,} more</p>' if len(wrong) > MOST_READ else ""
    return (
        '<table class="read"><thead><tr><th scope="col"><span class="key people">people</span></th>'
        f'<th scope="col"><span class="key model">model</span></th></tr></thead><tbody>{rows}</tbody></table>{more}'
    )


def _shape(shape: Shape, down: float, side: str, agreed: bool, label: str, title: str) -> str:
    """An outline, with a label if there is one, and a title that appears when it is pointed at."""
    corners = [(x * ACROSS / 100, y * down / 100) for x, y in shape.outline()]
    if not corners:
        return ""
    kind = f"{side} agreed" if agreed else side
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + "Z"
    text = ""
    if label:
        left, right = min(x for x, _ in corners), max(x for x, _ in corners)
        top, bottom = min(y for _, y in corners), max(y for _, y in corners)
        at_end = left > ACROSS * 0.7
        y = max(top - 8, LETTERS) if side == "people" else min(bottom + LETTERS, down - 6)  # neither over the other
        x, anchor = (right, "end") if at_end else (left, "start")
        text = f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escaped(label)}</text>'
    return f'<path class="{kind}" d="{path}"><title>{side}: {escaped(title)}</title></path>{text}'


def _outlines(several: Sequence[Found], agreed: Sequence[bool], down: float, side: str) -> str:
    """All regions of one side, the largest below; the largest of those that only this side has bear their names."""
    order = sorted(range(len(several)), key=lambda i: -_area(several[i].shape))
    named = [i for i in order if not agreed[i]][:MOST_NAMED]
    drawn = []
    for i in order:
        label = several[i].label if side == "people" else f"{shortened(several[i].label, 28)} {several[i].score:.2f}"
        drawn.append(_shape(several[i].shape, down, side, agreed[i], label if i in named else "", label))
    return "".join(drawn)


def _area(shape: Shape) -> float:
    """Of the box around a shape."""
    across, down = zip(*(shape.outline() or [(0.0, 0.0)]), strict=True)
    return float((max(across) - min(across)) * (max(down) - min(down)))


def _tally(labels: Sequence[str]) -> str:
    counts = Counter(labels)
    shown = [_chip(label, f" &times; {count:,}" if count > 1 else "") for label, count in counts.most_common(6)]
    more = f" and {counted(len(counts) - 6, 'other class', 'other classes')}" if len(counts) > 6 else ""
    return " ".join(shown) + more


def _chip(label: str, times: str = "") -> str:
    return f'<span class="chip">{name(shortened(label, 60))}{times}</span>'


def _side(side: str, inner: str) -> str:
    return f'<p><span class="key {side}">{side}</span> {inner}</p>'
