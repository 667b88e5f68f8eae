"""CoNLL, written and read: seqeval and the SDK's converter are the oracles."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsml_cli.errors import UsageError
from lsml_cli.io.formats.conll import decode_tags
from lsml_cli.io.source import RecordSource
from tests.helpers.cli import run_in_process
from tests.helpers.convert import convert, read
from tests.helpers.text_spans import (
    LABELS,
    SPANS_CONFIG,
    make_span,
    make_text_task,
    mark,
    spans_of,
    text_tasks,
    write_tasks,
)


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(SPANS_CONFIG)
    return tmp_path


def parse(path: Path | str) -> list[list[tuple[str, str]]]:
    """Return the sentences of a file, each token with its tag, as a trainer reads them."""
    text = Path(path).read_bytes().decode()
    blocks = [block for block in text.split("\n\n") if block and not block.startswith("-DOCSTART-")]
    rows = [[line.split(" ") for line in block.split("\n")] for block in blocks]
    assert all(len(row) == 4 for sentence in rows for row in sentence)
    return [[(row[0], row[3]) for row in sentence] for sentence in rows]


def to_conll(*tasks: dict[str, Any], options: tuple[str, ...] = ("-c", "config.xml")) -> list[list[tuple[str, str]]]:
    write_tasks(Path("tasks.json"), list(tasks))
    convert("tasks.json", "--to", "conll", "-o", "out", *options)
    assert [path.name for path in Path("out").iterdir()] == ["ner.conll"]
    return parse("out/ner.conll")


def entities(sentence: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return (label, tokens) of the entities that seqeval finds."""
    scheme = pytest.importorskip("seqeval.metrics.sequence_labeling")
    found = scheme.get_entities([tag for _, tag in sentence])
    return [(label, " ".join(token for token, _ in sentence[first : last + 1])) for label, first, last in found]


def test_columns_are_those_of_label_studio(work):
    to_conll(mark("Barack Obama works.", "Barack Obama"), make_text_task("nothing here", id=2))
    assert Path("out/ner.conll").read_text() == (
        "-DOCSTART- -X- O O\n\nBarack -X- _ B-PER\nObama -X- _ I-PER\nworks -X- _ O\n. -X- _ O\n\n"
        "nothing -X- _ O\nhere -X- _ O\n\n"
    )


def test_same_tags_as_the_sdk_where_tokens_are_words(work):
    utils = pytest.importorskip("label_studio_sdk.converter.utils")
    text = "Anna met Bob Smith and Bob Jones in Paris"
    task = mark(text, "Anna", "Bob Smith", "Bob Jones")
    theirs = utils.create_tokens_and_tags(text, [region["value"] for region in task["annotations"][0]["result"]])
    (mine,) = to_conll(task)
    assert list(zip(*theirs, strict=True)) == mine


def test_label_studio_s_own_export_is_the_same_and_comes_back(work, shared_data):
    """Apart from its header, which has one column fewer, and no blank line after it."""
    converter = pytest.importorskip("label_studio_sdk.converter").Converter
    export = shared_data / "exports" / "text-ner-json.json"
    xml = """<View><Labels name="label" toName="text"><Label value="PER"/><Label value="ORG"/></Labels>
      <Text name="text" value="$text"/></View>"""
    Path("ner.xml").write_text(xml)
    converter(config=xml, project_dir=None).convert_to_conll2003(str(export), "theirs", is_dir=False)
    convert(export, "--to", "conll", "-o", "mine", "-c", "ner.xml")
    theirs, mine = Path("theirs/result.conll").read_text(), Path("mine/label.conll").read_text()
    assert theirs.partition("\n")[2] == mine.partition("\n\n")[2]
    tasks = read("theirs/result.conll", "-c", "ner.xml")
    assert [spans_of(task) for task in tasks] == [spans_of(task) for task in json.loads(export.read_text())]


@pytest.mark.parametrize(
    ("text", "marked", "expected"),
    [
        ("我在北京大学学习", "北京大学", "北 京 大 学"),
        ("สวัสดีครับ", "สวัสดี", "ส วั ส ดี"),
        ("मैं दिल्ली में हूँ", "दिल्ली", "दिल्ली"),
        ("so 👨\u200d👩\u200d👧 happy", "👨\u200d👩\u200d👧", "👨\u200d👩\u200d👧"),
        ("a cafe\u0301 here", "cafe\u0301", "cafe\u0301"),
        ("see: https://example.org/a?b", "https://example.org/a", "https : / / example.org / a"),
        ("Volkswagenwerk", "wagen", "wagen"),
        ("line\r\nNew\r\nYork end", "New\r\nYork", "New York"),
        ("an  Anna  b", "  Anna ", "Anna"),
    ],
)
def test_tokens_of_any_script(work, text, marked, expected):
    (sentence,) = to_conll(mark(text, marked))
    assert entities(sentence) == [("PER", expected)]
    assert "".join(token for token, _ in sentence) == "".join(text.split())


def test_longest_of_overlapping_spans_wins(work):
    text = "University of New York City"
    task = make_text_task(text, (14, 22, "PER"), (0, 22, "ORG"), (18, 27, "PER"), (0, 22, "PER"))
    write_tasks(Path("tasks.json"), [task])
    said = convert("tasks.json", "--to", "conll", "-o", "out")
    assert entities(parse("out/ner.conll")[0]) == [("ORG", "University of New York")]
    assert "3 regions are left out: a span, or a further label of one, that overlaps another" in said
    assert "1 task, 1 written, 1 region " in said


def test_touching_spans_stay_two(work):
    (sentence,) = to_conll(make_text_task("Anna Bob", (0, 4, "PER"), (5, 8, "PER")))
    assert [tag for _, tag in sentence] == ["B-PER", "B-PER"]


def test_labels_with_spaces_are_one_column_and_come_back(work):
    (sentence,) = to_conll(make_text_task("Moby Dick sank", (0, 9, "creative work")))
    assert sentence[0] == ("Moby", "B-creative_work")
    (task,) = read("out/ner.conll", "-c", "config.xml")
    assert spans_of(task) == [(0, 9, "creative work")]


def test_labels_that_would_be_equal_stay_two(work):
    task = make_text_task("a b", (0, 1, "x y"), (2, 3, "x_y"))
    (sentence,) = to_conll(task, options=())
    assert [tag for _, tag in sentence] == ["B-x_y", "B-x_y_2"]


def test_each_control_has_its_file_with_all_texts(work):
    """Also the texts before its first span, when no label config names it."""
    other = {**make_span("Anna Bob", 5, 8, "X"), "from_name": "a/../b"}
    task = make_text_task("Anna Bob", (0, 4, "PER"), id=2)
    task["annotations"][0]["result"].append(other)
    write_tasks(Path("tasks.json"), [make_text_task("no one"), task, make_text_task("again", id=3)])
    convert("tasks.json", "--to", "conll", "-o", "out")
    files = sorted(Path("out").iterdir())
    assert len(files) == 2
    sentences = {path.name: parse(path) for path in files}
    for name, found in sentences.items():
        assert [" ".join(token for token, _ in sentence) for sentence in found] == ["no one", "Anna Bob", "again"]
        assert entities(found[1]) == ([("PER", "Anna")] if name == "ner.conll" else [("X", "Bob")])


def test_text_without_a_span_anywhere(work):
    write_tasks(Path("tasks.json"), [make_text_task("no one")])
    convert("tasks.json", "--to", "conll", "-o", "out")
    assert parse("out/label.conll") == [[("no", "O"), ("one", "O")]]


def test_what_is_no_span_is_counted(work):
    text = "Anna"
    task = make_text_task(text, (0, 4, "PER"))
    choice = {"id": "c", "from_name": "mood", "to_name": "text", "type": "choices", "value": {"choices": ["Good"]}}
    shifted = make_span(text, 0, 3)
    shifted["value"]["text"] = "nna"
    beyond = make_span(text, 2, 9)
    unlabelled = make_span(text, 0, 2)
    unlabelled["value"]["labels"] = []
    task["annotations"][0]["result"] += [choice, shifted, beyond, unlabelled]
    write_tasks(Path("tasks.json"), [task])
    for options in ((), ("-c", "config.xml")):
        said = convert("tasks.json", "--to", "conll", "-o", f"out{len(options)}", *options)
        assert "1 region is left out: not a span in a text." in said
        assert "2 regions are left out: a span that does not fit its text." in said
        assert "1 region is left out: a span without a label." in said


def test_blank_text_costs_its_task(work):
    write_tasks(Path("tasks.json"), [make_text_task(" \n"), make_text_task("a", id=2)])
    said = convert("tasks.json", "--to", "conll", "-o", "out", code=3)
    assert "the text holds no token, and CoNLL has no empty sentences" in said
    assert len(parse("out/label.conll")) == 1


def test_each_annotation_may_be_a_sentence(work):
    task = make_text_task("Anna", (0, 4, "PER"))
    task["annotations"].append({"id": 99, "result": []})
    assert [sentence[0][1] for sentence in to_conll(task, options=("--annotation", "all"))] == ["B-PER", "O"]


def test_predictions_above_the_threshold(work):
    text = "Anna Bob"
    result = [make_span(text, 0, 4, score=0.9), make_span(text, 5, 8, score=0.2)]
    write_tasks(Path("tasks.json"), [{"data": {"text": text}, "predictions": [{"result": result, "score": 0.5}]}])
    convert("tasks.json", "--to", "conll", "-o", "out", "--what", "predictions", "--threshold", "0.5")
    assert entities(parse("out/ner.conll")[0]) == [("PER", "Anna")]


def test_dialogues_become_lines_with_offsets_in_code_points(work):
    """Offsets in a turn of <Paragraphs> count UTF-16 code units."""
    config = """<View><Paragraphs name="p" value="$turns" textKey="say"/>
      <ParagraphLabels name="ner" toName="p"><Label value="PER"/></ParagraphLabels></View>"""
    Path("config.xml").write_text(config)
    turns = [{"say": "😀 hi"}, {"say": "😀 Anna Lee"}, {"say": "bye"}]
    common = {"from_name": "ner", "to_name": "p", "type": "paragraphlabels"}
    one = {"start": "1", "end": "1", "startOffset": 3, "endOffset": 11, "text": "Anna Lee", "paragraphlabels": ["PER"]}
    two = {"start": "0", "end": "0", "startOffset": 1, "endOffset": 3, "paragraphlabels": ["PER"]}  # half an emoji
    result = [{"id": "a", **common, "value": one}, {"id": "b", **common, "value": two}]
    task: dict[str, Any] = {"id": 1, "data": {"turns": turns}, "annotations": [{"id": 1, "result": result}]}
    for options in (("-c", "config.xml"), ("--data-key", "turns")):
        if options[0] == "--data-key":
            task["data"]["turns"] = [{"text": turn["say"]} for turn in turns]
        write_tasks(Path("tasks.json"), [task])
        said = convert("tasks.json", "--to", "conll", "-o", f"out{options[1]}", *options)
        (sentence,) = parse(f"out{options[1]}/ner.conll")
        assert [token for token, _ in sentence] == ["😀", "hi", "😀", "Anna", "Lee", "bye"]
        assert entities(sentence) == [("PER", "Anna Lee")]
        assert "1 region is left out: a span that does not fit its text." in said


def test_config_without_spans_in_texts_is_refused(work):
    Path("config.xml").write_text("""<View><HyperText name="h" value="$html"/>
      <HyperTextLabels name="ner" toName="h"><Label value="PER"/></HyperTextLabels></View>""")
    write_tasks(Path("tasks.json"), [make_text_task("a")])
    said = convert("tasks.json", "--to", "conll", "-o", "out", "-c", "config.xml", code=2)
    assert 'has no <Labels> about a <Text> or <Paragraphs>: it has <HyperTextLabels name="ner">' in said
    assert not Path("out").exists()


def test_spans_in_html_are_counted(work):
    task = make_text_task("Anna", (0, 4, "PER"))
    value = {"start": "/p[1]/text()[1]", "end": "/p[1]/text()[1]", "startOffset": 0, "endOffset": 2, "labels": ["PER"]}
    task["annotations"][0]["result"].append({"id": "h", "from_name": "html", "type": "labels", "value": value})
    write_tasks(Path("tasks.json"), [task])
    assert "1 region is left out: a span in HTML" in convert("tasks.json", "--to", "conll", "-o", "out")


@settings(max_examples=60, deadline=None)
@given(st.lists(text_tasks(), min_size=1, max_size=3))
def test_round_trip(tmp_path_factory, tasks):
    """The longest spans come back: the same characters apart from white space."""
    folder = tmp_path_factory.mktemp("conll")
    config = folder / "config.xml"
    config.write_text(SPANS_CONFIG)
    convert(write_tasks(folder / "tasks.json", tasks), "--to", "conll", "-o", folder / "out", "-c", config)
    back = read(folder / "out" / "ner.conll", "-c", str(config), "--from", "conll")
    assert len(back) == len(tasks)
    for task, other in zip(tasks, back, strict=True):
        text, joined = task["data"]["text"], other["data"]["text"]
        assert "".join(joined.split()) == "".join(text.split())
        written = {(condense(text, start), condense(text, end), label) for start, end, label in spans_of(task)}
        returned = [(condense(joined, start), condense(joined, end), label) for start, end, label in spans_of(other)]
        visible = {span for span in written if span[0] < span[1]}
        assert set(returned) <= visible
        assert all(first[1] <= second[0] for first, second in pairwise(returned))
        for start, end, _ in visible:  # what is missing overlaps one; its length counts white space, which is gone here
            assert any(s < end and start < e for s, e, _ in returned)


def condense(text: str, position: int) -> int:
    """Return a position counted in characters that are no white space."""
    return len("".join(text[:position].split()))


def test_real_tweets_come_back(work, shared_data):
    """Their texts are tokens joined by spaces, so that nothing at all changes."""
    source, config = shared_data / "wnut17" / "train.json", shared_data / "wnut17" / "label_config.xml"
    convert(source, "--to", "conll", "-o", "out", "-c", config)
    back = read("out/entity.conll", "-c", str(config))
    tasks = json.loads(source.read_text())
    assert len(back) == len(tasks) == 3394
    for task, other in zip(tasks, back, strict=True):
        marked = [(task["data"]["text"][s:e].split(), label) for s, e, label in spans_of(task)]
        found = [(other["data"]["text"][s:e], label) for s, e, label in spans_of(other)]
        assert [("".join(words), label) for words, label in marked] == [
            ("".join(part.split()), label) for part, label in found
        ]
    assert sum(len(spans_of(task)) for task in back) == 1975
    convert("out/entity.conll", "--from", "conll", "-o", "again.json")
    convert("again.json", "--to", "conll", "-o", "out2")
    assert Path("out2/label.conll").read_bytes() == Path("out/entity.conll").read_bytes()


# ---- reading


def read_text(text: str, *options: str) -> list[tuple[str, list[tuple[int, int, str]]]]:
    Path("data.conll").write_bytes(text.encode())
    return [(task["data"]["text"], spans_of(task)) for task in read("data.conll", *options)]


EXPECTED = [("Anna Lee met Bob", [(0, 8, "PER"), (13, 16, "PER")]), ("Hi", [])]


@pytest.mark.parametrize(
    "text",
    [
        "Anna B-PER\nLee I-PER\nmet O\nBob B-PER\n\nHi O\n",
        "Anna\tB-PER\r\nLee\tI-PER\r\nmet\tO\r\nBob\tB-PER\r\n\r\n\r\nHi\tO",
        "-DOCSTART- -X- -X- O\n\nAnna NNP B-NP I-PER\nLee NNP I-NP I-PER\nmet V O O\nBob NNP B-NP I-PER\n\n"
        "-DOCSTART- -X- -X- O\n\nHi X Y O\n\n",
        "Anna B-PER\nLee E-PER\nmet O\nBob S-PER\n\nHi O\n",
        "Anna B-PER\nLee L-PER\nmet O\nBob U-PER\n\nHi O\n",
        "\ufeff# id = 1\nAnna B-PER\nLee I-PER\nmet O\nBob B-PER\n\n# id = 2\nHi O\n",
        "-DOCSTART- O\nAnna B-PER\nLee I-PER\nmet O\nBob B-PER\n-DOCSTART- O\nHi O\n",
    ],
)
def test_schemes_and_columns(work, text):
    assert read_text(text) == EXPECTED


def test_tokens_may_hold_unusual_white_space(work):
    assert read_text("New York\tB-LOC\na\u00a0b\tO\n") == [("New York a\u00a0b", [(0, 8, "LOC")])]
    assert read_text("a\u3000b O\nx B-LOC\n") == [("a\u3000b x", [(4, 5, "LOC")])]


@given(st.lists(st.sampled_from(["O", *(f"{p}-{x}" for p in "BIES" for x in ("A", "B-C"))]), max_size=8))
def test_tags_are_decoded_as_seqeval_does(tags):
    scheme = pytest.importorskip("seqeval.metrics.sequence_labeling")
    expected = [(first, last + 1, label) for label, first, last in scheme.get_entities(tags)]
    assert list(decode_tags(tags)) == expected


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("Anna PERSON", "the tag is 'PERSON', and neither O nor a label after B-"),
        ("Anna", "'Anna' has no tag"),
        ("\tO", "a tag has no token"),
        ("a\0b O", "the text holds a NUL character"),
        ("caf\xe9 O", "it is not UTF-8"),
    ],
)
def test_bad_line_costs_its_sentence(work, lines, reason):
    Path("data.conll").write_bytes(f"a B-X\n\n{lines}\nrest O\n\nb O\n".encode("latin-1"))
    run = run_in_process("convert", "data.conll", "--from", "conll", "-o", "tasks.json")
    assert run.returncode == 3
    assert reason in run.stderr
    assert "data.conll, line 3" in run.stderr
    assert [task["data"]["text"] for task in json.loads(Path("tasks.json").read_text())] == ["a", "b"]


def test_file_that_is_no_conll_is_refused(work):
    Path("data.txt").write_text("just some text\n")
    said = convert("data.txt", "--from", "conll", "-o", "tasks.json", code=1)
    assert "data.txt holds no text of CoNLL. line 1: the tag is 'text'" in said
    Path("data.txt").write_text("")
    assert "It is empty." in convert("data.txt", "--from", "conll", "-o", "tasks.json", code=1)


def test_folder_is_recognised_if_it_has_one_file(work):
    Path("data").mkdir()
    Path("data/train.conll").write_text("Anna B-PER\n")
    (task,) = read("data")
    assert spans_of(task) == [(0, 4, "PER")]
    Path("data/dev.conll").write_text("Bob B-PER\n")
    said = convert("data", "-o", "tasks.json", code=2)
    assert "data has several files: dev.conll, train.conll." in said


def test_links_in_a_folder_are_not_followed(work):
    Path("secret").write_text("key B-X\n")
    Path("data").mkdir()
    Path("data/train.conll").symlink_to(Path("secret").absolute())
    assert "no file with the suffix .conll" in convert("data", "--from", "conll", "-o", "tasks.json", code=2)


def test_pipe_is_refused(work):
    os.mkfifo("pipe")
    said = convert("pipe", "--from", "conll", "-o", "tasks.json", code=2)
    assert "pipe is a pipe or a device, and CoNLL is read twice." in said


@pytest.mark.parametrize("text", ["-DOCSTART- -X- O O\n\nAnna -X- _ O\n", "Anna B-PER\r\n\r\nBob O\r\n"])
def test_readers_of_tasks_say_what_to_do_with_it(work, text):
    Path("train.conll").write_bytes(text.encode())
    with pytest.raises(UsageError, match=r"train\.conll holds tokens and tags") as caught:
        RecordSource("train.conll")
    assert caught.value.hint == "To make tasks of it: lsml convert train.conll --from conll -o tasks.json"


def test_given_config_has_to_have_every_label(work):
    Path("data.conll").write_text("Anna B-LOC\n")
    said = convert("data.conll", "-c", "config.xml", "-o", "tasks.json", code=1)
    assert 'CoNLL has classes that <Labels name="ner"> lacks: LOC.' in said


def test_label_config_is_made(work):
    Path("data.conll").write_text("Anna B-PER\n\nParis B-LOC\n")
    convert("data.conll", "-o", "tasks.json", "--label-config-out", "made.xml", "--data-key", "body")
    made = Path("made.xml").read_text()
    assert made.index('<Label value="PER"/>') < made.index('<Label value="LOC"/>')
    assert json.loads(Path("tasks.json").read_text())[0]["data"] == {"body": "Anna"}
    assert run_in_process("convert", "tasks.json", "-c", "made.xml", "--to", "conll", "-o", "out").returncode == 0


def test_labels_become_predictions(work):
    Path("data.conll").write_text("Anna B-PER\n")
    (task,) = read("data.conll", "--what", "predictions")
    assert spans_of(task, "predictions") == [(0, 4, "PER")]
    assert "annotations" not in task


def test_label_names_are_the_strategy_of_the_config():
    assert all(f'value="{label}"' in SPANS_CONFIG for label in LABELS)
