"""Files in buckets: a file system in memory replaces the drivers, which have the same interface."""

from __future__ import annotations

import sys

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lsml_cli.errors import TransientError
from lsml_cli.media.fetcher import AllowedHosts, LabelStudioCredentials, Media
from tests.helpers.media_servers import IMAGE_BYTES, StubResponse, run_stub_label_studio, run_stub_server
from tests.helpers.stub_http import KEY

REGISTRY = sys.modules["fsspec.registry"]._registry  # protocol -> driver, after its first import


class HTTPClientError(Exception):
    """Like that of botocore."""


class EndpointConnectionError(HTTPClientError):
    pass


class HttpError(Exception):
    """Like that of gcsfs."""

    def __init__(self, code: int) -> None:
        super().__init__(f"status {code}")
        self.code = code


class Bucket(MemoryFileSystem):
    """A driver whose buckets behave as their names say: `closed`, `down`, ..."""

    protocol = ("s3", "gs", "az")
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    accessed_paths: list[str] = []  # noqa: RUF012

    def info(self, path, **kwargs):
        self.accessed_paths.append(path)
        if path.startswith("closed/"):
            raise PermissionError("Access Denied")
        if path.startswith("keyless/"):
            raise RuntimeError("Unable to locate credentials")
        if path.startswith("down/"):
            raise OSError(16, "slow down")
        if path.startswith("silent/"):
            raise EndpointConnectionError("Could not connect")
        if path.startswith(("500/", "400/")):
            raise HttpError(int(path[:3]))
        return super().info(path, **kwargs)


@pytest.fixture(autouse=True)
def bucket(monkeypatch):
    for protocol in Bucket.protocol:
        monkeypatch.setitem(REGISTRY, protocol, Bucket)
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "accessed_paths", [])
    files = Bucket()
    for path in ("bucket/some dir/é.png", "bucket/a%20b.png", "closed/a.png"):
        files.pipe_file(path, IMAGE_BYTES)
    return files


@pytest.mark.parametrize("scheme", ["s3", "gs", "azure-blob"])
def test_bucket_files_and_errors(scheme):
    media = Media()
    for path in ("bucket/some dir/é.png", "bucket/a%20b.png"):
        assert media.fetch(f"{scheme}://{path}") == IMAGE_BYTES
        assert media.find_problem(f"{scheme}://{path}", check_remote=True) is None
    assert media.find_problem(f"{scheme}://bucket/c.png") is None  # without a request
    assert (
        media.find_problem(f"{scheme}://bucket/c.png", check_remote=True) == f"there is no file {scheme}://bucket/c.png"
    )
    with pytest.raises(ValueError, match="there is no file"):
        media.fetch(f"{scheme}://bucket/c.png")
    for value in (f"{scheme}://bucket/some dir", f"{scheme}://bucket/", f"{scheme}://bucket"):
        with pytest.raises(ValueError, match="there is no file"):
            media.fetch(value)
    with pytest.raises(ValueError, match="more than 3 bytes"):
        Media(max_bytes=3).fetch(f"{scheme}://bucket/a%20b.png")
    with pytest.raises(ValueError, match=f"{scheme}://closed/a.png: the credentials of this machine do not open it"):
        media.fetch(f"{scheme}://closed/a.png")
    with pytest.raises(ValueError, match="Unable to locate credentials"):
        media.fetch(f"{scheme}://keyless/a.png")
    for path in ("down", "silent", "500"):
        with pytest.raises(TransientError, match=f"{scheme}://{path}/a.png: "):
            media.fetch(f"{scheme}://{path}/a.png")
    with pytest.raises(ValueError, match="HttpError: status 400"):
        media.fetch(f"{scheme}://400/a.png")


def test_fsspec_url_chains_are_not_followed(tmp_path):
    """For fsspec this is a URL of a file on this machine."""
    (tmp_path / "secret").write_text("secret")
    for value in (f"s3://bucket/a::file://{tmp_path}/secret", f"s3://file::{tmp_path}/secret"):
        with pytest.raises(ValueError, match="there is no file"):
            Media().fetch(value)


def test_restricted_hosts_allow_only_listed_buckets():
    media = Media(allowed_hosts=AllowedHosts(("*", "s3://bucket")))
    assert media.fetch("s3://bucket/a%20b.png") == IMAGE_BYTES
    for value in ("s3://bucket-2/a.png", "gs://bucket/a%20b.png", "s3://closed/a.png"):
        with pytest.raises(ValueError, match=r"is not named \(--allow-host names it\), or name the Label Studio"):
            media.fetch(value)
    assert {path.split("/")[0] for path in Bucket.accessed_paths} == {"bucket"}


def test_closed_bucket_falls_back_to_label_studio():
    with run_stub_label_studio() as studio, run_stub_server() as site:
        site.responses["/signed"] = StubResponse(body=b"signed")
        studio.presigned_urls = dict.fromkeys(("s3://closed/a.png", "s3://closed/b.png"), f"{site.url}/signed")
        media = Media(label_studio=LabelStudioCredentials(studio.url, KEY))
        for value in ("s3://closed/a.png", "s3://closed/b.png", "s3://closed/a.png"):
            assert media.fetch(value, 7) == b"signed"
        assert Bucket.accessed_paths == ["closed/a.png"]  # not tried again
        assert media.fetch("s3://bucket/a%20b.png", 7) == IMAGE_BYTES
        assert len(studio.requests) == 3
        with pytest.raises(ValueError, match="do not open it"):
            media.fetch("s3://closed/a.png")  # without a task it cannot be presigned
        media.close()


def test_missing_driver_is_named(monkeypatch):
    monkeypatch.delitem(REGISTRY, "s3")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    sentence = "s3:// needs a driver that is not installed: pip install 'lsml[s3]'"
    assert sentence in str(Media().find_problem("s3://bucket/a.png"))
    assert "--label-studio-url" in str(Media().find_problem("s3://bucket/a.png"))
    with pytest.raises(ValueError, match="pip install"):
        Media().fetch("s3://bucket/a.png")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert sentence in str(Media().find_problem("s3://bucket/a.png"))
    media = Media(label_studio=LabelStudioCredentials("http://127.0.0.1:9"))
    assert media.find_problem("s3://bucket/a.png", 7) is None
    assert sentence in str(media.find_problem("s3://bucket/a.png"))
