"""Tasks without an export: plain text, one task a line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.errors import InputError, UsageError
from lsml_cli.io.source import RecordSource
from lsml_cli.schema.data_key import find_text_key
from lsml_cli.schema.label_config import LabelConfig
from tests.helpers import models
from tests.helpers.cli import run_in_process
from tests.helpers.predict_runs import predict, predicted_choice

LINES = ["one two", '  it\'s "quoted", é 😀\t ', "[x] {y}", "a,b,c", "one two three four five six seven"]
FAILS_DURING_OUTAGE = """
from pathlib import Path
from tests.helpers.models import Words
class Sensitive(Words):
    def encode(self, task, binding, media):
        if "outage" in task.data["text"] and Path("outage").exists():
            raise ValueError("there is an outage")
        return task
"""
TEXT, HTML = '<Text name="txt" value="$text"/>', '<HyperText name="page" value="$html"/>'


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(models.TEXT_CONFIG)
    return tmp_path


def texts(records: str | bytes) -> list[str]:
    """Return the texts in tasks that were written as JSON Lines."""
    items = [json.loads(line)["data"] for line in records.splitlines()]
    assert all(data.keys() == {"text"} for data in items)
    return [data["text"] for data in items]


def run(*options: str, tasks: str = "lines.txt", **kwargs: Any):
    return predict(run_in_process, tasks, "--from", "lines", *options, **kwargs)


def test_every_line_becomes_task(work):
    content = "".join(f"{line}\n" for line in LINES)
    for text in (
        content,
        content.replace("\n", "\r\n"),
        content.removesuffix("\n"),
        "\ufeff" + content,
    ):
        Path("lines.txt").write_bytes(text.encode())
        finished = run("-o", "out.jsonl")
        assert (finished.returncode, "blank" in finished.stderr) == (0, False)
        assert texts(Path("out.jsonl").read_bytes()) == LINES
    Path("lines.gz").write_bytes(gzip.compress(content.encode()))
    assert run("-o", "gz.jsonl", tasks="lines.gz").returncode == 0
    assert Path("gz.jsonl").read_bytes() == Path("out.jsonl").read_bytes()
    records = map(json.loads, Path("out.jsonl").read_bytes().splitlines())
    assert [predicted_choice(record) for record in records] == ["short"] * 4 + ["long"]


def test_lines_come_from_pipe(lsml, work):
    piped = predict(lsml, "-", "--from", "lines", input="\none\n \ntwo\n")
    assert (piped.returncode, texts(piped.stdout)) == (0, ["one", "two"])
    assert "2 blank lines were skipped." in piped.stderr


def test_blank_lines_are_skipped_and_counted(work):
    Path("lines.txt").write_text("\n one\n\t \r\n\ntwo\n\n")
    finished = run("-o", "out.jsonl", "--errors", "errors.jsonl", "--summary", "summary.json")
    assert finished.returncode == 0
    assert "2 tasks: 2 predicted, 0 failed" in finished.stderr
    assert "4 blank lines were skipped." in finished.stderr
    assert json.loads(Path("summary.json").read_bytes())["blank_lines"] == 4
    assert texts(Path("out.jsonl").read_bytes()) == [" one", "two"]
    checked = run("--check")
    assert checked.returncode == 0
    assert "4 blank lines were skipped." in checked.stdout
    assert "2 tasks checked, 0 problems" in checked.stdout


def test_unusual_line_fails_only_its_task(work):
    Path("lines.txt").write_bytes(b"one\ncaf\xe9\ntwo\0three\n\n\xe2\x80\xa8four\x1b[31m\r\n")
    finished = run("-o", "out.jsonl", "--errors", "errors.jsonl")
    assert finished.returncode == 3
    assert texts(Path("out.jsonl").read_bytes()) == ["one", "\u2028four\x1b[31m"]
    errors = [json.loads(line) for line in Path("errors.jsonl").read_bytes().splitlines()]
    assert [(error["index"], error["place"], error["stage"]) for error in errors] == [
        (1, "line 2", "read"),
        (2, "line 3", "read"),
    ]
    assert "is not UTF-8 text" in errors[0]["reason"]
    assert "holds a NUL character" in errors[1]["reason"]


def test_truncated_gzip_drops_last_line(work):
    content = gzip.compress("".join(f"line {n} with some text\n" for n in range(5_000)).encode())
    Path("lines.gz").write_bytes(content[: len(content) // 2])
    with RecordSource("lines.gz", texts_key="text") as source:
        *records, last = source
    assert last.truncated
    assert "the gzip data is cut off" in last.problem
    assert [json.loads(record.body)["data"]["text"] for record in records] == [
        f"line {n} with some text" for n in range(len(records))
    ]


def test_lines_are_retried(work):
    Path("model.py").write_text(FAILS_DURING_OUTAGE)
    Path("lines.txt").write_text("fine\n\nfail during an outage\nfine\n")
    Path("outage").touch()
    options = ["-o", "out.json", "--errors", "errors.jsonl"]
    assert run(*options, model="model.py:Sensitive").returncode == 3
    Path("outage").unlink()
    retried = run(*options, "--retry-failed", "errors.jsonl", model="model.py:Sensitive")
    assert retried.returncode == 0, retried.stderr
    assert "3 tasks: 1 predicted, 2 left as they were" in retried.stderr
    assert [len(record["predictions"]) for record in json.loads(Path("out.json").read_bytes())] == [1, 1, 1]


def test_unfinished_run_over_lines_resumes(work):
    Path("lines.txt").write_text("".join(f"line {n}\n" for n in range(400)) + "caf\udce9\n", errors="surrogateescape")
    assert run("-o", "clean.json").returncode == 3
    assert run("-o", "out.json", "--on-error", "fail").returncode == 1
    assert Path("out.json.part").exists()
    changed = Path("lines.txt").read_bytes()
    Path("lines.txt").write_bytes(changed.replace(b"line 7\n", b"line x\n"))
    assert run("-o", "out.json", "--resume").returncode == 2
    Path("lines.txt").write_bytes(changed)
    assert run("-o", "out.json", "--resume").returncode == 3
    assert Path("out.json").read_bytes() == Path("clean.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--shape", "predictions"), "Tasks made from lines have no ids"),
        (("--id-column", "id"), "Lines have no ids"),
        (("--data-key", "image"), '--data-key image: the label config shows no text from "$image". It has: text.'),
    ],
)
def test_options_that_lines_do_not_have_are_rejected(work, options, sentence):
    Path("lines.txt").write_text("one\n")
    finished = run(*options)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert sentence in " ".join(finished.stderr.split())


def test_folder_is_not_read_as_lines(work):
    Path("texts").mkdir()
    finished = run(tasks="texts")
    assert (finished.returncode, "texts is a folder." in finished.stderr) == (2, True)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "lines is empty"),
        (b"\n \n", "lines is empty"),
        (b'[{"text": "a"}]', "lines is JSON, not lines of text"),
        (b'{"text": "a"}\n{"text": "b"}\n', "lines is JSON, not lines of text"),
        (b"PK\x03\x04abc", "lines is a zip archive"),
        ("text\n".encode("utf-16"), "lines is UTF-16 or binary"),
        (b"\x7fELF" + bytes(500), "lines is UTF-16 or binary"),
    ],
)
def test_what_is_certainly_no_text_is_rejected(work, content, sentence):
    Path("lines").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        RecordSource("lines", texts_key="text")


def text_key_of(objects: str, *shown: str, supported_controls: Any = None, **options: Any) -> str:
    controls = [f'<Choices name="of-{name}" toName="{name}"><Choice value="a"/></Choices>' for name in shown]
    config = LabelConfig.parse(f"<View>{objects}{''.join(controls)}</View>")
    return find_text_key(config, supported_controls or {}, **options)


def test_key_of_lines_is_that_of_text_model_supports():
    image = '<Image name="img" value="$image"/>'
    assert text_key_of(image + TEXT, "img", "txt") == "text"
    assert text_key_of(TEXT + HTML, "page", supported_controls={"Choices": ("HyperText",)}) == "html"
    assert text_key_of(TEXT + HTML, "txt", requested_key="html") == "html"
    with pytest.raises(UsageError, match=r"several objects that a line could be for: .*--data-key: text or html"):
        text_key_of(TEXT + HTML, "txt", "page")
    with pytest.raises(UsageError, match="shows no text from a task: it has <Image"):
        text_key_of(image, "img")


# --- Plain text without --from lines


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("Great product!\nToo small\n", "neither JSON nor CSV: it starts with 'Great product!'"),
        (
            "Great product\nToo small\n",
            'has no column "text", which the label config shows; its first line is \'Great p',
        ),
        (
            "Great, thanks\nToo small\n",
            'has no column "text", which the label config shows; its first line is \'Great, ',
        ),
    ],
)
@pytest.mark.parametrize("options", [(), ("--check",)])
def test_plain_text_leads_to_from_lines(work, content, sentence, options):
    Path("lines.txt").write_text(content)
    finished = predict(run_in_process, "lines.txt", *options)
    assert finished.returncode in (1, 2)
    assert (finished.stdout, finished.stderr.count("--from lines")) == ("", 1)
    assert sentence in finished.stderr


def test_table_with_one_shown_column_is_read(work):
    Path("config.xml").write_text(models.TEXT_CONFIG.replace("<View>", '<View><Header value="$meta.title"/>'))
    for column in ("text", "_data_text", "meta"):
        Path("tasks.csv").write_text(f"{column},other\na,b\n")
        with RecordSource("tasks.csv", data_keys=("text", "meta.title")) as source:
            assert len(list(source)) == 1
