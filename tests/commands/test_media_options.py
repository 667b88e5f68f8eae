"""The options about media, from the command line to the images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.commands.media_options import MediaOptions, parse_map, parse_size
from lsml_cli.errors import UsageError
from lsml_cli.media.fetcher import ANY_HOST, AllowedHosts, Cache, LabelStudioCredentials
from tests.helpers import models
from tests.helpers.media_servers import StubResponse, run_stub_label_studio
from tests.helpers.predict_runs import predict

BRIGHT = b"P5\n2 1\n255\n\xff\xff"
MODEL = f"{models.__file__}:Brightness"


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.xml").write_text(models.IMAGE_CONFIG)
    for path in ("documents/imgs/a b.pgm", "uploads/3/é.pgm", "copy/c.pgm", "tasks/d.pgm"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(BRIGHT)
    return tmp_path


def write_tasks(*images: str) -> str:
    tasks = [{"id": n, "data": {"image": image}} for n, image in enumerate(images, 1)]
    Path("tasks/tasks.json").write_text(json.dumps(tasks))
    return "tasks/tasks.json"


def labels_of(stdout: str) -> list[Any]:
    found = (json.loads(line)["predictions"] for line in stdout.splitlines())
    return [each and each[0]["result"][0]["value"]["choices"][0] for each in found]


def test_media_from_all_sources_in_one_run(lsml, work):
    with run_stub_label_studio() as studio:
        studio.responses["/ls/data/upload/4/e.pgm"] = StubResponse(body=BRIGHT)
        tasks = write_tasks(
            *("/data/local-files/?d=imgs/a%20b.pgm", "/data/upload/3/%C3%A9.pgm", "s3://bucket/c.pgm", "d.pgm"),
            *("/data/upload/4/e.pgm", "../copy/c.pgm", "/data/upload/5/missing.pgm"),
        )
        options = (
            *("--document-root", "documents", "--upload-root", "uploads", "--map", "s3://bucket/=copy"),
            *("--map", "gs://=copy", "--label-studio-url", studio.url, "--workers", "3", "--media-cache", "cache"),
        )
        key = {"LABEL_STUDIO_API_KEY": studio.personal_token}
        run = predict(lsml, tasks, *options, model=MODEL, env=key)
        assert labels_of(run.stdout) == ["bright"] * 5 + [[]] * 2
        assert run.returncode == 3
        run = predict(lsml, tasks, "--check", *options, model=MODEL, env=key)
        assert "media: 1" in run.stdout  # the path that leads upwards; nobody was asked
        run = predict(lsml, tasks, "--check=media", *options, model=MODEL, env=key)
        assert "media: 2" in run.stdout
        assert "/data/upload/5/missing.pgm: the server answers 404" in run.stdout
        before = len(studio.requests)
        run = predict(lsml, tasks, "--limit", "5", *options, model=MODEL, env={"LABEL_STUDIO_API_KEY": "other-key"})
        assert labels_of(run.stdout) == ["bright"] * 5
        assert len(studio.requests) == before  # it was kept


def test_label_studio_url_from_environment(lsml, work):
    with run_stub_label_studio() as studio:
        studio.responses["/ls/data/upload/4/e.pgm"] = StubResponse(body=BRIGHT)
        env = {"LABEL_STUDIO_URL": studio.url, "LABEL_STUDIO_API_KEY": studio.personal_token}
        run = predict(lsml, write_tasks("/data/upload/4/e.pgm"), model=MODEL, env=env)
    assert labels_of(run.stdout) == ["bright"]


def test_missing_media_options_are_named_in_failures(lsml, work):
    run = predict(lsml, write_tasks("/data/upload/3/a.pgm", "/data/local-files/?d=a"), "--check", model=MODEL)
    assert "media: 2" in run.stdout
    for option in ("--upload-root", "--document-root", "--label-studio-url"):
        assert option in run.stdout


def test_api_key_is_never_printed_or_stored(lsml, work):
    """Not in what is printed, not in a traceback, not in a file."""
    key = "a-very-secret-key-of-somebody"
    with run_stub_label_studio() as studio:
        tasks = write_tasks("/data/upload/3/a.pgm")
        for options in ((), ("--check=media",), ("--show-settings",), ("--errors", "e.jsonl", "-o", "out.json")):
            given = (*options, "--label-studio-url", studio.url, "--media-cache", "cache", "--on-error", "fail")
            run = predict(lsml, tasks, *given, model=MODEL, env={"LABEL_STUDIO_API_KEY": key, "LSML_DEBUG": "1"})
            assert key not in run.stdout + run.stderr
        broken = predict(lsml, tasks, *given, model=MODEL, env={"LABEL_STUDIO_API_KEY": f"{key} {key}"})
        assert broken.returncode == 2
        assert key not in broken.stderr
    assert not [path for path in work.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]


def test_resume_accepts_other_media_locations(lsml, work):
    """A run that is resumed on another machine finds its images elsewhere."""
    tasks = write_tasks(*["/data/upload/3/%C3%A9.pgm"] * 3, "s3://bucket/c.pgm", "d.pgm")
    first = ("--upload-root", "uploads", "--on-error", "fail", "--batch-size", "1")
    failing = predict(lsml, tasks, "-o", "out.json", *first, model=MODEL)
    assert failing.returncode == 1, failing.stderr
    assert Path("out.json.part").read_bytes().count(b"bright") == 3
    options = (
        "--batch-size",
        "1",
        "--upload-root",
        "uploads",
        "--map",
        "s3://bucket/=copy",
        "--media-cache",
        "cache",
        "--resume",
    )
    run = predict(lsml, tasks, "-o", "out.json", *options, model=MODEL)
    assert run.returncode == 0, run.stderr
    records = json.loads(Path("out.json").read_bytes())
    assert [record["predictions"][0]["result"][0]["value"]["choices"] for record in records] == [["bright"]] * 5


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--document-root", "nowhere", "There is no folder nowhere (--document-root)."),
        ("--upload-root", "config.xml", "There is no folder config.xml (--upload-root)."),
        ("--map", "s3://bucket", "--map 's3://bucket' is not PREFIX=DIR."),
        ("--map", "=copy", "is not PREFIX=DIR."),
        ("--map", "a=", "is not PREFIX=DIR."),
        ("--map", "a=nowhere", "There is no folder nowhere (--map a)."),
        ("--label-studio-url", "label.example.com", "'label.example.com' is not the address of a Label Studio."),
        ("--media-cache-size", "many", "'many' is not a size."),
        ("--media-cache", "config.xml", "The folder config.xml (--media-cache) cannot be created: File exists."),
    ],
)
def test_invalid_media_options_are_usage_errors(lsml, work, option, value, sentence):
    run = predict(lsml, write_tasks("d.pgm"), option, value, model=MODEL)
    assert run.returncode == 2
    assert sentence in run.stderr


def test_options_become_media_values(work, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "key")
    options = MediaOptions(
        label_studio_url="http://ls/",
        maps=("a=copy", "a/long/one==copy"),
        cache=Path("new/cache"),
        cache_size="2K",
    )
    media = options.build(root=None, allowed_hosts=AllowedHosts(("example.com",)))
    assert media.root is None
    assert media.label_studio == LabelStudioCredentials("http://ls", "key")
    assert media.prefix_map == (("a/long/one=", Path("copy")), ("a", Path("copy")))
    assert media.cache == Cache(Path("new/cache"), 2048)
    assert Path("new/cache").stat().st_mode & 0o077 == 0
    plain = MediaOptions().build(root=Path())
    assert (plain.allowed_hosts, plain.label_studio, plain.cache) == (ANY_HOST, None, None)
    assert parse_map("/data/local-files/?d==copy") == ("/data/local-files/?d=", Path("copy"))


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("2K", 2048), ("1.5k", 1536), ("10G", 10 << 30), ("1 MiB", 1 << 20), ("1TB", 1 << 40)],
)
def test_parse_size(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "G", "1X", "1e9", "inf"])
def test_parse_size_rejects_invalid_texts(text):
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)
