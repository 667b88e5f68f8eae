"""spaCy's DocBin, written and read: spaCy is the oracle."""

from __future__ import annotations

import json
import pickle
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.cli import run_in_process
from tests.helpers.convert import convert, read
from tests.helpers.text_spans import (
    LABELS,
    SPANS_CONFIG,
    make_span,
    make_text_task,
    spans_of,
    text_tasks,
    write_tasks,
)

pytest.importorskip("spacy")


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(SPANS_CONFIG)
    return tmp_path


def load(folder: Path | str) -> list[Any]:
    """Return the documents of all files, as spaCy reads them."""
    from spacy.tokens import DocBin
    from spacy.vocab import Vocab

    vocab = Vocab()
    return [doc for file in sorted(Path(folder).iterdir()) for doc in DocBin().from_disk(file).get_docs(vocab)]


def to_docs(*tasks: dict[str, Any], options: tuple[str, ...] = ("-c", "config.xml")) -> list[Any]:
    write_tasks(Path("tasks.json"), list(tasks))
    convert("tasks.json", "--to", "docbin", "-o", "out", *options)
    return load("out/ner")


def found(spans: Any) -> list[tuple[int, int, str]]:
    return sorted((span.start_char, span.end_char, span.label_) for span in spans)


def test_entities_are_on_tokens(work):
    text = "我在北京大学。\r\nAnna's  😀"
    (doc,) = to_docs(make_text_task(text, (2, 6, "ORG"), (9, 13, "PER")))
    assert doc.text == text
    assert found(doc.ents) == [(2, 6, "ORG"), (9, 13, "PER")]
    assert found(doc.spans["sc"]) == [(2, 6, "ORG"), (9, 13, "PER")]


def test_overlapping_spans_are_in_the_group_and_the_longest_is_an_entity(work):
    text = "University of New York"
    (doc,) = to_docs(make_text_task(text, (0, 22, "ORG"), (14, 22, "PER"), (0, 22, "PER")))
    assert found(doc.ents) == [(0, 22, "ORG")]
    assert found(doc.spans["sc"]) == [(0, 22, "ORG"), (0, 22, "PER"), (14, 22, "PER")]


def test_white_space_is_in_no_span(work):
    write_tasks(Path("tasks.json"), [make_text_task("a  Anna \n", (1, 8, "PER"), (7, 9, "PER"))])
    said = convert("tasks.json", "--to", "docbin", "-o", "out")
    assert "1 region is left out: a span of white space alone." in said
    (doc,) = load("out/ner")
    assert found(doc.ents) == [(3, 7, "PER")]


def test_spacy_trains_on_what_is_written(work):
    """The documents go through its own reader and checks, and a model learns them."""
    import spacy
    from spacy.training import Corpus

    tasks = [make_text_task(f"I saw {name} there", (6, 6 + len(name), "PER")) for name in ("Anna", "Bob", "Eve") * 4]
    to_docs(*tasks)
    nlp = spacy.blank("en")
    nlp.add_pipe("ner")
    examples = list(Corpus("out/ner")(nlp))
    assert len(examples) == 12
    nlp.initialize(lambda: examples)
    for _ in range(12):
        nlp.update(examples)
    assert [entity.text for entity in nlp("I saw Bob there").ents] == ["Bob"]


def test_many_documents_are_several_files(work, monkeypatch):
    monkeypatch.setattr("lsml_cli.io.formats.docbin.MAX_DOCUMENTS", 2)
    tasks = [make_text_task(f"text {i}", (0, 4, "PER"), id=i) for i in range(5)]
    docs = to_docs(*tasks, {"id": 9, "data": {"text": ""}, "annotations": [{"id": 1, "result": []}]})
    assert [path.name for path in sorted(Path("out/ner").iterdir())] == ["0001.spacy", "0002.spacy", "0003.spacy"]
    assert [doc.text for doc in docs] == [*(f"text {i}" for i in range(5)), ""]
    assert [task["data"]["text"] for task in read("out/ner", "--from", "docbin")] == [doc.text for doc in docs]


def test_folder_with_several_controls_is_ambiguous(work):
    task = make_text_task("Anna Bob", (0, 4, "PER"))
    task["annotations"][0]["result"].append(make_span("Anna Bob", 5, 8, from_name="other"))
    write_tasks(Path("tasks.json"), [task])
    convert("tasks.json", "--to", "docbin", "-o", "out")
    said = convert("out", "--from", "docbin", "-o", "back.json", code=2)
    assert "out has several folders of DocBins: ner, other." in said
    (back,) = read("out/other")  # recognised
    assert spans_of(back) == [(5, 8, "PER")]


def test_scores_come_back(work):
    text = "Anna Bob"
    result = [make_span(text, 0, 4, score=0.9), make_span(text, 5, 8, score=0.25)]
    write_tasks(Path("tasks.json"), [{"data": {"text": text}, "predictions": [{"result": result, "score": 0.5}]}])
    convert("tasks.json", "--to", "docbin", "-o", "out", "--what", "predictions")
    (task,) = read("out/ner/0001.spacy", "--what", "predictions")
    assert [region["score"] for region in task["predictions"][0]["result"]] == [0.9, 0.25]


def test_documents_of_spacy_are_read(work):
    """With all that spaCy stores: other attributes, several groups, user data, documents that nobody labelled."""
    import spacy
    from spacy.tokens import DocBin

    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    labelled, unlabelled = nlp("Anna Lee met Bob. He left."), nlp("Nothing known.")
    labelled.set_ents([labelled.char_span(0, 8, label="PER")])
    labelled.spans["extra"] = [labelled.char_span(5, 8, label="ORG"), labelled.char_span(0, 8, label="PER")]
    labelled.user_data["note"] = "x"
    labelled.cats["good"] = 1.0
    DocBin(store_user_data=True, docs=[labelled, unlabelled]).to_disk("data.spacy")
    first, second = read("data.spacy")
    assert (first["data"]["text"], spans_of(first)) == ("Anna Lee met Bob. He left.", [(0, 8, "PER"), (5, 8, "ORG")])
    assert second == {"data": {"text": "Nothing known."}}


@settings(max_examples=40, deadline=None)
@given(st.lists(text_tasks(), min_size=1, max_size=3))
def test_round_trip(tmp_path_factory, tasks):
    """Texts come back as they were, and every span without white space at its ends."""
    folder = tmp_path_factory.mktemp("docbin")
    config = folder / "config.xml"
    config.write_text(SPANS_CONFIG)
    convert(write_tasks(folder / "tasks.json", tasks), "--to", "docbin", "-o", folder / "out", "-c", config)
    back = read(folder / "out", "-c", str(config), "--from", "docbin")
    assert [task["data"]["text"] for task in back] == [task["data"]["text"] for task in tasks]
    for task, other in zip(tasks, back, strict=True):
        text = task["data"]["text"]
        trimmed = set()
        for start, end, label in spans_of(task):
            if marked := text[start:end].strip():
                begin = start + text[start:end].index(marked)
                trimmed.add((begin, begin + len(marked), label))
        assert set(spans_of(other)) == trimmed
    assert LABELS


def test_real_tweets_come_back(work, shared_data):
    source = shared_data / "wnut17" / "dev.json"
    convert(source, "--to", "docbin", "-o", "out")
    tasks = json.loads(source.read_text())
    back = read("out/entity", "--from", "docbin")
    assert [(task["data"]["text"], spans_of(task)) for task in back] == [
        (task["data"]["text"], spans_of(task)) for task in tasks
    ]
    assert [found(doc.ents) for doc in load("out/entity")] == [spans_of(task) for task in tasks]


def test_missing_package_is_named(work, monkeypatch):
    write_tasks(Path("tasks.json"), [make_text_task("a")])
    monkeypatch.setitem(sys.modules, "spacy", None)
    said = convert("tasks.json", "--to", "docbin", "-o", "out", code=2)
    assert "DocBin needs the package spacy." in said
    assert "lsml[spans]" in said


# ---- files that are not what they seem


class Planted:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path("planted").touch, ()


def message(**fields: Any) -> dict[str, Any]:
    """Return the content of a DocBin of one document, "hi"."""
    import srsly
    from spacy.tokens import Doc, DocBin
    from spacy.vocab import Vocab

    docs = DocBin(attrs=["ENT_IOB", "ENT_TYPE"], docs=[Doc(Vocab(), words=["hi"])])
    content: dict[str, Any] = srsly.msgpack_loads(zlib.decompress(docs.to_bytes()))
    return content | fields


def write_message(content: Any) -> None:
    import srsly

    Path("data.spacy").write_bytes(zlib.compress(srsly.msgpack_dumps(content)))


def test_nothing_is_unpickled(work):
    import srsly

    payload = pickle.dumps(Planted())
    pickle.loads(payload)
    Path("planted").unlink()  # so that it would work
    planted_array = {b"nd": True, b"kind": b"O", b"type": "O", b"shape": [1], b"data": payload}
    packed = srsly.msgpack_dumps(planted_array)
    for fields in (
        {"user_data": [packed]},
        {"user_data": [payload]},
        {"user_data": planted_array},
        {"cats": [planted_array]},
        {"flags": [planted_array]},
        {"tokens": planted_array},
        {"span_groups": [packed]},
        {"span_groups": [payload]},
        {"strings": [planted_array]},
    ):
        write_message(message(**fields))
        run = run_in_process("convert", "data.spacy", "--from", "docbin", "-o", "tasks.json")
        assert run.returncode in (0, 1), run.stderr
        assert "Traceback" not in run.stderr
        assert not Path("planted").exists()
    Path("data.spacy").write_bytes(payload)
    assert "is no DocBin of spaCy" in convert("data.spacy", "--from", "docbin", "-o", "t.json", code=1)
    assert not Path("planted").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"tokens": b"123"},
        {"lengths": b"123"},
        {"attrs": []},
        {"attrs": [99999]},
        {"attrs": "x"},
        {"strings": 5},
        {"flags": []},
        {"cats": None},
        {"tokens": bytes(24)},
    ],
)
def test_damaged_files_are_refused(work, fields):
    write_message(message(**fields))
    run = run_in_process("convert", "data.spacy", "--from", "docbin", "-o", "tasks.json")
    assert run.returncode == 1, run.stderr
    assert "data.spacy" in run.stderr
    assert not Path("tasks.json").exists()


def test_spans_beyond_the_text_cost_their_document(work):
    """Offsets of a group are stored, not computed; they are checked before anything is looked up with them."""
    import struct

    import srsly
    from spacy.strings import get_string_id
    from spacy.tokens import Doc, DocBin
    from spacy.vocab import Vocab

    group = {"name": "sc", "attrs": {}}
    span = struct.pack(">QQQllll", 0, 0, get_string_id("PER"), 0, 900_000, 0, 900_000)
    packed = srsly.msgpack_dumps({srsly.msgpack_dumps({**group, "spans": [span]}): ["sc"]})
    good = Doc(Vocab(), words=["ok"])
    good.set_ents([good.char_span(0, 2, label="PER")])
    docs = DocBin(attrs=["ENT_IOB", "ENT_TYPE"], docs=[good, good])
    content = srsly.msgpack_loads(zlib.decompress(docs.to_bytes()))
    content["span_groups"][0] = packed
    write_message(content)
    run = run_in_process("convert", "data.spacy", "--from", "docbin", "-o", "tasks.json")
    assert run.returncode == 3, run.stderr
    assert "document 1" in run.stderr
    assert len(json.loads(Path("tasks.json").read_text())) == 1


def test_compressed_size_is_limited(work, monkeypatch):
    monkeypatch.setattr("lsml_cli.io.formats.docbin.MAX_UNPACKED_BYTES", 1 << 20)
    Path("data.spacy").write_bytes(zlib.compress(bytes(64 << 20)))
    said = convert("data.spacy", "--from", "docbin", "-o", "tasks.json", code=1)
    assert "it unpacks to more than 1,048,576 bytes" in said
