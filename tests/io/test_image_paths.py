"""Tasks without an export: a folder of images, or a list of paths and URLs."""

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
from tests.helpers import models
from tests.helpers.media_servers import StubResponse, run_stub_server
from tests.helpers.predict_runs import predict, predicted_choice
from tests.helpers.processes import kill_process, start_lsml, wait_until_journaled

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


def write_images(*paths: str | Path, content: bytes = BRIGHT) -> None:
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def image_values(records: str) -> list[str]:
    """Return the paths in tasks that were written as JSON Lines."""
    items = [json.loads(line)["data"] for line in records.splitlines()]
    assert all(data.keys() == {"image"} for data in items)
    return [data["image"] for data in items]


def folder_values(folder: str | Path) -> list[str]:
    """Return the values that a folder gives; the problem where there is no task."""
    with ImageFolderSource(str(folder), "image") as source:
        return [record.problem or json.loads(record.body)["data"]["image"] for record in source]


def path_list(*entries: str, end: str = "\n") -> str:
    return "".join(entry + end for entry in entries)


# --- A folder


def test_every_image_below_folder_becomes_task(lsml, work):
    write_images("photos/b.pgm", "photos/deep/er/a.pgm", "photos/a b é.PGM")
    write_images("photos/deep/dark.pgm", content=DARK)
    write_images(
        "photos/.hidden.pgm", "photos/.thumbnails/a.pgm", "photos/notes.txt", "photos/deep/list.json", "photos/pgm"
    )
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


def test_folder_value_is_path_as_typed(lsml, work):
    write_images("photos/in/a.pgm")
    Path("elsewhere").mkdir()
    for folder, cwd, value in (
        ("photos//in/", work, "photos/in/a.pgm"),
        (work / "photos", work / "elsewhere", f"{work}/photos/in/a.pgm"),
        ("../photos", work / "elsewhere", "../photos/in/a.pgm"),
        (".", work / "photos", "in/a.pgm"),
    ):
        run = predict(lsml, folder, "-c", work / "config.xml", "--quiet", model=MODEL, cwd=cwd)
        assert (run.returncode, run.stderr, image_values(run.stdout)) == (0, "", [value])


def test_absolute_data_path_of_folder_is_local(work):
    """/data/upload/… in a task means Label Studio's, but a folder that the user names is one of this machine."""
    from lsml_cli.media.resolver import locate

    no_roots: dict[str, Any] = {"document_root": None, "upload_root": None, "prefix_map": (), "credentials": None}
    location = locate("/data/upload/mine/a.png", root=Path(), confined=False, **no_roots)
    assert [file.resolve() for file in location.candidates] == [Path(os.path.realpath("/data/upload/mine/a.png"))]
    assert locate("/data/upload/mine/a.png", root=Path(), **no_roots).candidates == ()


def test_folder_order_matches_sorted_find(work):
    rng = random.Random(7)
    names = ["a", "a-b", "a.pgm", "A", "é", "b c", "10"]
    for _ in range(60):
        depth = rng.randrange(1, 4)
        folder = Path("photos", *(f"{rng.choice(names)}.d" for _ in range(depth)))
        write_images(folder / f"{rng.choice(names)}{rng.choice(['.jpg', '.PNG', '.tiff'])}")
    sorted_paths = subprocess.run(
        "find photos -type f | LC_ALL=C sort", shell=True, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(sorted_paths) > 30
    assert folder_values("photos") == sorted_paths


def test_is_image_goes_by_suffix():
    image_names = "a.jpg a.JPEG a.Png a.gif a.webp a.bmp a.tif a.TIFF a.avif a.jp2 a.b.jpg a.pgm a.heic"
    assert all(map(is_image, image_names.split()))
    assert not any(map(is_image, ["jpg", ".jpg", "a.jpg.txt", "a.", "a", "a.pdf", "a.json", "a.mp4"]))


def test_unusual_file_names_are_read(lsml, work):
    names = ["10:30.pgm", "data:a.pgm", "50%25.pgm", "what?.pgm", "a#b.pgm", "two\nlines.pgm", " space .pgm", "-o.pgm"]
    write_images(*(f"photos/{name}" for name in names))
    write_images("photos/50%.pgm", "photos/what", content=DARK)
    for folder, cwd in (("photos", work), (".", work / "photos")):
        run = predict(lsml, folder, "-c", work / "config.xml", model=MODEL, cwd=cwd)
        assert run.returncode == 0, run.stderr
        labels = {
            Path(value).name: predicted_choice(json.loads(line))
            for value, line in zip(image_values(run.stdout), run.stdout.splitlines(), strict=True)
        }
        assert labels == dict.fromkeys(names, "bright") | {"50%.pgm": "dark"}


def test_non_utf8_name_fails_only_its_task(lsml, work):
    write_images("photos/a.pgm", "photos/z.pgm")
    Path(os.fsdecode(b"photos/caf\xe9.pgm")).write_bytes(BRIGHT)
    run = predict(lsml, "photos", "--errors", "errors.jsonl", model=MODEL)
    assert (run.returncode, image_values(run.stdout)) == (3, ["photos/a.pgm", "photos/z.pgm"])
    [error] = map(json.loads, Path("errors.jsonl").read_text().splitlines())
    assert (error["index"], error["stage"], error["place"]) == (1, "read", r"caf\xe9.pgm")
    assert error["reason"].startswith(r"photos/caf\xe9.pgm is not UTF-8")


def test_links_are_followed_once_and_not_in_circles(work):
    write_images("photos/a/1.jpg", "outside/2.jpg", "outside/sub/3.jpg", "photos/.store/4.jpg", "single.jpg")
    links = {
        "photos/a/up": "..",  # a circle
        "photos/a/self": ".",
        "photos/b": "a",  # its images come anyway
        "photos/c": "../outside",
        "photos/d": "../outside",  # its target was followed already
        "photos/e": ".store",  # hidden, so its images do not come anyway
        "photos/f.jpg": "../single.jpg",
        "photos/g.jpg": "nowhere.jpg",
        "photos/h": "h",
        "photos/top": "..",  # contains the folder itself
        "outside/back": "../photos",
        "outside/sub/again": "../../outside",
    }
    for link, target in links.items():
        Path(link).symlink_to(target)
    expected = ["a/1.jpg", "c/2.jpg", "c/sub/3.jpg", "e/4.jpg", "f.jpg", "g.jpg"]
    assert folder_values("photos") == [f"photos/{path}" for path in expected]
    Path("entry").symlink_to("photos")
    assert folder_values("entry") == [f"entry/{path}" for path in expected]


def test_walk_of_mutual_links_ends(work):
    """A dozen folders that all link to each other would be millions of paths if every link was followed."""
    Path("photos").mkdir()
    for n in range(12):
        write_images(f"outside/{n}/a.jpg")
        Path(f"photos/{n}").symlink_to(f"../outside/{n}")
        for other in range(12):
            Path(f"outside/{n}/to-{other}").symlink_to(f"../{other}")
    assert len(folder_values("photos")) == 12


def test_images_behind_links_are_read(lsml, work):
    write_images("outside/a.pgm", "single.pgm")
    Path("photos").mkdir()
    Path("photos/more").symlink_to("../outside")
    Path("photos/b.pgm").symlink_to("../single.pgm")
    run = predict(lsml, "photos", model=MODEL)
    assert (run.returncode, image_values(run.stdout)) == (0, ["photos/b.pgm", "photos/more/a.pgm"])


def test_folders_nested_deeper_than_recursion_limit(work):
    deep = Path("photos", *["d"] * 1_100)
    try:
        subprocess.run(["mkdir", "-p", deep], check=True)
        (deep / "a.jpg").touch()
        assert folder_values("photos") == [f"{deep}/a.jpg"]
    finally:  # pytest cannot remove it
        subprocess.run(["rm", "-r", "photos"], check=True)


def test_unreadable_folder_is_reported(lsml, work, monkeypatch):
    write_images("photos/a.pgm", "photos/locked/b.pgm")
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert folder_values("photos") == ["photos/a.pgm", "this folder cannot be read: Permission denied"]
    with pytest.raises(UsageError, match="photos/locked cannot be read: Permission denied"):
        ImageFolderSource("photos/locked", "image")


def test_folder_walk_memory_is_flat(work):
    """Ten times as many images in ten times as many folders: memory holds the names of one folder."""
    peaks = []
    for folders in (10, 100):
        for folder in range(folders):
            Path(f"photos/{folder}").mkdir(parents=True, exist_ok=True)
            for n in range(200):
                os.close(os.open(f"photos/{folder}/{'x' * 100}{n}.jpg", os.O_CREAT | os.O_WRONLY))
        with ImageFolderSource("photos", "image") as source:
            count = end = 0
            for record in source:
                count, end = count + 1, record.end
            assert (count, end) == (folders * 200, source.size)
        peaks.append(psutil.Process().memory_info().rss)
    assert peaks[1] - peaks[0] < 2_000_000


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda: Path("photos").mkdir(), "There is no image below photos."),
        (lambda: write_images("photos/a.txt"), "There is no image below photos: 1 file is no image by its name."),
        (lambda: write_images("photos/.a.jpg", "photos/b", "photos/c/d"), "2 files are no images by their names."),
    ],
)
def test_folder_without_images_is_rejected(lsml, work, prepare, sentence):
    prepare()
    for options in ((), ("--check",)):
        run = predict(lsml, "photos", *options, model=MODEL)
        assert (run.returncode, run.stdout) == (1, "")
        assert sentence in run.stderr
        assert ".jpg" in run.stderr


# --- A list


def test_path_list_accepts_every_separator_and_gzip(lsml, work):
    write_images("photos/a b.pgm", "photos/é.pgm", "photos/ trailing .pgm")
    lines = [
        "photos/é.pgm",
        "photos/a b.pgm",
        "photos/ trailing .pgm",
        f"{work}/photos/é.pgm",
        "./photos/../photos/é.pgm",
    ]
    expected = predict(lsml, "-", "--from", "paths", input=path_list(*lines), model=MODEL)
    assert (expected.returncode, image_values(expected.stdout)) == (0, lines)
    for text in (
        path_list(*lines, end="\r\n"),
        path_list("", *lines, "  ", "", end="\n"),
        path_list(*lines).removesuffix("\n"),
        path_list(*lines, end="\0"),
        path_list("", *lines, end="\0").removesuffix("\0"),
        "\ufeff" + path_list(*lines),
    ):
        assert predict(lsml, "-", "--from", "paths", input=text, model=MODEL).stdout == expected.stdout
    Path("lists").mkdir()
    Path("lists/list.txt").write_text(path_list(*lines))  # its paths are relative to the working folder all the same
    assert predict(lsml, "lists/list.txt", "--from", "paths", model=MODEL).stdout == expected.stdout
    Path("lists/list.gz").write_bytes(gzip.compress(path_list(*lines).encode()))
    assert predict(lsml, "lists/list.gz", "--from", "paths", model=MODEL).stdout == expected.stdout


def test_path_list_from_find_print0(lsml, work):
    write_images("photos/in/a.pgm", "photos/two\nlines.pgm")
    command = f"{sys.executable} -m lsml_cli predict - --from paths -m {MODEL} -c config.xml --quiet"
    run = subprocess.run(
        f"find photos -name '*.pgm' -print0 | LC_ALL=C sort -z | {command}",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert image_values(run.stdout) == ["photos/in/a.pgm", "photos/two\nlines.pgm"]


def test_path_list_with_urls_and_label_studio_paths(lsml, work):
    write_images("files/in/a b.pgm", "copy/c.pgm")
    with run_stub_server() as server:
        server.responses["/d.pgm"] = StubResponse(body=BRIGHT)
        lines = ["/data/local-files/?d=in/a%20b.pgm", "s3://bucket/c.pgm", f"{server.url}/d.pgm", "files/in/a b.pgm"]
        options = ("--document-root", "files", "--map", "s3://bucket/=copy", "--errors", "errors.jsonl")
        run = predict(lsml, "-", "--from", "paths", *options, input=path_list(*lines, "missing.pgm"), model=MODEL)
    assert image_values(run.stdout) == [*lines, "missing.pgm"]
    assert run.returncode == 3
    [error] = map(json.loads, Path("errors.jsonl").read_text().splitlines())
    assert (error["place"], error["stage"]) == ("line 5", "fetch")
    assert "missing.pgm" in error["reason"]


def test_only_paths_named_by_user_may_leave_folder(lsml, work):
    write_images("outside/a.pgm")
    Path("tasks").mkdir()
    path = f"{work}/outside/a.pgm"
    Path("tasks/tasks.json").write_text(json.dumps([{"data": {"image": path}}]))
    Path("tasks/list.txt").write_text(path)
    assert "lies outside of" in predict(lsml, "tasks/tasks.json", model=MODEL).stderr
    assert predict(lsml, "tasks/list.txt", "--from", "paths", model=MODEL).returncode == 0
    Path("tasks/lsml.toml").write_text('[predict]\nfrom = "paths"\n')  # it came with the data, so it is not trusted
    run = predict(lsml, "tasks/list.txt", model=MODEL)
    assert (run.returncode, run.stdout) == (2, "")
    assert "from decides what is read, and from where" in run.stderr
    run = predict(lsml, "tasks/list.txt", "--config", "tasks/lsml.toml", model=MODEL)
    assert (run.returncode, image_values(run.stdout)) == (0, [path])


def test_invalid_line_fails_only_its_task(work):
    Path("list").write_bytes(b"a.jpg\ncaf\xe9.jpg\n" + b"x" * (33 << 20) + b"\nb.jpg\n")
    with RecordSource("list", paths_key="image") as source:
        records = list(source)
    assert [record.index for record in records] == [0, 1, 2, 3]
    assert [record.location for record in records] == ["line 1", "line 2", "line 3", "line 4"]
    assert [bool(record.body) for record in records] == [True, False, False, True]
    assert records[1].problem.startswith(r"caf\xe9.jpg is not UTF-8")
    assert records[2].problem.startswith(f"this task has {33 << 20:,} bytes")


@pytest.mark.parametrize("end", ["\n", "\0"])
def test_path_list_split_across_reads(work, end):
    """Entries come out whole however many bytes the pipe delivers at a time; blank lines are skipped."""
    rng = random.Random(3)
    entries = [
        rng.choice(["", "é" * rng.randrange(1, 90), "a b.jpg", "\n" if end == "\0" else "\r"]) for _ in range(99)
    ]
    data = "start.jpg" + end + path_list(*entries, end=end)
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
            for start in range(0, len(data.encode()), size):
                os.write(writing, data.encode()[start : start + size])
            os.close(writing)
            assert child.stdout is not None
            assert json.loads(child.stdout.read()) == expected


READ_LIST = """
import json
from lsml_cli.io.source import RecordSource
print(json.dumps([json.loads(record.body)["data"]["k"] for record in RecordSource("-", paths_key="k")]))
"""


def test_truncated_path_list_keeps_whole_lines(work):
    compressed = gzip.compress(path_list(*(f"photos/{n * 7919}.jpg" for n in range(5_000))).encode())
    Path("list.gz").write_bytes(compressed[: len(compressed) // 2])
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
def test_non_list_input_is_rejected(work, content, sentence):
    Path("list").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        RecordSource("list", paths_key="image")


def test_names_that_begin_like_json_are_accepted(work):
    Path("list").write_text("[2020] party.jpg\n{a}.jpg\n")
    with RecordSource("list", paths_key="image") as source:
        assert [json.loads(record.body)["data"]["image"] for record in source] == ["[2020] party.jpg", "{a}.jpg"]


@pytest.mark.parametrize("options", [(), ("--from", "paths")])
def test_image_as_input_is_rejected(lsml, work, options):
    write_images("a.pgm")
    write_images("b.png", content=b"\x89PNG\r\n\x1a\n" + bytes(100))
    for image in ("a.pgm", "b.png"):
        run = predict(lsml, image, *options, model=MODEL)
        assert (run.returncode, run.stdout) == (1, "")
        assert f"{image} is an image, not a file of tasks." in run.stderr


# --- With `lsml predict`


def test_check_reports_missing_images(lsml, work):
    write_images("photos/a.pgm")
    Path("photos/gone.pgm").symlink_to("nowhere")
    Path("photos/notes.txt").touch()
    run = predict(lsml, "photos", "--check", "--summary", "check.json", model=MODEL)
    check = json.loads(Path("check.json").read_bytes())
    assert (run.returncode, check["tasks"], check["problems"]) == (3, 2, {"media": 1})
    assert check["notes"] == ["1 file is no image by its name."]
    assert check["first"]["media"] == [f"photos, gone.pgm: there is no file {work}/photos/nowhere"]
    lines = path_list("photos/a.pgm", "../b.pgm", "gs:/c.pgm")
    run = predict(lsml, "-", "--from", "paths", "--check", "--summary", "check.json", input=lines, model=MODEL)
    assert json.loads(Path("check.json").read_bytes())["problems"] == {"media": 2}
    assert "standard input, line 2: there is no file" in run.stdout


@pytest.fixture
def many_images(work):
    write_images(*(f"photos/{n % 10}/{n}.pgm" for n in range(1_500)))
    write_images(*(f"photos/{n % 10}/{n}.pgm" for n in range(0, 1_500, 7)), content=DARK)
    write_images("photos/3/broken.pgm", content=b"P5")
    Path(os.fsdecode(b"photos/5/caf\xe9.pgm")).write_bytes(BRIGHT)
    Path("slow.py").write_text(SLOW)
    return work


def arguments(tasks: str, output: str, *options: str) -> list[str]:
    model = ("-m", "slow.py:Slow", "-c", "config.xml")
    return ["predict", tasks, *model, "-o", output, "--errors", f"{output}.errors", "--quiet", *options]


@pytest.mark.parametrize("input_kind", ["folder", "list"])
def test_killed_run_over_paths_resumes(lsml, many_images, input_kind):
    if input_kind == "list":
        names = subprocess.run(["find", "photos", "-name", "*.pgm"], capture_output=True, check=True)
        Path("list").write_bytes(b"".join(sorted(names.stdout.splitlines(keepends=True))))
    tasks, options = ("photos", []) if input_kind == "folder" else ("list", ["--from", "paths"])
    assert lsml(*arguments(tasks, "clean.json", *options)).returncode == 3
    for moment in (0, 400, 1_000):
        run = start_lsml(*arguments(tasks, "out.json", *options), "--resume")
        wait_until_journaled("out.json", moment)
        kill_process(run)
    assert lsml(*arguments(tasks, "out.json", *options), "--resume").returncode == 3
    for ending in ("", ".errors"):
        assert Path(f"out.json{ending}").read_bytes() == Path(f"clean.json{ending}").read_bytes()
    assert len(json.loads(Path("out.json").read_bytes())) == 1_501
    assert len(Path("out.json.errors").read_text().splitlines()) == 2


def test_resume_rejects_changed_folder(lsml, many_images):
    run = start_lsml(*arguments("photos", "out.json"))
    wait_until_journaled("out.json", 300)
    kill_process(run)
    run = lsml(*arguments("-", "out.json", "--from", "paths"), "--resume", input="a.pgm\n")
    assert (run.returncode, run.stderr.split(",")[0]) == (1, "lsml: standard input has only 1 records")
    write_images("photos/0/000.pgm")
    run = lsml(*arguments("photos", "out.json"), "--resume")
    assert run.returncode == 2
    assert "records of photos are not the ones that the unfinished run has done" in run.stderr


def test_retry_failed_replaces_failed_images(lsml, work):
    write_images("photos/a.pgm", "photos/c.pgm")
    write_images("photos/b.pgm", content=b"broken")
    Path(os.fsdecode(b"photos/caf\xe9.pgm")).write_bytes(BRIGHT)
    command = ("photos", "-o", "out.json", "--errors", "errors.jsonl")
    assert predict(lsml, *command, model=MODEL).returncode == 3
    write_images("photos/b.pgm", content=DARK)
    run = predict(lsml, *command, "--retry-failed", "errors.jsonl", model=MODEL)
    assert run.returncode == 3
    assert "4 tasks: 1 predicted, 2 left as they were, 1 failed" in run.stderr
    assert [predicted_choice(record) for record in json.loads(Path("out.json").read_bytes())] == [
        "bright",
        "dark",
        "bright",
    ]


def test_limit_with_several_workers(lsml, work):
    write_images(*(f"photos/{n}.pgm" for n in range(40)))
    run = predict(lsml, "photos", "--limit", "7", "--workers", "3", "--batch-size", "2", model=MODEL)
    assert image_values(run.stdout) == sorted(f"photos/{n}.pgm" for n in range(40))[:7]


def test_folder_share_follows_records(work):
    write_images("photos/a.jpg", "photos/b.jpg", "photos/c/d.jpg", "photos/c/e.jpg")
    with ImageFolderSource("photos", "image") as source:
        assert [source.share(record.end) for record in source] == pytest.approx([0.24, 0.49, 0.74, 1], abs=0.02)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--shape", "predictions"), "Tasks made from paths have no ids"),
        (("--id-column", "id"), "Paths have no ids"),
        (("--data-key", "text"), '--data-key text: the label config shows no image from "$text". It has: image.'),
    ],
)
def test_options_that_need_ids_are_rejected(lsml, work, options, sentence):
    write_images("photos/a.pgm")
    run = predict(lsml, "photos", *options, model=MODEL)
    assert (run.returncode, run.stdout) == (2, "")
    assert sentence in " ".join(run.stderr.split())


def test_missing_folder_is_rejected(lsml, work):
    run = predict(lsml, "photos/", model=MODEL)
    assert (run.returncode, "There is no file photos/." in run.stderr) == (2, True)


def test_text_model_rejects_paths(lsml, work):
    write_images("photos/a.pgm")
    Path("config.xml").write_text(models.TEXT_CONFIG)
    assert "A folder is read for its images" in predict(lsml, "photos").stderr
    run = predict(lsml, "-", "--from", "paths", input="a.pgm\n")
    assert (run.returncode, "A path is no text" in run.stderr) == (2, True)


def test_missing_data_keys_are_noted(lsml, work):
    write_images("photos/a.pgm")
    Path("config.xml").write_text(
        models.IMAGE_CONFIG.replace("<Image", '<Header value="$title"/><Text name="txt" value="$text"/><Image')
    )
    run = predict(lsml, "photos", model=MODEL)
    assert (run.returncode, image_values(run.stdout)) == (0, ["photos/a.pgm"])
    assert 'Tasks made from paths have only "image"; the label config also shows "text".' in run.stderr


def test_fit_rejects_folder(lsml, work):
    write_images("photos/a.pgm")
    Path("config.xml").write_text(models.TEXT_CONFIG)
    run = lsml("fit", "photos", "-m", "text-classifier", "-c", "config.xml", "-o", "models/x")
    assert (run.returncode, "photos is a folder." in run.stderr) == (2, True)
    with pytest.raises(LsmlError, match="photos is a folder"):
        RecordSource("photos")
