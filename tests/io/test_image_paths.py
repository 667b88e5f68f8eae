"""Tasks without an export: a folder of pictures, or a list of paths and URLs."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from lsml_cli.errors import InputError, LsmlError, UsageError
from lsml_cli.io.image_folder import ImageFolderSource
from lsml_cli.io.image_paths import is_image
from lsml_cli.io.source import RecordSource
from lsml_cli.schema.data_key import find_data_key
from lsml_cli.schema.label_config import LabelConfig
from tests.helpers import models
from tests.helpers.media_servers import StubResponse, run_stub_server
from tests.helpers.predict_runs import predict, predicted_choice
from tests.helpers.processes import count_journaled, kill_process, start_lsml, wait_for

BRIGHT = b"P5\n2 1\n255\n\xff\xff"
DARK = b"P5\n2 1\n255\n\x00\x00"
MODEL = f"{models.__file__}:Brightness"
SLOW = """
import time
from tests.helpers.models import Brightness
class Slow(Brightness):
    def forward(self, inputs, binding):
        time.sleep(0.01)
        return super().forward(inputs, binding)
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(models.IMAGE_CONFIG)
    return tmp_path


def write(*paths: str | Path, content: bytes = BRIGHT) -> None:
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def values(records: str) -> list[str]:
    """The paths in the tasks that were written, as JSON Lines."""
    found = [json.loads(line)["data"] for line in records.splitlines()]
    assert all(data.keys() == {"image"} for data in found)
    return [data["image"] for data in found]


def below(folder: str | Path) -> list[str]:
    """The values that a folder gives; a problem where there is no task."""
    with ImageFolderSource(str(folder), "image") as pictures:
        return [record.problem or json.loads(record.body)["data"]["image"] for record in pictures]


def listed(*entries: str, end: str = "\n") -> str:
    return "".join(entry + end for entry in entries)


# --- A folder


def test_every_picture_below_a_folder_is_a_task(lsml, work):
    write("photos/b.pgm", "photos/deep/er/a.pgm", "photos/a b é.PGM")
    write("photos/deep/dark.pgm", content=DARK)
    write("photos/.hidden.pgm", "photos/.thumbnails/a.pgm", "photos/notes.txt", "photos/deep/list.json", "photos/pgm")
    run = predict(lsml, "photos/", "-o", "out.json", "--summary", "summary.json", model=MODEL)
    assert run.returncode == 0, run.stderr
    records = json.loads(Path("out.json").read_bytes())
    assert [(record["data"]["image"], predicted_choice(record)) for record in records] == [
        ("photos/a b é.PGM", "bright"),
        ("photos/b.pgm", "bright"),
        ("photos/deep/dark.pgm", "dark"),
        ("photos/deep/er/a.pgm", "bright"),
    ]
    assert all(record.keys() == {"data", "predictions"} for record in records)
    assert "3 files are no images by their names." in run.stderr
    assert predict(lsml, "photos", "--from", "paths", "-o", "again.json", model=MODEL).returncode == 0
    assert Path("again.json").read_bytes() == Path("out.json").read_bytes()


def test_the_value_is_the_path_as_it_would_be_typed(lsml, work):
    write("photos/in/a.pgm")
    Path("elsewhere").mkdir()
    for folder, cwd, value in (
        ("photos//in/", work, "photos/in/a.pgm"),
        (work / "photos", work / "elsewhere", f"{work}/photos/in/a.pgm"),
        ("../photos", work / "elsewhere", "../photos/in/a.pgm"),
        (".", work / "photos", "in/a.pgm"),
    ):
        run = predict(lsml, folder, "-c", work / "config.xml", "--quiet", model=MODEL, cwd=cwd)
        assert (run.returncode, run.stderr, values(run.stdout)) == (0, "", [value])


def test_a_folder_named_like_one_of_label_studio_is_looked_into(work):
    """/data/upload/… in a task is Label Studio's, but here the user says that it is a folder of this machine."""
    from lsml_cli.media.resolver import locate

    nowhere: dict[str, Any] = {"document_root": None, "upload_root": None, "prefix_map": (), "credentials": None}
    place = locate("/data/upload/mine/a.png", root=Path(), confined=False, **nowhere)
    assert [file.resolve() for file in place.candidates] == [Path(os.path.realpath("/data/upload/mine/a.png"))]
    assert locate("/data/upload/mine/a.png", root=Path(), **nowhere).candidates == ()


def test_the_order_is_that_of_whole_paths(work):
    chance = random.Random(7)
    names = ["a", "a-b", "a.pgm", "A", "é", "b c", "10"]
    for _ in range(60):
        depth = chance.randrange(1, 4)
        folder = Path("photos", *(f"{chance.choice(names)}.d" for _ in range(depth)))
        write(folder / f"{chance.choice(names)}{chance.choice(['.jpg', '.PNG', '.tiff'])}")
    found = subprocess.run(
        "find photos -type f | LC_ALL=C sort", shell=True, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(found) > 30
    assert below("photos") == found


def test_what_is_a_picture_by_its_name():
    yes = "a.jpg a.JPEG a.Png a.gif a.webp a.bmp a.tif a.TIFF a.avif a.jp2 a.b.jpg a.pgm a.heic"
    assert all(map(is_image, yes.split()))
    assert not any(map(is_image, ["jpg", ".jpg", "a.jpg.txt", "a.", "a", "a.pdf", "a.json", "a.mp4"]))


def test_odd_names(lsml, work):
    odd = ["10:30.pgm", "data:a.pgm", "50%25.pgm", "what?.pgm", "a#b.pgm", "two\nlines.pgm", " space .pgm", "-o.pgm"]
    write(*(f"photos/{name}" for name in odd))
    write("photos/50%.pgm", "photos/what", content=DARK)
    for folder, cwd in (("photos", work), (".", work / "photos")):
        run = predict(lsml, folder, "-c", work / "config.xml", model=MODEL, cwd=cwd)
        assert run.returncode == 0, run.stderr
        labels = {
            Path(value).name: predicted_choice(json.loads(line))
            for value, line in zip(values(run.stdout), run.stdout.splitlines(), strict=True)
        }
        assert labels == dict.fromkeys(odd, "bright") | {"50%.pgm": "dark"}


def test_a_name_that_is_not_utf8_costs_only_itself(lsml, work):
    write("photos/a.pgm", "photos/z.pgm")
    Path(os.fsdecode(b"photos/caf\xe9.pgm")).write_bytes(BRIGHT)
    run = predict(lsml, "photos", "--errors", "errors.jsonl", model=MODEL)
    assert (run.returncode, values(run.stdout)) == (3, ["photos/a.pgm", "photos/z.pgm"])
    [error] = map(json.loads, Path("errors.jsonl").read_text().splitlines())
    assert (error["index"], error["stage"], error["place"]) == (1, "read", r"caf\xe9.pgm")
    assert error["reason"].startswith(r"photos/caf\xe9.pgm is not UTF-8")


def test_links_are_followed_but_not_in_circles(work):
    write("photos/a/1.jpg", "outside/2.jpg", "outside/sub/3.jpg", "photos/.store/4.jpg", "single.jpg")
    links = {
        "photos/a/up": "..",  # a circle
        "photos/a/self": ".",
        "photos/b": "a",  # comes anyway
        "photos/c": "../outside",
        "photos/d": "../outside",  # was led to before
        "photos/e": ".store",  # hidden, so it does not come anyway
        "photos/f.jpg": "../single.jpg",
        "photos/g.jpg": "nowhere.jpg",
        "photos/h": "h",
        "photos/top": "..",  # what is above the folder, and so itself
        "outside/back": "../photos",
        "outside/sub/again": "../../outside",
    }
    for link, target in links.items():
        Path(link).symlink_to(target)
    expected = ["a/1.jpg", "c/2.jpg", "c/sub/3.jpg", "e/4.jpg", "f.jpg", "g.jpg"]
    assert below("photos") == [f"photos/{path}" for path in expected]
    Path("entry").symlink_to("photos")
    assert below("entry") == [f"entry/{path}" for path in expected]


def test_many_links_to_each_other_end(work):
    """Followed wherever they lead, a dozen folders that all link to each other are millions of paths."""
    Path("photos").mkdir()
    for n in range(12):
        write(f"outside/{n}/a.jpg")
        Path(f"photos/{n}").symlink_to(f"../outside/{n}")
        for other in range(12):
            Path(f"outside/{n}/to-{other}").symlink_to(f"../{other}")
    assert len(below("photos")) == 12


def test_linked_pictures_are_read(lsml, work):
    write("outside/a.pgm", "single.pgm")
    Path("photos").mkdir()
    Path("photos/more").symlink_to("../outside")
    Path("photos/b.pgm").symlink_to("../single.pgm")
    run = predict(lsml, "photos", model=MODEL)
    assert (run.returncode, values(run.stdout)) == (0, ["photos/b.pgm", "photos/more/a.pgm"])


def test_folders_deeper_than_python_calls(work):
    deep = Path("photos", *["d"] * 1_100)
    try:
        subprocess.run(["mkdir", "-p", deep], check=True)
        (deep / "a.jpg").touch()
        assert below("photos") == [f"{deep}/a.jpg"]
    finally:  # nor can pytest clean that up
        subprocess.run(["rm", "-r", "photos"], check=True)


def test_a_folder_that_cannot_be_read_is_no_silence(lsml, work, monkeypatch):
    write("photos/a.pgm", "photos/locked/b.pgm")
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert below("photos") == ["photos/a.pgm", "this folder cannot be read: Permission denied"]
    with pytest.raises(UsageError, match="photos/locked cannot be read: Permission denied"):
        ImageFolderSource("photos/locked", "image")


def test_memory_does_not_grow_with_the_folder(work):
    """Ten times as many pictures, in ten times as many folders: names of a folder are held, not those of all."""
    peaks = []
    for folders in (10, 100):
        for folder in range(folders):
            Path(f"photos/{folder}").mkdir(parents=True, exist_ok=True)
            for n in range(200):
                os.close(os.open(f"photos/{folder}/{'x' * 100}{n}.jpg", os.O_CREAT | os.O_WRONLY))
        with ImageFolderSource("photos", "image") as pictures:
            assert sum(1 for _ in pictures) == folders * 200
            assert pictures.position() == pictures.size
        peaks.append(psutil.Process().memory_info().rss)
    assert peaks[1] - peaks[0] < 2_000_000


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda: Path("photos").mkdir(), "There is no image below photos."),
        (lambda: write("photos/a.txt"), "There is no image below photos: 1 file is no image by its name."),
        (lambda: write("photos/.a.jpg", "photos/b", "photos/c/d"), "2 files are no images by their names."),
    ],
)
def test_a_folder_without_pictures(lsml, work, prepare, sentence):
    prepare()
    for options in ((), ("--check",)):
        run = predict(lsml, "photos", *options, model=MODEL)
        assert (run.returncode, run.stdout) == (1, "")
        assert sentence in run.stderr
        assert ".jpg" in run.stderr


# --- A list


def test_a_list_on_standard_input(lsml, work):
    write("photos/a b.pgm", "photos/é.pgm", "photos/ trailing .pgm")
    lines = [
        "photos/é.pgm",
        "photos/a b.pgm",
        "photos/ trailing .pgm",
        f"{work}/photos/é.pgm",
        "./photos/../photos/é.pgm",
    ]
    expected = predict(lsml, "-", "--from", "paths", input=listed(*lines), model=MODEL)
    assert (expected.returncode, values(expected.stdout)) == (0, lines)
    for text in (
        listed(*lines, end="\r\n"),
        listed("", *lines, "  ", "", end="\n"),
        listed(*lines).removesuffix("\n"),
        listed(*lines, end="\0"),
        listed("", *lines, end="\0").removesuffix("\0"),
        "\ufeff" + listed(*lines),
    ):
        assert predict(lsml, "-", "--from", "paths", input=text, model=MODEL).stdout == expected.stdout
    Path("lists").mkdir()
    Path("lists/list.txt").write_text(listed(*lines))  # its paths begin in the working folder all the same
    assert predict(lsml, "lists/list.txt", "--from", "paths", model=MODEL).stdout == expected.stdout
    Path("lists/list.gz").write_bytes(gzip.compress(listed(*lines).encode()))
    assert predict(lsml, "lists/list.gz", "--from", "paths", model=MODEL).stdout == expected.stdout


def test_what_find_prints(lsml, work):
    write("photos/in/a.pgm", "photos/two\nlines.pgm")
    command = f"{sys.executable} -m lsml_cli predict - --from paths -m {MODEL} -c config.xml --quiet"
    run = subprocess.run(
        f"find photos -name '*.pgm' -print0 | LC_ALL=C sort -z | {command}",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert values(run.stdout) == ["photos/in/a.pgm", "photos/two\nlines.pgm"]


def test_urls_and_the_addresses_of_label_studio(lsml, work):
    write("files/in/a b.pgm", "copy/c.pgm")
    with run_stub_server() as server:
        server.responses["/d.pgm"] = StubResponse(body=BRIGHT)
        lines = ["/data/local-files/?d=in/a%20b.pgm", "s3://bucket/c.pgm", f"{server.url}/d.pgm", "files/in/a b.pgm"]
        options = ("--document-root", "files", "--map", "s3://bucket/=copy", "--errors", "errors.jsonl")
        run = predict(lsml, "-", "--from", "paths", *options, input=listed(*lines, "missing.pgm"), model=MODEL)
    assert values(run.stdout) == [*lines, "missing.pgm"]
    assert run.returncode == 3
    [error] = map(json.loads, Path("errors.jsonl").read_text().splitlines())
    assert (error["place"], error["stage"]) == ("line 5", "fetch")
    assert "missing.pgm" in error["reason"]


def test_only_who_names_files_himself_reads_them_anywhere(lsml, work):
    write("outside/a.pgm")
    Path("tasks").mkdir()
    path = f"{work}/outside/a.pgm"
    Path("tasks/tasks.json").write_text(json.dumps([{"data": {"image": path}}]))
    Path("tasks/list.txt").write_text(path)
    assert "lies outside of" in predict(lsml, "tasks/tasks.json", model=MODEL).stderr
    assert predict(lsml, "tasks/list.txt", "--from", "paths", model=MODEL).returncode == 0
    Path("tasks/lsml.toml").write_text('[predict]\nfrom = "paths"\n')  # which came with the data
    run = predict(lsml, "tasks/list.txt", model=MODEL)
    assert (run.returncode, run.stdout) == (2, "")
    assert "from says what is read, and from where" in run.stderr
    run = predict(lsml, "tasks/list.txt", "--config", "tasks/lsml.toml", model=MODEL)
    assert (run.returncode, values(run.stdout)) == (0, [path])


def test_a_line_that_is_no_path_costs_only_itself(work):
    Path("list").write_bytes(b"a.jpg\ncaf\xe9.jpg\n" + b"x" * (33 << 20) + b"\nb.jpg\n")
    with RecordSource("list", paths_key="image") as source:
        records = list(source)
    assert [record.index for record in records] == [0, 1, 2, 3]
    assert [record.location for record in records] == ["line 1", "line 2", "line 3", "line 4"]
    assert [bool(record.body) for record in records] == [True, False, False, True]
    assert records[1].problem.startswith(r"caf\xe9.jpg is not UTF-8")
    assert records[2].problem.startswith(f"this task has {33 << 20:,} bytes")


@pytest.mark.parametrize("end", ["\n", "\0"])
def test_lists_read_in_pieces_of_any_size(work, end):
    """Whatever the pipe delivers at a time, entries come out whole, and blank lines are none."""
    chance = random.Random(3)
    entries = [
        chance.choice(["", "é" * chance.randrange(1, 90), "a b.jpg", "\n" if end == "\0" else "\r"]) for _ in range(99)
    ]
    data = "start.jpg" + end + listed(*entries, end=end)
    expected = ["start.jpg", *(entry for entry in entries if entry.strip("\r") or (entry and end == "\0"))]
    for size in (1, 7, 4096):
        reading, writing = os.pipe()
        with subprocess.Popen(
            [sys.executable, "-c", READ_LIST],
            stdin=reading,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            os.close(reading)
            for at in range(0, len(data.encode()), size):
                os.write(writing, data.encode()[at : at + size])
            os.close(writing)
            assert child.stdout is not None
            assert json.loads(child.stdout.read()) == expected


READ_LIST = """
import json
from lsml_cli.io.source import RecordSource
print(json.dumps([json.loads(record.body)["data"]["k"] for record in RecordSource("-", paths_key="k")]))
"""


def test_a_torn_list(work):
    whole = gzip.compress(listed(*(f"photos/{n * 7919}.jpg" for n in range(5_000))).encode())
    Path("list.gz").write_bytes(whole[: len(whole) // 2])
    with RecordSource("list.gz", paths_key="image") as source:
        *records, last = source
    assert all(record.body.endswith(b'.jpg"}}') for record in records)
    assert (last.truncated, last.index, last.location) == (True, len(records), f"line {len(records) + 1}")
    assert "cut off" in last.problem


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "list is empty."),
        (b"\n\r\n  \n", "list is empty."),
        (b'[{"data": {"image": "a.jpg"}}]', "list is JSON, not a list of paths."),
        (b'[\n  {"data": {"image": "a.jpg"}}]', "list is JSON, not a list of paths."),
        (b'{"data": {"image": "a.jpg"}}\n', "list is JSON, not a list of paths."),
        ("\ufeffa.jpg\n".encode("utf-16-le"), "list is UTF-16"),
    ],
)
def test_what_is_no_list(work, content, sentence):
    Path("list").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        RecordSource("list", paths_key="image")


def test_names_that_begin_like_json_are_names(work):
    Path("list").write_text("[2020] party.jpg\n{a}.jpg\n")
    with RecordSource("list", paths_key="image") as source:
        assert [json.loads(record.body)["data"]["image"] for record in source] == ["[2020] party.jpg", "{a}.jpg"]


@pytest.mark.parametrize("options", [(), ("--from", "paths")])
def test_a_picture_is_no_list_of_anything(lsml, work, options):
    write("a.pgm")
    write("b.png", content=b"\x89PNG\r\n\x1a\n" + bytes(100))
    for picture in ("a.pgm", "b.png"):
        run = predict(lsml, picture, *options, model=MODEL)
        assert (run.returncode, run.stdout) == (1, "")
        assert f"{picture} is an image, not a file of tasks." in run.stderr


# --- All that predict promises


def test_check_finds_what_is_missing(lsml, work):
    write("photos/a.pgm")
    Path("photos/gone.pgm").symlink_to("nowhere")
    Path("photos/notes.txt").touch()
    run = predict(lsml, "photos", "--check", "--summary", "found.json", model=MODEL)
    found = json.loads(Path("found.json").read_bytes())
    assert (run.returncode, found["tasks"], found["offences"]) == (3, 2, {"media": 1})
    assert found["notes"] == ["1 file is no image by its name."]
    assert found["first"]["media"] == [f"photos, gone.pgm: there is no file {work}/photos/nowhere"]
    lines = listed("photos/a.pgm", "../b.pgm", "gs:/c.pgm")
    run = predict(lsml, "-", "--from", "paths", "--check", "--summary", "found.json", input=lines, model=MODEL)
    assert json.loads(Path("found.json").read_bytes())["offences"] == {"media": 2}
    assert "standard input, line 2: there is no file" in run.stdout


@pytest.fixture
def many(work):
    write(*(f"photos/{n % 10}/{n}.pgm" for n in range(1_500)))
    write(*(f"photos/{n % 10}/{n}.pgm" for n in range(0, 1_500, 7)), content=DARK)
    write("photos/3/broken.pgm", content=b"P5")
    Path(os.fsdecode(b"photos/5/caf\xe9.pgm")).write_bytes(BRIGHT)
    Path("slow.py").write_text(SLOW)
    return work


def arguments(tasks: str, output: str, *options: str) -> list[str]:
    model = ("-m", "slow.py:Slow", "-c", "config.xml")
    return ["predict", tasks, *model, "-o", output, "--errors", f"{output}.errors", "--quiet", *options]


@pytest.mark.parametrize("form", ["folder", "list"])
def test_a_killed_run_resumes(lsml, many, form):
    if form == "list":
        names = subprocess.run(["find", "photos", "-name", "*.pgm"], capture_output=True, check=True)
        Path("list").write_bytes(b"".join(sorted(names.stdout.splitlines(keepends=True))))
    tasks, options = ("photos", []) if form == "folder" else ("list", ["--from", "paths"])
    assert lsml(*arguments(tasks, "clean.json", *options)).returncode == 3
    for moment in (0, 400, 1_000):
        run = start_lsml(*arguments(tasks, "out.json", *options), "--resume")
        wait_for(lambda moment=moment: count_journaled("out.json") > moment)
        kill_process(run)
    assert lsml(*arguments(tasks, "out.json", *options), "--resume").returncode == 3
    for ending in ("", ".errors"):
        assert Path(f"out.json{ending}").read_bytes() == Path(f"clean.json{ending}").read_bytes()
    assert len(json.loads(Path("out.json").read_bytes())) == 1_501
    assert len(Path("out.json.errors").read_text().splitlines()) == 2


def test_a_folder_that_changed_is_not_resumed(lsml, many):
    run = start_lsml(*arguments("photos", "out.json"))
    wait_for(lambda: count_journaled("out.json") > 300)
    kill_process(run)
    run = lsml(*arguments("-", "out.json", "--from", "paths"), "--resume", input="a.pgm\n")
    assert (run.returncode, run.stderr.split(",")[0]) == (1, "lsml: standard input has only 1 records")
    write("photos/0/000.pgm")
    run = lsml(*arguments("photos", "out.json"), "--resume")
    assert run.returncode == 2
    assert "records of photos are not the ones that the unfinished run has done" in run.stderr


def test_failed_pictures_are_retried_in_their_places(lsml, work):
    write("photos/a.pgm", "photos/c.pgm")
    write("photos/b.pgm", content=b"broken")
    Path(os.fsdecode(b"photos/caf\xe9.pgm")).write_bytes(BRIGHT)
    command = ("photos", "-o", "out.json", "--errors", "errors.jsonl")
    assert predict(lsml, *command, model=MODEL).returncode == 3
    write("photos/b.pgm", content=DARK)
    run = predict(lsml, *command, "--retry-failed", "errors.jsonl", model=MODEL)
    assert run.returncode == 3
    assert "4 tasks: 1 predicted, 2 left as they were, 1 failed" in run.stderr
    assert [predicted_choice(record) for record in json.loads(Path("out.json").read_bytes())] == [
        "bright",
        "dark",
        "bright",
    ]


def test_limit_and_workers(lsml, work):
    write(*(f"photos/{n}.pgm" for n in range(40)))
    run = predict(lsml, "photos", "--limit", "7", "--workers", "3", "--batch-size", "2", model=MODEL)
    assert values(run.stdout) == sorted(f"photos/{n}.pgm" for n in range(40))[:7]


def test_how_far_it_is_is_known(work):
    write("photos/a.jpg", "photos/b.jpg", "photos/c/d.jpg", "photos/c/e.jpg")
    with ImageFolderSource("photos", "image") as pictures:
        assert [pictures.position() / pictures.size for _ in pictures] == pytest.approx([0.24, 0.49, 0.74, 1], abs=0.02)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--shape", "predictions"), "Tasks made from paths have no ids"),
        (("--id-column", "id"), "Paths have no ids"),
        (("--data-key", "text"), '--data-key text: the label config shows no picture from "$text". It has: image.'),
    ],
)
def test_options_that_make_no_sense(lsml, work, options, sentence):
    write("photos/a.pgm")
    run = predict(lsml, "photos", *options, model=MODEL)
    assert (run.returncode, run.stdout) == (2, "")
    assert sentence in " ".join(run.stderr.split())


def test_where_there_is_no_folder(lsml, work):
    run = predict(lsml, "photos/", model=MODEL)
    assert (run.returncode, "There is no file photos/." in run.stderr) == (2, True)


# --- Under which key

IMAGE, THUMB = '<Image name="img" value="$image"/>', '<Image name="small" value="$thumb"/>'
TEXT, SOUND = '<Text name="txt" value="$text"/>', '<Audio name="snd" value="$audio"/>'


def key_of(objects: str, *about: str, fills: dict[str, tuple[str, ...]] | None = None, **options: Any) -> str:
    controls = [f'<Choices name="of-{name}" toName="{name}"><Choice value="a"/></Choices>' for name in about]
    return find_data_key(LabelConfig.parse(f"<View>{objects}{''.join(controls)}</View>"), fills or {}, **options)


def test_the_key_of_the_object_that_the_model_looks_at():
    assert key_of(IMAGE, "img") == "image"
    assert key_of(TEXT + IMAGE, "txt", "img") == "image"
    assert key_of(SOUND + IMAGE, "snd", "img") == "image"
    assert key_of(SOUND + IMAGE, "snd", "img", fills={"Choices": ("Audio",)}) == "audio"
    assert key_of(IMAGE + THUMB, "small", fills={"Choices": ("Image",)}) == "thumb"
    assert key_of(IMAGE + IMAGE.replace("img", "twice"), "img", "twice") == "image"
    assert key_of(IMAGE + THUMB, "img", "small", requested_key="thumb") == "thumb"
    assert key_of(SOUND, "snd") == "audio"
    assert key_of(IMAGE + THUMB.replace("value", "valueList"), "img") == "image"


@pytest.mark.parametrize(
    ("objects", "options", "sentence"),
    [
        (IMAGE + THUMB, {}, "several objects that a path could be for: .*Name the key with --data-key: image or thumb"),
        (TEXT, {}, "A path is no text"),
        ('<Image name="img" value="same.png"/>', {}, "shows no picture, sound or video from a task"),
        (SOUND, {"images_only": True}, "A folder is read for its pictures"),
        (IMAGE.replace("value", "valueList"), {}, "shows a list of pictures"),
        (IMAGE + TEXT, {"requested_key": "text"}, "--data-key text: .*It has: image"),
        (IMAGE + SOUND, {"requested_key": "audio", "images_only": True}, "--data-key audio: .*It has: image"),
    ],
)
def test_where_no_key_fits(objects, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        key_of(objects, **options)


def test_a_text_model_takes_no_paths(lsml, work):
    write("photos/a.pgm")
    Path("config.xml").write_text(models.TEXT_CONFIG)
    assert "A folder is read for its pictures" in predict(lsml, "photos").stderr
    run = predict(lsml, "-", "--from", "paths", input="a.pgm\n")
    assert (run.returncode, "A path is no text" in run.stderr) == (2, True)


def test_what_a_path_cannot_give_is_said(lsml, work):
    write("photos/a.pgm")
    Path("config.xml").write_text(models.IMAGE_CONFIG.replace("<Image", '<Header value="$title"/>' + TEXT + "<Image"))
    run = predict(lsml, "photos", model=MODEL)
    assert (run.returncode, values(run.stdout)) == (0, ["photos/a.pgm"])
    assert 'Tasks made from paths have only "image"; the label config also shows "text".' in run.stderr


def test_fit_takes_no_folder(lsml, work):
    write("photos/a.pgm")
    Path("config.xml").write_text(models.TEXT_CONFIG)
    run = lsml("fit", "photos", "-m", "text-classifier", "-c", "config.xml", "-o", "models/x")
    assert (run.returncode, "photos is a folder." in run.stderr) == (2, True)
    with pytest.raises(LsmlError, match="photos is a folder"):
        RecordSource("photos")
