"""Tables fit the terminal: what is shown is whole, and what is not shown is named."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from lsml_cli.commands import doctor, jobs, models, versions
from lsml_cli.commands.console import metrics_tables, table_layout
from lsml_cli.commands.console.table_layout import fold
from lsml_cli.commands.console.tables import Column, emit_folded, print_table
from lsml_cli.evaluation.metrics import classification_metrics
from lsml_cli.evaluation.metrics.calibration import compute_calibration
from lsml_cli.evaluation.metrics.intervals import Interval
from lsml_cli.evaluation.results import BaselineComparison, ControlEvaluation, MetricDifference
from lsml_cli.registry import version_writer
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.server.job_record import TrainingJobConfig, new_job
from lsml_cli.server.job_store import JobStore

LONG_NAME = "a-class-whose-name-is-sixty-characters-long-as-some-really-x"
NUMBERS = ("123,456,789", "-0.1234", "987,654,321", "0.0123 to 0.9876")
assert len(LONG_NAME) == 60
INDENTS = 4  # spaces before a text that is continued below its row

COLUMNS = (
    Column("class"),
    Column("state"),
    Column("first", "number", drop=4),
    Column("second number", "number", drop=3),
    Column("third", "number", drop=2),
    Column("fourth", "number", drop=1),
    Column("remarks", "text"),
)
REMARK = "continues from 20261120T213015-123-3f2a; missed mood.accuracy by 0.0123, of 123,456,789 tasks"
NAMES = ("spam", LONG_NAME, "日本語のとても長い名前", "e\u0301te\u0301", "👩\u200d👩\u200d👧 family")
ROWS = [(name, "waiting", *NUMBERS, REMARK) for name in NAMES]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[int], Callable[[], str]]:
    """Return a function that makes stdout a terminal of some width, and returns one that returns what was printed."""

    def make(columns: int) -> Callable[[], str]:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("COLUMNS", str(columns))
        return lambda: capsys.readouterr().out

    return make


def not_shown(printed: str) -> set[str]:
    """Return the columns that a table names as left out."""
    found = re.search(r"Not shown, for want of room: (.*?)\. All", printed.replace("\n", " "))
    return set(found[1].split(", ")) if found else set()


def require_whole(printed: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> None:
    """Check that no line is too wide, and that each cell is whole, or its column named as left out."""
    assert "…" not in printed
    lines = printed.splitlines()
    assert max(map(cell_len, lines)) <= width
    dropped = not_shown(printed)
    unfolded = "".join(printed.split())
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            if column.heading in dropped:
                continue
            for part in cell.split() if column.kind == "text" else [cell]:
                if cell_len(part) <= width - INDENTS:
                    assert any(part in line for line in lines), part
                else:
                    assert "".join(part.split()) in unfolded, part


@pytest.mark.parametrize("width", [200, 132, 100, 80, 60, 40])
def test_cells_are_whole_or_their_column_is_named(width: int, terminal: Callable[[int], Callable[[], str]]) -> None:
    printed = terminal(width)
    print_table(COLUMNS, ROWS)
    text = printed()
    require_whole(text, COLUMNS, ROWS, width)
    assert "state" not in not_shown(text)
    assert not_shown(text) == set() if width > 100 else not_shown(text)


def test_columns_are_left_out_in_the_declared_order(terminal: Callable[[int], Callable[[], str]]) -> None:
    lost = []
    for width in range(160, 20, -1):
        printed = terminal(width)
        print_table(COLUMNS, ROWS)
        lost.append(not_shown(printed()))
    order = ["fourth", "third", "second number", "first"]
    assert [names for names, before in zip(lost[1:], lost, strict=False) if names != before] == [
        set(order[: i + 1]) for i in range(len(order))
    ]


@pytest.mark.parametrize("width", [1, 9, 10, 11, 15, 20, 30])
def test_absurd_widths_print_everything_that_is_left(width: int, terminal: Callable[[int], Callable[[], str]]) -> None:
    printed = terminal(width)
    print_table(COLUMNS, ROWS)
    text = printed()
    assert max(map(cell_len, text.splitlines())) <= max(width, 10)
    assert LONG_NAME in re.sub(r"\n *", "", text)


def test_wide_and_combining_characters_are_aligned(terminal: Callable[[int], Callable[[], str]]) -> None:
    printed = terminal(60)
    names = ("日本語", "e\u0301te\u0301", "plain")
    print_table((Column("class"), Column("count", "number")), [(name, "7") for name in names])
    rows = printed().splitlines()[3:-1]
    assert {cell_len(row) for row in rows} == {len("class") + 1 + len("  count")}
    assert all(row.endswith("      7") for row in rows)


def test_pipes_get_one_aligned_line_a_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_table(COLUMNS, ROWS)
    heading, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == len(ROWS)
    for row, cells in zip(rows, ROWS, strict=True):
        assert all(cell in row for cell in cells)
    assert {cell_len(row[: row.index("waiting")]) for row in rows} == {heading.index("state")}


def test_planted_number_of_columns_is_laid_out_in_time(terminal: Callable[[int], Callable[[], str]]) -> None:
    printed = terminal(80)
    columns = [Column("name"), *(Column(f"number {i}", "number", drop=i + 2) for i in range(20_000))]
    print_table(columns, [["x", *("0.1234" for _ in columns[1:])]] * 3)
    assert "19999" in printed().split("Not shown")[0]


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("short", 10, ["short"]),
        ("two words", 6, ["two", " words"]),
        ("unbreakable", 5, ["unbre", " akab", " le"]),
        ("a unbreakable", 5, ["a", " unbr", " eaka", " ble"]),
        ("日本語", 5, ["日本", " 語"]),
        ("", 5, [""]),
    ],
)
def test_fold_breaks_between_words_before_it_breaks_a_word(text: str, width: int, lines: list[str]) -> None:
    assert fold(text, width, indent=" ") == lines


def test_headline_numbers_are_not_cut(terminal: Callable[[int], Callable[[], str]]) -> None:
    numbers = [f"metric{i} 0.{i}123 (0.{i}001 to 0.{i}999)" for i in range(6)]
    printed = terminal(60)
    emit_folded(f"{LONG_NAME[:50]}: {', '.join(numbers)} on 123,456,789 tasks")
    lines = printed().splitlines()
    assert max(map(len, lines)) <= 60
    assert set(re.findall(r"0\.\d{4}", "\n".join(lines))) == set(re.findall(r"0\.\d{4}", " ".join(numbers)))
    assert any("123,456,789" in line for line in lines)


def write_versions(root: Path) -> None:
    """Write two versions of two controls with long names, one with a remark."""
    metrics = {name: {"count": 9, "accuracy": 0.1234, "macro_f1": 0.4321} for name in ("mood", LONG_NAME)}
    counts = {"train": 123_456_789, "holdout": 9}
    gate = {"name": "mood.accuracy", "control": "mood", "metric": "accuracy", "label": None, "at_least": 0.95}
    for gates in ([], [gate | {"measured": 0.9, "passed": False}]):
        with version_writer.open_version_writer(root) as draft:
            (draft.folder / "weights.bin").write_bytes(b"w")
            draft.commit(
                family="a:B", label_config="<View/>", state={}, params={}, metrics=metrics, counts=counts, gates=gates
            )


def write_jobs(root: Path) -> None:
    """Write a job that failed for a long reason."""
    root.mkdir()
    job = new_job(123_456_789, "START_TRAINING", TrainingJobConfig("text-classifier", "http://127.0.0.1:9"))
    JobStore(root).create(job)
    JobStore(root).update(job, state="failed", reason=f"There is no {LONG_NAME}, of 987,654,321 classes.")


def evaluated() -> dict[str, ControlEvaluation]:
    """Return the evaluation of a classifier with long names."""
    config = LabelConfig.parse(
        f'<View><Text name="t" value="$t"/><Choices name="{LONG_NAME}" toName="t"><Choice value="a"/></Choices></View>'
    )
    pairs = [({"spam"}, {"spam"}), ({LONG_NAME}, {"spam"}), ({LONG_NAME}, {LONG_NAME}), ({"日本語"}, set[str]())]
    control = config.controls[LONG_NAME]
    metrics = classification_metrics(pairs)
    calibration = compute_calibration(np.array([0.1, 0.9], np.float32), np.array([False, True]))
    return {LONG_NAME: ControlEvaluation(control, "choices", metrics, calibration=calibration)}


def print_comparison() -> None:
    difference = MetricDifference(0.1234, 0.4321, Interval(-0.4567, 0.0123))
    comparison = BaselineComparison(LONG_NAME, {LONG_NAME: {"accuracy": difference, "macro-f1": difference}})
    metrics_tables.print_comparison(comparison, evaluated())


WRITERS = {"versions": write_versions, "jobs": write_jobs}
PRINTERS: dict[str, Callable[[Path], None]] = {
    "versions": versions.versions,
    "jobs": jobs.jobs,
    "models": lambda root: models.models(None),
    "parameters of a model": lambda root: models.models("text-classifier"),
    "doctor": lambda root: doctor.doctor(["evaluate"]),
    "metrics": lambda root: metrics_tables.print_metrics(evaluated(), "tasks"),
    "calibration": lambda root: metrics_tables.print_calibration(evaluated()),
    "comparison": lambda root: print_comparison(),
}


@pytest.mark.parametrize("width", [80, 60, 40])
@pytest.mark.parametrize("name", PRINTERS)
def test_every_report_fits_the_terminal(
    name: str,
    width: int,
    tmp_path: Path,
    terminal: Callable[[int], Callable[[], str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[Sequence[Column], Sequence[Sequence[str]], int]] = []
    lay_out = table_layout.lay_out

    def record(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> table_layout.TableLines:
        seen.append((columns, rows, width))
        return lay_out(columns, rows, width)

    monkeypatch.setattr(table_layout, "lay_out", record)
    root = tmp_path / "models"
    if name in WRITERS:
        WRITERS[name](root)
    printed = terminal(width)
    PRINTERS[name](root)
    [(columns, rows, laid_out_for)] = seen
    assert rows
    assert laid_out_for == width
    table = printed().partition("\nTo use ")[0]  # commands below it are whole, to be copied
    require_whole(table, columns, rows, width)
