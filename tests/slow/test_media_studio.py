"""Media that only a real Label Studio has: uploads, local files, files of a bucket that it presigns or passes on."""

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
    from conftest import LabelStudio

    from tests.helpers.cli import Lsml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PICTURE = b"P5\n2 1\n255\n\xff\xff"
NAME = "img_0 é+&.pgm"


@pytest.fixture(scope="module")
def project(label_studio: LabelStudio) -> int:
    return label_studio.create_project("media", models.IMAGE_CONFIG)


@pytest.fixture(scope="module")
def uploaded(label_studio: LabelStudio, project: int) -> list[dict[str, Any]]:
    """Tasks of the project, with pictures that were uploaded."""
    for name in (NAME, "b.png"):
        answer = httpx.post(
            f"{label_studio.url}/api/projects/{project}/import",
            files={"file": (name.replace(".pgm", ".png"), PICTURE, "image/png")},
            headers={"Authorization": label_studio.authorization()},
            trust_env=False,
        )
        assert answer.status_code == 201, answer.text
    return label_studio.export(project)


@pytest.fixture(scope="module")
def bucket(label_studio: LabelStudio, project: int) -> Iterator[StubSite]:
    """A bucket that Label Studio has the credentials of; as much of S3 as its connection asks for."""
    with run_site(Bucket) as site:
        site.responses["/presigned/some dir/é.pgm"] = site.responses["/passed-on/a.pgm"] = StubResponse(body=PICTURE)
        for name, presign in (("presigned", True), ("passed-on", False)):
            asked = {"project": project, "bucket": name, "s3_endpoint": site.url, "presign": presign}
            keys = {"aws_access_key_id": "AKIA" + "A" * 16, "aws_secret_access_key": secrets.token_hex(20)}
            label_studio.request_ok("POST", "/api/storages/s3", asked | keys | {"use_blob_urls": True})
        yield site


class Bucket(StubSite):
    def respond(self, path: str, authorization: str | None, body: Any) -> Any:
        found = self.responses.get(unquote(path.partition("?")[0]))
        empty = b'<?xml version="1.0"?><ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>'
        return found or StubResponse(body=empty, headers={"Content-Type": "application/xml"})


@pytest.fixture(params=["legacy token", "personal token"])
def media(request: Any, label_studio: LabelStudio) -> Iterator[Media]:
    """As in `lsml serve`: nobody is asked but this Label Studio."""
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
        assert media.fetch(value) == PICTURE
        assert media.fetch(label_studio.url + value) == PICTURE
    missing = str(media.find_problem("/data/upload/1/nothing.png", check_remote=True))
    assert missing.endswith("500 Internal Server Error (as Label Studio does for an upload that was deleted)")
    nobody = Media(label_studio=LabelStudioCredentials(label_studio.url))
    assert "LABEL_STUDIO_API_KEY is not set" in str(nobody.find_problem(value, check_remote=True))
    wrong = Media(label_studio=LabelStudioCredentials(label_studio.url, secrets.token_hex(20)))
    assert "401" in str(wrong.find_problem(value, check_remote=True))
    for each in (nobody, wrong):
        each.close()


def test_uploads_beside_their_label_studio(uploaded: list[dict[str, Any]], label_studio: LabelStudio) -> None:
    beside = Media(upload_root=label_studio.log.parent / "data" / "media" / "upload")
    assert [beside.fetch(task["data"]["image"]) for task in uploaded] == [PICTURE] * len(uploaded)


def test_local_files(media: Media, label_studio: LabelStudio, project: int) -> None:
    documents = label_studio.log.parent / "data" / "local"
    folder = documents / "my imgs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_bytes(PICTURE)
    asked = {"project": project, "path": str(folder), "use_blob_urls": True}
    storage = label_studio.request_ok("POST", "/api/storages/localfiles", asked)["id"]
    label_studio.request_ok("POST", f"/api/storages/localfiles/{storage}/sync", {})
    values = [str(task["data"].get("image")) for task in label_studio.export(project)]
    [value] = {each for each in values if "local-files" in each}
    assert media.fetch(value) == PICTURE
    assert Media(document_root=documents, label_studio=media.label_studio).fetch(value) == PICTURE
    assert Media(prefix_map=((value.partition("=")[0] + "=", documents),)).fetch(value) == PICTURE
    label_studio.request_ok("DELETE", f"/api/storages/localfiles/{storage}")


def test_buckets(
    media: Media, label_studio: LabelStudio, project: int, bucket: StubSite, uploaded: list[dict[str, Any]]
) -> None:
    task = uploaded[0]["id"]
    allowed = Media(label_studio=media.label_studio, allowed_hosts=AllowedHosts((bucket.url.removeprefix("http://"),)))
    bucket.requests.clear()
    assert allowed.fetch("s3://presigned/some dir/é.pgm", task) == PICTURE
    assert set(bucket.authorizations) == {None}
    assert "Signature=" in bucket.paths[-1]
    assert media.fetch("s3://passed-on/a.pgm", task) == PICTURE
    assert "127.0.0.1 is not among the hosts" in str(
        media.find_problem("s3://presigned/some dir/é.pgm", task, check_remote=True)
    )
    assert "no storage is connected" in str(media.find_problem("s3://other/a.pgm", task, check_remote=True))
    assert "no task 987654" in str(media.find_problem("s3://presigned/a.pgm", 987654, check_remote=True))
    allowed.close()


def test_a_run_over_an_export(
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
        checked = lsml(*command, "--check=media", cwd=tmp_path, env=environment)
        assert checked.returncode == 0, checked.stdout
        run = lsml(*command, cwd=tmp_path, env=environment)
    assert run.returncode == 0, run.stderr
    labels = [json.loads(line)["predictions"][0]["result"][0]["value"]["choices"] for line in run.stdout.splitlines()]
    assert labels == [["bright"]] * len(uploaded)
    again = lsml(*command, cwd=tmp_path, env={"LABEL_STUDIO_API_KEY": "no-key-any-more"})
    assert again.stdout == run.stdout  # nobody was asked
