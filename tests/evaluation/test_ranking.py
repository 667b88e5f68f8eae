from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsml_cli.evaluation.ranking import AcceptanceEstimate
from lsml_cli.evaluation.uncertainty import confidence, lowest_score, min_entropy
from lsml_cli.io.external_sort import KeyedRecord, sort_on_disk
from tests.helpers.cli import Lsml
from tests.helpers.evaluation_data import TEXT_CONFIG, exported_task, prediction_record, write_records


def scored(*scores: float | None) -> list[dict[str, Any]]:
    return [{"id": str(i), "score": score} for i, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("by", "scores", "expected"),
    [
        ("least-confident", (0.9, 0.4), 0.4),
        ("margin", (0.9, 0.8), pytest.approx(0.6)),
        ("margin", (0.9, 0.3), 0.0),
        ("entropy", (0.5,), pytest.approx(-math.log(2))),
        ("entropy", (0.5, 1.0), pytest.approx(-math.log(2))),
        ("score", (0.9, 0.4), 0.77),
        ("least-confident", (), None),
        ("margin", (None,), None),
    ],
)
def test_confidence_by_criterion(by: Any, scores: tuple[float, ...], expected: Any) -> None:
    assert confidence(scored(*scores), 0.77, by) == expected


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=8))
def test_min_entropy_is_a_lower_bound(weights: list[float]) -> None:
    shares = [each / sum(weights) for each in weights]
    assert min_entropy(max(shares)) <= -sum(each * math.log(each) for each in shares) + 1e-9


def test_lowest_score_needs_complete_scores() -> None:
    assert lowest_score(scored(0.9, 0.8)) == 0.8
    assert lowest_score(scored(0.9, None)) is None
    assert lowest_score([]) is None
    assert lowest_score([{"id": "box", "score": 0.7}, {"id": "box"}]) == 0.7  # the text of a box that has a score


@given(st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=40)), max_size=60))
def test_sort_on_disk_sorts(records: list[tuple[int, bytes]]) -> None:
    keyed = [KeyedRecord(float(key), i, body) for i, (key, body) in enumerate(records)]
    assert list(sort_on_disk(keyed, Path(), run_bytes=300)) == [each.body for each in sorted(keyed)]


def test_sort_on_disk_merges_many_runs(tmp_path: Path) -> None:
    keyed = [KeyedRecord(float(-i), i, b"%d" % i) for i in range(1000)]
    assert list(sort_on_disk(keyed, tmp_path, run_bytes=500)) == [b"%d" % i for i in reversed(range(1000))]
    assert not list(tmp_path.iterdir())


def test_error_rate_has_wilson_interval() -> None:
    """Wilson's interval for 4 of 50, as `statsmodels.stats.proportion.proportion_confint(4, 50, method="wilson")`."""
    interval = AcceptanceEstimate(0.9, 50, 4).interval
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((0.0315, 0.1884), abs=1e-4)
    assert AcceptanceEstimate(0.9, 0, 0).interval is None


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    (tmp_path / "config.xml").write_text(TEXT_CONFIG)
    scores = [0.9, 0.5, 0.99, 0.7, 0.95]
    write_records(tmp_path / "p.jsonl", [prediction_record(i, "good", score) for i, score in enumerate(scores)])
    write_records(tmp_path / "export.json", [exported_task(i, "bad" if i == 4 else "good") for i in range(5)])
    return tmp_path


def test_least_confident_records_come_first_unchanged(lsml: Lsml, data_folder: Path) -> None:
    lines = (data_folder / "p.jsonl").read_text().splitlines()
    lines.insert(2, '{"task":  7, "result": [], "score": null, "model_version": "v1"}')
    lines.insert(3, '{"task": 8, "result": [], "error": {"stage": "fetch", "reason": "no"}}')
    (data_folder / "p.jsonl").write_text("\n".join(lines))
    run = lsml("rank", "p.jsonl", cwd=data_folder)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [lines[i] for i in (1, 5, 0, 6, 4, 2, 3)]
    assert "1 have no score" in run.stderr
    assert lsml("rank", "p.jsonl", "--limit", "2", cwd=data_folder).stdout.splitlines() == [lines[1], lines[5]]


def test_ranks_array_of_whole_tasks(lsml: Lsml, data_folder: Path) -> None:
    tasks = [
        {
            "id": i,
            "data": {"text": "x"},
            "predictions": [{"result": scored(score), "score": score, "model_version": "v"}],
        }
        for i, score in enumerate((0.9, 0.2, 0.5))
    ]
    (data_folder / "tasks.json").write_text(json.dumps(tasks, indent=2))
    assert lsml("rank", "tasks.json", "-o", "out.json", cwd=data_folder).returncode == 0
    assert [each["id"] for each in json.loads((data_folder / "out.json").read_text())] == [1, 2, 0]
    lines = lsml("rank", "tasks.json", "--by", "score", cwd=data_folder).stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [1, 2, 0]


def test_accepted_records_go_to_their_own_file(lsml: Lsml, data_folder: Path) -> None:
    accept = ("--accept-above", "0.9", "--accepted", "sure.jsonl", "--annotated", "export.json", "-c", "config.xml")
    run = lsml("rank", "p.jsonl", "-o", "rest.jsonl", *accept, "--summary", "s.json", cwd=data_folder)
    assert run.returncode == 0, run.stderr
    assert "3 of 5 could be accepted" in run.stderr
    assert "Of 3 of them that people have annotated, 1 would be wrong: 33.3%" in run.stderr
    lines = (data_folder / "p.jsonl").read_text().splitlines()
    assert (data_folder / "sure.jsonl").read_text().splitlines() == [lines[0], lines[2], lines[4]]
    assert (data_folder / "rest.jsonl").read_text().splitlines() == [lines[1], lines[3]]
    summary = json.loads((data_folder / "s.json").read_text())
    assert (summary["accepted"], summary["trust"]["wrong"]) == (3, 1)


@pytest.mark.parametrize(
    ("output", "accepted", "more"),
    [("first.json", "sure.jsonl", []), ("first.jsonl", "sure.json", []), ("first", "sure.JSONL", ["--format", "json"])],
)
def test_suffix_decides_format_of_each_file(
    lsml: Lsml, data_folder: Path, output: str, accepted: str, more: list[str]
) -> None:
    command = ("rank", "p.jsonl", "-o", output, "--accept-above", "0.9", "--accepted", accepted, *more)
    run = lsml(*command, cwd=data_folder)
    assert run.returncode == 0, run.stderr
    for name, count in ((output, 2), (accepted, 3)):
        text = (data_folder / name).read_text()
        lines = [json.loads(line) for line in text.splitlines()] if name.lower().endswith("l") else json.loads(text)
        assert [type(each) for each in lines] == [dict] * count, text


def test_unreadable_records_are_told_by_cause(lsml: Lsml, data_folder: Path) -> None:
    with (data_folder / "p.jsonl").open("a") as file:
        file.write("\n" + "nonsense\n" * 46)
    run = lsml("rank", "p.jsonl", "--quiet", cwd=data_folder)
    assert run.returncode == 3
    assert len(run.stdout.splitlines()) == 5
    [line] = run.stderr.splitlines()
    assert line.startswith("lsml: 46 records could not be read, such as p.jsonl, line 6: not JSON")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["p.jsonl", "--accepted", "x.json"], "Name the lowest score: --accept-above 0.95"),
        (["p.jsonl", "--accept-above", "0.9", "--annotated", "export.json"], "--annotated needs a label config."),
        (["p.jsonl", "-o", "p.jsonl"], "is the predictions and --output at once"),
        (["gone.jsonl"], "There is no file gone.jsonl."),
    ],
)
def test_usage_error_is_one_sentence(lsml: Lsml, data_folder: Path, args: list[str], sentence: str) -> None:
    run = lsml("rank", *args, cwd=data_folder)
    assert run.returncode == 2
    assert sentence in run.stderr


def test_file_without_predictions_is_rejected(lsml: Lsml, data_folder: Path) -> None:
    run = lsml("rank", "export.json", cwd=data_folder)
    assert run.returncode == 1
    assert "there is no prediction" in run.stderr
