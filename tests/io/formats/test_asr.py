"""ASR manifests, written and read."""

from __future__ import annotations

import contextlib
import json
import wave
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsml_cli.io.formats.asr import read_duration
from lsml_cli.schema.label_config import LabelConfig
from tests.helpers.cli import run_in_process
from tests.helpers.convert import convert, read
from tests.helpers.regions import write_json

CONFIG = """<View><Audio name="audio" value="$audio"/><TextArea name="text" toName="audio"/>
  <Labels name="who" toName="audio"><Label value="Anna"/></Labels></View>"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(CONFIG)
    return tmp_path


def lines(path: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]


def write_wav(path: Path | str, seconds: float) -> bytes:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(2 * int(8000 * seconds)))
    return Path(path).read_bytes()


def make_text(*texts: str, name: str = "text", **value: Any) -> dict[str, Any]:
    shape = {key: value.pop(key) for key in ("start", "end") if key in value}
    return {
        "id": "t",
        "from_name": name,
        "to_name": "audio",
        "type": "textarea",
        "value": {"text": list(texts), **shape},
        **value,
    }


def make_task(*regions: dict[str, Any], audio: str = "a.wav", **data: Any) -> dict[str, Any]:
    return {"data": {"audio": audio, **data}, "annotations": [{"result": list(regions)}]}


def test_lines_are_those_of_nemo(work):
    write_wav("calls/a.wav", 1.5)
    write_json(Path("calls/tasks.json"), [make_task(make_text("grüß dich\n😀"), lang="de"), make_task()])
    convert("calls/tasks.json", "--to", "asr", "-o", "out")
    assert lines("out/manifest.json") == [
        {"audio_filepath": str(work / "calls/a.wav"), "duration": 1.5, "text": "grüß dich\n😀", "lang": "de"},
        {"audio_filepath": str(work / "calls/a.wav"), "duration": 1.5, "text": ""},
    ]


@pytest.mark.parametrize(("mode", "is_same"), [("link", True), ("copy", False)])
def test_files_are_linked_or_copied(work, mode, is_same):
    for name, seconds in (("a/1.wav", 1), ("b/1.wav", 2)):
        write_wav(name, seconds)
    write_json(Path("tasks.json"), [make_task(make_text("x"), audio=name) for name in ("a/1.wav", "b/1.wav")])
    convert("tasks.json", "--to", "asr", "-o", "out", "--images", mode)
    entries = lines("out/manifest.json")
    assert [(entry["audio_filepath"], entry["duration"]) for entry in entries] == [
        ("audio/a/1.wav", 1),
        ("audio/b/1.wav", 2),
    ]
    assert Path("out/audio/b/1.wav").samefile("b/1.wav") == is_same
    assert [task["data"]["audio"] for task in read("out", "--from", "asr")] == [
        "out/audio/a/1.wav",
        "out/audio/b/1.wav",
    ]


def test_several_texts_are_one(work):
    regions = (make_text("one", "two", original_length=9.5), make_text("three"))
    write_json(Path("tasks.json"), [make_task(*regions, audio="https://x/a.mp3")])
    convert("tasks.json", "--to", "asr", "-o", "out", "-c", "config.xml")
    (line,) = lines("out/manifest.json")
    assert line == {"audio_filepath": "https://x/a.mp3", "duration": 9.5, "text": "one two three"}


def test_parts_of_a_sound_are_lines_with_offsets(work):
    regions = [
        make_text("second", start=3.25, end=4),
        {**make_text("x", start=3.25, end=4), "from_name": "who", "type": "labels"},
        make_text("first", start=0.5, end=1.75),
    ]
    write_json(Path("tasks.json"), [make_task(*regions)])
    said = convert("tasks.json", "--to", "asr", "-o", "out")
    assert [(line["offset"], line["duration"], line["text"]) for line in lines("out/manifest.json")] == [
        (0.5, 1.25, "first"),
        (3.25, 0.75, "second"),
    ]
    assert "1 region is left out: not a text about a sound." in said


def test_other_texts_are_no_transcriptions(work):
    config = CONFIG.replace("</View>", '<Text name="t" value="$t"/><TextArea name="note" toName="t"/></View>')
    Path("config.xml").write_text(config)
    task = make_task(make_text("a note", name="note"), make_text("hello", original_length=1), t="x")
    write_json(Path("tasks.json"), [task])
    said = convert("tasks.json", "--to", "asr", "-o", "out", "-c", "config.xml")
    assert lines("out/manifest.json")[0]["text"] == "hello"
    assert "1 region is left out: a text of another control." in said


def test_length_of_a_real_recording(shared_data):
    assert read_duration((shared_data / "audio" / "jfk.flac").read_bytes()) == pytest.approx(11.0)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no sound" * 99, b"fLaC" + bytes(9), b"ID3" + bytes(40)])
def test_what_is_no_sound_has_no_length(content):
    with pytest.raises(ValueError, match=r"sound|how long"):
        read_duration(content)


@given(st.binary(max_size=60), st.sampled_from([b"", b"RIFF\0\0\0\0WAVEfmt ", b"fLaC", b"OggS", b"\xff\xfb", b"ID3"]))
def test_damaged_sounds_are_refused(content, magic):
    with contextlib.suppress(ValueError):
        assert read_duration(magic + content) > 0


def test_wav_needs_no_package(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "tinytag", None)
    assert read_duration(write_wav(tmp_path / "a.wav", 0.5)) == 0.5
    with pytest.raises(ValueError, match=r"lsml\[audio\]"):
        read_duration(b"fLaC")


def test_sound_without_a_length_costs_its_task(work):
    write_wav("a.wav", 1)
    Path("b.wav").write_bytes(b"no sound")
    tasks = [make_task(make_text("x"), audio=name) for name in ("a.wav", "b.wav", "gone.wav")]
    write_json(Path("tasks.json"), tasks)
    said = convert("tasks.json", "--to", "asr", "-o", "out", code=3)
    assert "3 tasks, 1 written" in said
    assert "the length of the sound is not known" in said
    assert len(lines("out/manifest.json")) == 1


def test_predictions_are_pred_text(work):
    prediction = {"result": [make_text("hello", score=0.75)], "score": 0.75, "model_version": "m"}
    write_json(Path("tasks.json"), [{"data": {"audio": "a.wav", "duration": 2}, "predictions": [prediction]}])
    convert("tasks.json", "--to", "asr", "-o", "out", "--what", "predictions")
    assert lines("out/manifest.json") == [
        {"audio_filepath": "a.wav", "duration": 2, "pred_text": "hello", "score": 0.75}
    ]
    (task,) = read("out", "--from", "asr", "--what", "predictions")
    assert (task["predictions"][0]["score"], task["predictions"][0]["result"][0]["value"]) == (
        0.75,
        {"text": ["hello"]},
    )


# ---- in


def write_manifest(*entries: Any, path: str = "m/train.jsonl") -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))


def test_lines_become_tasks(work):
    write_manifest(
        {"audio_filepath": "wavs/a.wav", "duration": 1.5, "text": "hé", "lang": "fr", "_data_text": "script"},
        {"audio_filepath": str(work / "m" / "b.wav"), "duration": 2, "text": ""},
        {"audio_filepath": "/elsewhere/c.wav"},
        {"audio_filepath": "s3://bucket/d.wav", "offset": 0.0, "text": "x"},
    )
    tasks = read("m/train.jsonl", "--from", "asr", "--label-config-out", "made.xml")
    assert [task["data"] for task in tasks] == [
        {"audio": "m/wavs/a.wav", "duration": 1.5, "lang": "fr", "text": "script"},
        {"audio": "m/b.wav", "duration": 2},
        {"audio": "/elsewhere/c.wav"},
        {"audio": "s3://bucket/d.wav"},
    ]
    assert tasks[0]["annotations"][0]["result"][0]["value"] == {"text": ["hé"]}
    assert tasks[1]["annotations"] == [{"result": []}]
    assert "annotations" not in tasks[2]
    control = LabelConfig.load(Path("made.xml")).only("TextArea")
    assert (control.name, control.to_names) == ("transcription", ("audio",))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"audio_filepath": "../a.wav", "text": "x"}, "leads out of the data set"),
        ({"audio_filepath": 5}, 'there is no "audio_filepath"'),
        ({"audio_filepath": "a.wav", "text": 5}, "its text is no text"),
        ({"audio_filepath": "a.wav", "text": "x", "offset": 3.2}, "it is a part of a.wav, from 3.2 s"),
        ([1], "no object"),
    ],
)
def test_bad_line_costs_itself(work, line, reason):
    write_manifest({"audio_filepath": "a.wav", "text": "x"}, line)
    run = run_in_process("convert", "m/train.jsonl", "--from", "asr")
    assert (run.returncode, len(run.stdout.splitlines())) == (3, 1)
    assert reason in run.stderr


@pytest.mark.parametrize(
    ("content", "options", "code", "sentence"),
    [
        ({"text": "x"}, (), 1, "m/train.jsonl is no ASR manifest."),
        ({"audio_filepath": "a.wav"}, ("-c", "image.xml"), 1, "An ASR manifest needs a <TextArea> about an <Audio>"),
    ],
)
def test_what_is_no_manifest(work, content, options, code, sentence):
    write_manifest(content)
    Path("image.xml").write_text('<View><Image name="i" value="$i"/><TextArea name="t" toName="i"/></View>')
    assert sentence in convert("m/train.jsonl", "--from", "asr", "-o", "tasks.json", *options, code=code)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(texts, st.floats(0.01, 9e4).map(lambda seconds: round(seconds, 4))), min_size=1, max_size=5))
def test_round_trip(tmp_path_factory, entries):
    folder = tmp_path_factory.mktemp("asr")
    tasks = [
        make_task(make_text(text), audio=f"https://x/{i}.wav", duration=seconds)
        for i, (text, seconds) in enumerate(entries)
    ]
    write_json(folder / "tasks.json", tasks)
    (folder / "config.xml").write_text(CONFIG)
    convert(folder / "tasks.json", "--to", "asr", "-o", folder / "out")
    back = read(folder / "out", "--from", "asr", "-c", folder / "config.xml")
    assert [task["data"] for task in back] == [task["data"] for task in tasks]
    assert [task["annotations"][0]["result"][0]["value"]["text"] for task in back] == [[text] for text, _ in entries]
