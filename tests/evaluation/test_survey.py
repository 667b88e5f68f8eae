"""`lsml show` and `lsml predict --report`: statistics, samples, pages and tables of predictions."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import webbrowser
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lsml_cli.evaluation.report import survey_page, task_cards
from lsml_cli.evaluation.report.drawing import FONT_SIZE, CaptionPlacer
from lsml_cli.evaluation.report.marked_text import MarkedSpan, mark_spans
from lsml_cli.evaluation.survey import survey_file
from lsml_cli.media.fetcher import Media
from tests.helpers.cli import EXAMPLE
from tests.helpers.report_page import HOSTILE_TEXT, ParsedPage, require_self_contained

if TYPE_CHECKING:
    from tests.helpers.cli import Lsml

CONFIG = EXAMPLE / "label_config.xml"


def make_choice(label: str, score: float | None = None, name: str = "mood") -> dict[str, Any]:
    region = {"id": "a", "from_name": name, "to_name": "text", "type": "choices", "value": {"choices": [label]}}
    return region if score is None else {**region, "score": score}


def make_span(start: int, end: int, text: str, label: str, score: float = 0.5) -> dict[str, Any]:
    value = {"start": start, "end": end, "text": text, "labels": [label]}
    return {"from_name": "entity", "to_name": "text", "type": "labels", "value": value, "score": score}


def make_box(x: float, y: float, width: float, height: float, label: str, score: float = 0.5) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": [label]}
    size = {"original_width": 200, "original_height": 100}
    return {"from_name": "thing", "to_name": "image", "type": "rectanglelabels", "value": value, "score": score} | size


def make_task(task_id: int, data: dict[str, Any], *result: dict[str, Any], version: str = "v1") -> dict[str, Any]:
    return {"id": task_id, "data": data, "predictions": [{"result": list(result), "model_version": version}]}


def write_tasks(path: Path, tasks: list[Any]) -> Path:
    path.write_text(json.dumps(tasks))
    return path


def make_texts(count: int) -> list[dict[str, Any]]:
    rng = random.Random(3)
    return [
        make_task(i, {"text": f"text number {i}"}, make_choice(rng.choice("ABC"), round(rng.random(), 4)))
        for i in range(count)
    ]


def render_page(path: Path, **options: Any) -> ParsedPage:
    survey = survey_file(str(path), **options)
    colours = task_cards.assign_colours(survey)
    cards = task_cards.build_cards(survey, colours, None, Media(root=path.parent), "https://nowhere.example")
    page = ParsedPage(survey_page.render(survey, cards, colours))
    require_self_contained(page)
    return page


def card_ids(page: ParsedPage) -> int:
    return sum("card" in (attributes.get("class") or "").split() for attributes in page.all("article"))


def test_statistics_are_those_of_all_tasks(tmp_path: Path) -> None:
    tasks = make_texts(500)
    survey = survey_file(str(write_tasks(tmp_path / "p.json", tasks)), max_shown=40)
    regions = [task["predictions"][0]["result"][0] for task in tasks]
    counts = Counter(region["value"]["choices"][0] for region in regions)
    statistics = survey.controls["mood"]
    assert survey.tasks == 500
    assert {name: label.regions for name, label in statistics.labels.items()} == counts
    assert statistics.scores.mean == pytest.approx(sum(region["score"] for region in regions) / 500)
    assert statistics.scores.bins == [
        sum(n / 20 <= region["score"] < (n + 1) / 20 for region in regions) for n in range(20)
    ]


def test_extremes_and_a_sample_are_shown_and_the_same_again(tmp_path: Path) -> None:
    tasks = make_texts(500)
    path = write_tasks(tmp_path / "p.json", tasks)
    survey = survey_file(str(path), max_shown=40)
    scores = sorted(task["predictions"][0]["result"][0]["score"] for task in tasks)
    shown = survey.shown
    assert len(shown) == 40
    assert [s.task.certainty for s in shown if "least" in s.groups] == scores[:5]
    assert [s.task.certainty for s in shown if "most" in s.groups] == scores[-5:]
    assert [s.task.certainty for s in shown] == sorted(s.task.certainty or 0 for s in shown)
    assert survey_file(str(path), max_shown=40).shown == shown
    other = survey_file(str(path), max_shown=40, seed=1).shown
    assert {s.task.id for s in other} != {s.task.id for s in shown}
    ids = [s.task.id or 0 for s in shown if "sample" in s.groups]
    assert len(ids) >= 30
    assert min(ids) < 100
    assert max(ids) > 400


@pytest.mark.parametrize("size", [1, 2, 7, 500, 501])
def test_number_of_shown_tasks(tmp_path: Path, size: int) -> None:
    survey = survey_file(str(write_tasks(tmp_path / "p.json", make_texts(500))), max_shown=size)
    assert len(survey.shown) == min(size, 500)
    assert survey.is_sampled == (size < 500)


def test_lengths_and_areas(tmp_path: Path) -> None:
    box, span = make_box(0, 0, 50, 20, "car"), make_span(0, 5, "Hello", "word")
    text = {"from_name": "note", "to_name": "image", "type": "textarea", "value": {"text": ["four"]}}
    path = write_tasks(tmp_path / "p.json", [make_task(1, {"text": "Hello"}, box, span, text)])
    controls = survey_file(str(path)).controls
    assert controls["thing"].sizes["area"].high == pytest.approx(10)
    assert controls["entity"].sizes["characters"].high == 5
    assert controls["note"].sizes["characters"].high == 4


@given(st.text(min_size=1, max_size=30), st.lists(st.tuples(st.integers(-2, 32), st.integers(-2, 32)), max_size=6))
def test_segments_are_the_text_with_each_character_in_its_spans(text: str, pairs: list[tuple[int, int]]) -> None:
    spans = [MarkedSpan(start, end, f"label{i}", f"label{i}", 0) for i, (start, end) in enumerate(pairs)]
    segments = mark_spans(text, spans)
    assert "".join(segment.text for segment in segments) == text
    is_marked = [bool(segment.labels) for segment in segments for _ in segment.text]
    valid = [span for span in spans if 0 <= span.start < span.end <= len(text)]
    assert is_marked == [any(span.start <= i < span.end for span in valid) for i in range(len(text))]
    assert sum(len(segment.labels) for segment in segments if segment.is_last) == len(valid)


@given(
    st.lists(st.tuples(st.floats(0, 950), st.floats(0, 700), st.floats(5, 300), st.floats(5, 300)), max_size=30),
    st.booleans(),
)
def test_captions_do_not_cover_each_other(boxes: list[tuple[float, float, float, float]], is_small: bool) -> None:
    placer = CaptionPlacer(750, is_small=is_small)
    taken = []
    for x, y, width, height in boxes:
        corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
        if (caption := placer.place(corners, "person 0.85", "model")) is None:
            continue
        size = 27 if is_small else FONT_SIZE
        length = 0.6 * size * len(caption.text)  # of the narrowest usual font
        left = caption.x if caption.anchor == "start" else caption.x - length
        assert left >= 0
        assert left + length <= 1000
        taken.append((left, caption.y - 0.75 * size, left + length, caption.y))
    for i, first in enumerate(taken):
        for second in taken[:i]:
            apart = first[2] <= second[0] or second[2] <= first[0] or first[3] <= second[1] or second[3] <= first[1]
            assert apart


def test_spans_are_marked_in_texts_and_dialogues(tmp_path: Path) -> None:
    turn = {"start": "1", "end": "1", "startOffset": 3, "endOffset": 6, "text": "Ada", "paragraphlabels": ["who"]}
    region = {"from_name": "who", "to_name": "talk", "type": "paragraphlabels", "value": turn, "score": 0.9}
    talk = [{"author": "A", "text": "Hi."}, {"author": "B", "text": "😀 Ada!"}]  # an emoji is two code units
    tasks = [
        make_task(1, {"text": "😀 in Rome"}, make_span(5, 9, "Rome", "place", 0.75)),
        make_task(2, {"talk": talk}, region),
        make_task(3, {"text": "in Rome"}, make_span(0, 4, "Rome", "elsewhere")),
    ]
    page = render_page(write_tasks(tmp_path / "p.json", tasks))
    assert [mark["title"] for mark in page.all("mark")] == ["place 0.75", "who 0.90"]
    assert "Ada" in page.text
    assert "Rome" in page.text
    assert page.text.count("elsewhere") >= 3  # in the table, the filter and the card


def test_boxes_are_drawn_also_without_the_image(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100), "red").save(tmp_path / "a.png")
    tasks = [
        make_task(1, {"image": "a.png"}, make_box(10, 10, 30, 50, "car", 0.81)),
        make_task(2, {"image": "missing.png"}, make_box(10, 10, 30, 50, "car", 0.82)),
        {"task": 3, "result": [make_box(10, 10, 30, 50, "car", 0.83)], "model_version": "v1"},
    ]
    page = render_page(write_tasks(tmp_path / "p.json", tasks))
    assert [image["width"] for image in page.all("img")] == ["200"]
    assert len([path for path in page.all("path") if "model" in (path.get("class") or "")]) == 3
    assert "The image cannot be shown" in page.text
    assert "1 image not shown" in page.text
    assert all(f"car 0.8{i}" in page.text for i in (1, 2, 3))


def test_images_of_a_page_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    monkeypatch.setattr(task_cards, "MAX_IMAGE_BYTES", 10)
    monkeypatch.setattr(task_cards, "FETCH_THREADS", 2)
    tasks = [make_task(i, {"image": "a.png"}, make_box(1, 1, 9, 9, "x")) for i in range(6)]
    page = render_page(write_tasks(tmp_path / "p.json", tasks))
    assert len(page.all("img")) == 2
    assert "4 images not shown" in page.text


def test_nothing_in_data_runs_or_loads_anything(tmp_path: Path) -> None:
    hostile = HOSTILE_TEXT
    style = "</style><script>alert(1)</script>{}*{background:url(https://evil.example)}"
    result = [
        make_choice(hostile, 0.9, hostile),
        make_choice(style, 0.9, "c0) .card{"),
        {**make_span(0, 4, hostile[:4], hostile), "from_name": style},
        {**make_box(1, 1, 50, 50, hostile), "id": hostile},
        {"from_name": hostile, "to_name": hostile, "type": hostile, "value": {hostile: [hostile], "text": [hostile]}},
        {"from_name": ["x"], "value": 7},
        "no region",
        None,
    ]
    tasks = [
        {
            "id": 1,
            "project": "../../x\"'><script>",
            "data": {hostile: hostile, "text": style, "image": "javascript:alert(1)", "list": [{"text": hostile}, 7]},
            "predictions": [{"result": result, "model_version": hostile, "score": "high"}],
        },
        {"task": 2, "result": [], "error": {"stage": hostile, "reason": hostile}},
        {"id": 3, "data": {"image": "data:image/svg+xml,<svg onload=alert(1)>"}, "predictions": [{"result": result}]},
    ]
    path = write_tasks(tmp_path / "p.json", tasks)
    page = render_page(path)
    assert page.text.count("<script>alert(1)</script>") > 8
    assert len(page.all("style")) == 1
    assert page.all("img") == []
    survey = survey_file(str(path))
    colours = task_cards.assign_colours(survey)
    html = survey_page.render(survey, task_cards.build_cards(survey, colours, None, Media(), None), colours)
    styles = html.split("<style>")[1].split("</style>")[0]
    assert "evil" not in styles
    assert "url(" not in styles


def test_page_of_predictions(lsml: Lsml, ticket_model: Path, tmp_path: Path) -> None:
    predictions, report = tmp_path / "predictions.json", tmp_path / "report.html"
    run = lsml("predict", EXAMPLE / "tasks.json", "-m", ticket_model, "-o", predictions, "--report", report)
    assert run.returncode == 0, run.stderr
    assert f"Wrote {report}." in run.stderr
    shown = lsml("show", predictions, "-c", CONFIG, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    page = ParsedPage((tmp_path / "predictions.html").read_text())
    require_self_contained(page)
    assert card_ids(page) == 158
    assert (tmp_path / "predictions.html").read_bytes() == report.read_bytes()
    assert lsml("show", predictions, "-c", CONFIG, "-o", "-").stdout.encode() == report.read_bytes()


@pytest.mark.parametrize("options", [["--report", "-"], ["--check", "--report", "x.html"]])
def test_report_of_predict_needs_a_file_of_predictions(lsml: Lsml, ticket_model: Path, options: list[str]) -> None:
    run = lsml("predict", EXAMPLE / "tasks.json", "-m", ticket_model, *options)
    assert run.returncode == 2
    assert "--report" in run.stderr


def test_all_shapes_of_files_are_read(lsml: Lsml, tmp_path: Path) -> None:
    tasks = make_texts(5)
    records = [{"task": task["id"], **task["predictions"][0]} for task in tasks]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "p.json.gz").write_bytes(gzip.compress(json.dumps(tasks).encode()))
    assert lsml("show", "p.json.gz", cwd=tmp_path).returncode == 0
    assert card_ids(ParsedPage((tmp_path / "p.html").read_text())) == 5
    piped = lsml("show", "-", "-o", "-", input=lines)
    assert piped.returncode == 0, piped.stderr
    assert card_ids(ParsedPage(piped.stdout)) == 5


def test_annotations_are_shown_where_there_are_no_predictions(lsml: Lsml, shared_data: Path, tmp_path: Path) -> None:
    page = lsml("show", EXAMPLE / "annotated.json", "-o", "-")
    assert page.returncode == 0, page.stderr
    parsed = ParsedPage(page.stdout)
    assert "Annotations" in parsed.text
    assert "without an annotation" in parsed.text
    rows = shared_data / "exports" / "text-choices-json_min.json"
    refused = lsml("show", rows, "-o", "-")
    assert refused.returncode == 1
    assert "--label-config" in refused.stderr


def test_predictions_come_before_annotations_unless_asked(lsml: Lsml, tmp_path: Path) -> None:
    task = make_task(1, {"text": "x"}, make_choice("predicted", 0.5)) | {
        "annotations": [{"result": [make_choice("true")]}]
    }
    path = write_tasks(tmp_path / "p.json", [task])
    assert "predicted" in lsml("show", path, "--text").stdout
    annotated = lsml("show", path, "--text", "--what", "annotations").stdout
    assert "true" in annotated
    assert "predicted" not in annotated


def test_table_has_the_first_tasks(lsml: Lsml, tmp_path: Path) -> None:
    tasks = [make_task(i, {"text": "to\x1b[31m Rome"}, make_span(8, 12, "Rome", "place", 0.25)) for i in range(30)]
    path = write_tasks(tmp_path / "p.json", tasks)
    run = lsml("show", path, "--text")
    heading, *rows = run.stdout.splitlines()
    assert heading.split() == ["task", "score", "predictions", "data"]
    assert [row.split()[0] for row in rows] == [str(i) for i in range(20)]
    assert '0.25  place "Rome"' in rows[0]
    assert "\x1b" not in run.stdout
    assert len(lsml("show", path, "--text", "--limit", "3").stdout.splitlines()) == 4


def test_version_of_predictions(lsml: Lsml, tmp_path: Path) -> None:
    task = make_task(1, {"text": "x"}, make_choice("old"), version="v1")
    task["predictions"] += make_task(1, {}, make_choice("new"), version="v2")["predictions"]
    path = write_tasks(tmp_path / "p.json", [task])
    assert "new" in lsml("show", path, "--text").stdout
    assert "old" in lsml("show", path, "--text", "--model-version", "v1").stdout


def test_page_is_opened_in_a_browser(lsml: Lsml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = write_tasks(tmp_path / "p.json", make_texts(2)), list[str]()

    def open_url(url: str) -> bool:
        opened.append(url)
        return True

    monkeypatch.setattr(webbrowser, "open", open_url)
    assert lsml("show", path, "-o", tmp_path / "x.html", "--open").returncode == 0
    assert opened == [(tmp_path / "x.html").as_uri()]
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    run = lsml("show", path, "-o", tmp_path / "x.html", "--open")
    assert run.returncode == 0
    assert (tmp_path / "x.html").as_uri() in run.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "--open"], "writes no page"),
        (["--text", "-o", "x.html"], "writes no page"),
        (["--open", "-o", "-"], "needs the page in a file"),
        (["-o", "p.json"], "already exists and is not"),
        (["-o", "no/x.html"], "There is no folder"),
        (["--what", "annotations", "--model-version", "v1"], "chooses among predictions"),
    ],
)
def test_wrong_usage(lsml: Lsml, tmp_path: Path, options: list[str], message: str) -> None:
    write_tasks(tmp_path / "p.json", make_texts(1))
    run = lsml("show", "p.json", *options, cwd=tmp_path)
    assert run.returncode == 2
    assert message in run.stderr


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ('[{"id": 1, "data": {}, "predictions": [7]}]', 1, "only the ids of predictions"),
        ('[{"id": 1, "data": {}}]', 1, "there is no prediction"),
        ("a,b\n1,2\n", 1, "is a table"),
        ('{"task": 1, "result": []}\nno json\n{"task": 2, "result": []}\n', 3, "could not be read"),
        ('[{"id": 1, "data": {"text": "x"}, "predictions": []}]', 0, "no prediction"),
    ],
)
def test_odd_files(lsml: Lsml, tmp_path: Path, content: str, code: int, message: str) -> None:
    (tmp_path / "p.json").write_text(content)
    run = lsml("show", tmp_path / "p.json", "-o", tmp_path / "x.html")
    assert run.returncode == code, run.stderr
    assert message in run.stderr


def test_embedded_images_are_small(tmp_path: Path) -> None:
    Image.effect_noise((2000, 1500), 60).convert("RGB").save(tmp_path / "a.jpg")
    page = render_page(write_tasks(tmp_path / "p.json", [make_task(1, {"image": "a.jpg"}, make_box(1, 1, 9, 9, "x"))]))
    [image] = page.all("img")
    content = base64.b64decode((image["src"] or "").removeprefix("data:image/jpeg;base64,"))
    assert max(Image.open(io.BytesIO(content)).size) == 800
