"""Media in Label Studio: uploads, local files, and objects of a bucket that it presigns or proxies."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httpx
import pytest

from lsml_cli.media.fetcher import AllowedHosts, LabelStudioCredentials, Media
from tests.helpers import models
from tests.helpers.media_servers import StubResponse, StubSite, run_site

if TYPE_CHECKING:
    from tests.helpers.cli import Lsml
    from tests.helpers.label_studio_server import LabelStudio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

IMAGE = b"P5\n2 1\n255\n\xff\xff"
NAME = "img_0 é+&.pgm"


@pytest.fixture(scope="module")
def project(label_studio: LabelStudio) -> int:
    return label_studio.create_project("media", models.IMAGE_CONFIG)


@pytest.fixture(scope="module")
def uploaded(label_studio: LabelStudio, project: int) -> list[dict[str, Any]]:
    """The tasks of the project, whose images were uploaded."""
    for name in (NAME, "b.png"):
        answer = httpx.post(
            f"{label_studio.url}/api/projects/{project}/import",
            files={"file": (name.replace(".pgm", ".png"), IMAGE, "image/png")},
            headers={"Authorization": label_studio.authorization()},
            trust_env=False,
        )
        assert answer.status_code == 201, answer.text
    return label_studio.export(project)


@pytest.fixture(scope="module")
def bucket(label_studio: LabelStudio, project: int) -> Iterator[StubSite]:
    """A bucket that is connected to Label Studio; the part of S3 that Label Studio uses."""
    with run_site(Bucket) as site:
        site.responses["/presigned/some dir/é.pgm"] = site.responses["/passed-on/a.pgm"] = StubResponse(body=IMAGE)
        for name, presign in (("presigned", True), ("passed-on", False)):
            fields = {"project": project, "bucket": name, "s3_endpoint": site.url, "presign": presign}
            keys = {"aws_access_key_id": "AKIA" + "A" * 16, "aws_secret_access_key": secrets.token_hex(20)}
            label_studio.request_ok("POST", "/api/storages/s3", fields | keys | {"use_blob_urls": True})
        yield site


class Bucket(StubSite):
    def respond(self, path: str, authorization: str | None, body: Any) -> Any:
        response = self.responses.get(unquote(path.partition("?")[0]))
        empty = b'<?xml version="1.0"?><ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>'
        return response or StubResponse(body=empty, headers={"Content-Type": "application/xml"})


@pytest.fixture(params=["legacy token", "personal token"])
def media(request: Any, label_studio: LabelStudio) -> Iterator[Media]:
    """Media as in `lsml serve`: fetched from this Label Studio only."""
    legacy = request.param == "legacy token"
    with contextlib.nullcontext() if legacy else label_studio.legacy_tokens_disabled():
        key = label_studio.token if legacy else label_studio.personal_token
        media = Media(label_studio=LabelStudioCredentials(label_studio.url, key), allowed_hosts=AllowedHosts())
        yield media
        media.close()


def test_uploads(media: Media, uploaded: list[dict[str, Any]], label_studio: LabelStudio) -> None:
    for task in uploaded:
        value = task["data"]["image"]
        assert value.startswith("/data/upload/")
        assert media.fetch(value) == IMAGE
        assert media.fetch(label_studio.url + value) == IMAGE
    missing = str(media.find_problem("/data/upload/1/nothing.png", check_remote=True))
    assert missing.endswith("500 Internal Server Error (as Label Studio does for an upload that was deleted)")
    without_key = Media(label_studio=LabelStudioCredentials(label_studio.url))
    assert "LABEL_STUDIO_API_KEY is not set" in str(without_key.find_problem(value, check_remote=True))
    with_wrong_key = Media(label_studio=LabelStudioCredentials(label_studio.url, secrets.token_hex(20)))
    assert "401" in str(with_wrong_key.find_problem(value, check_remote=True))
    for unauthorized in (without_key, with_wrong_key):
        unauthorized.close()


def test_uploads_are_read_from_the_upload_root(uploaded: list[dict[str, Any]], label_studio: LabelStudio) -> None:
    media = Media(upload_root=label_studio.log.parent / "data" / "media" / "upload")
    assert [media.fetch(task["data"]["image"]) for task in uploaded] == [IMAGE] * len(uploaded)


def test_local_files(media: Media, label_studio: LabelStudio, project: int) -> None:
    documents = label_studio.log.parent / "data" / "local"
    folder = documents / "my imgs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_bytes(IMAGE)
    fields = {"project": project, "path": str(folder), "use_blob_urls": True}
    storage = label_studio.request_ok("POST", "/api/storages/localfiles", fields)["id"]
    label_studio.request_ok("POST", f"/api/storages/localfiles/{storage}/sync", {})
    values = [str(task["data"].get("image")) for task in label_studio.export(project)]
    [value] = {value for value in values if "local-files" in value}
    assert media.fetch(value) == IMAGE
    assert Media(document_root=documents, label_studio=media.label_studio).fetch(value) == IMAGE
    assert Media(prefix_map=((value.partition("=")[0] + "=", documents),)).fetch(value) == IMAGE
    label_studio.request_ok("DELETE", f"/api/storages/localfiles/{storage}")


def test_buckets(
    media: Media, label_studio: LabelStudio, project: int, bucket: StubSite, uploaded: list[dict[str, Any]]
) -> None:
    task = uploaded[0]["id"]
    allowed = Media(label_studio=media.label_studio, allowed_hosts=AllowedHosts((bucket.url.removeprefix("http://"),)))
    bucket.requests.clear()
    assert allowed.fetch("s3://presigned/some dir/é.pgm", task) == IMAGE
    assert set(bucket.authorizations) == {None}
    assert "Signature=" in bucket.paths[-1]
    assert media.fetch("s3://passed-on/a.pgm", task) == IMAGE
    assert "127.0.0.1 is not among the hosts" in str(
        media.find_problem("s3://presigned/some dir/é.pgm", task, check_remote=True)
    )
    assert "no storage is connected" in str(media.find_problem("s3://other/a.pgm", task, check_remote=True))
    assert "no task 987654" in str(media.find_problem("s3://presigned/a.pgm", 987654, check_remote=True))
    allowed.close()


def test_predict_fetches_uploads_once_with_a_cache(
    lsml: Lsml, label_studio: LabelStudio, uploaded: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "tasks.json").write_text(json.dumps(uploaded))
    (tmp_path / "config.xml").write_text(models.IMAGE_CONFIG)
    command = (
        *("predict", "tasks.json", "--model", f"{models.__file__}:Brightness", "--label-config", "config.xml"),
        *("--label-studio-url", label_studio.url, "--media-cache", "cache", "--workers", "4"),
    )
    with label_studio.legacy_tokens_disabled():
        environment = {"LABEL_STUDIO_API_KEY": label_studio.personal_token}
        check = lsml(*command, "--check=media", cwd=tmp_path, env=environment)
        assert check.returncode == 0, check.stdout
        run = lsml(*command, cwd=tmp_path, env=environment)
    assert run.returncode == 0, run.stderr
    labels = [json.loads(line)["predictions"][0]["result"][0]["value"]["choices"] for line in run.stdout.splitlines()]
    assert labels == [["bright"]] * len(uploaded)
    cached_run = lsml(*command, cwd=tmp_path, env={"LABEL_STUDIO_API_KEY": "no-key-any-more"})
    assert cached_run.stdout == run.stdout  # no request was made
