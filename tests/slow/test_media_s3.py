"""Media at s3:// addresses through the real driver, against a local S3 server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cli import ROOT, Lsml
from tests.helpers.models import IMAGE_CONFIG
from tests.helpers.serve_process import free_port, wait_until

pytestmark = pytest.mark.slow

BRIGHT = b"P5\n4 4\n255\n" + bytes([250]) * 16


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment variables for a local S3 server with one bucket."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = (tmp_path_factory.mktemp("s3") / "log").open("wb")
    server = subprocess.Popen([Path(sys.executable).with_name("moto_server"), "-p", str(port)], stdout=log, stderr=log)
    try:
        wait_until("the S3 server listens", lambda: _listens(port), 60)
        for method, path, content in (
            ("PUT", "/photos", b""),
            ("PUT", "/photos/some%20dir/%C3%A9.png", BRIGHT),
            ("PUT", "/photos/one.png", BRIGHT),
        ):
            request = urllib.request.Request(url + path, data=content, method=method)
            request.add_header("Content-Type", "image/x-portable-graymap")
            request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request")
            urllib.request.urlopen(request).close()
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.terminate()
        server.wait()
        log.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_images_are_read_from_a_bucket(lsml: Lsml, s3: dict[str, str], tmp_path: Path) -> None:
    values = ["s3://photos/one.png", "s3://photos/nothing.png", "s3://photos/some dir/é.png", "s3://elsewhere/one.png"]
    tasks = [{"id": n, "data": {"image": value}} for n, value in enumerate(values)]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    (tmp_path / "config.xml").write_text(IMAGE_CONFIG)
    command = (
        "predict",
        "tasks.json",
        "--model",
        f"{ROOT / 'tests' / 'helpers' / 'models.py'}:Brightness",
        "-c",
        "config.xml",
    )
    run = lsml(*command, "-o", "out.json", "--errors", "errors.jsonl", env=s3, cwd=tmp_path)
    assert run.returncode == 3, run.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert [len(task["predictions"]) for task in written] == [1, 0, 1, 0]
    for task in written[::2]:
        assert task["predictions"][0]["result"][0]["value"]["choices"] == ["bright"]
    failed = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()]
    assert [error["reason"] for error in failed] == [f"there is no file {values[1]}", f"there is no file {values[3]}"]


def test_missing_credentials_are_reported(lsml: Lsml, s3: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text(json.dumps([{"id": 1, "data": {"image": "s3://photos/one.png"}}]))
    (tmp_path / "config.xml").write_text(IMAGE_CONFIG)
    command = (
        "predict",
        "tasks.json",
        "--model",
        f"{ROOT / 'tests' / 'helpers' / 'models.py'}:Brightness",
        "-c",
        "config.xml",
    )
    keyless = s3 | {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
    run = lsml(*command, "-o", "out.json", env=keyless, cwd=tmp_path)
    assert run.returncode == 3
    assert "s3://photos/one.png: NoCredentialsError: Unable to locate credentials" in run.stderr
    assert "Traceback" not in run.stderr
