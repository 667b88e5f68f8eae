"""Media of a Label Studio with an API key: both kinds of key, where they are sent, and where they are not."""

from __future__ import annotations

import pickle
import threading

import httpx
import pytest

from lsml_cli.errors import TransientError, UsageError
from lsml_cli.media.fetcher import AllowedHosts, Cache, LabelStudioCredentials, Media
from tests.helpers.media_servers import IMAGE_BYTES, StubResponse, run_stub_label_studio, run_stub_server
from tests.helpers.stub_http import KEY, make_jwt

UPLOAD = "/data/upload/3/a%20%C3%A9.png"


@pytest.fixture
def studio():
    with run_stub_label_studio() as studio:
        yield studio


@pytest.fixture(params=["legacy", "personal"])
def key(request, studio):
    return KEY if request.param == "legacy" else studio.personal_token


def make_media(studio, key=None, **more):
    return Media(label_studio=LabelStudioCredentials(studio.url, key), **more)


@pytest.mark.parametrize("hosts", [AllowedHosts(), AllowedHosts(allow_any=True)])
def test_served_files_are_fetched(studio, key, hosts):
    media = make_media(studio, key, allowed_hosts=hosts)
    for value in (UPLOAD, "/data/upload/3/a é.png", f"/ls{UPLOAD}", studio.url + UPLOAD):
        assert media.fetch(value) == IMAGE_BYTES
        assert media.find_problem(value, check_remote=True) is None
    assert media.fetch("/data/local-files/?d=a%20b.png") == b"a local file"
    assert studio.paths[-1] == "/ls/data/local-files/?d=a%20b.png"
    assert len(studio.refresh_bodies) == (key != KEY)  # one exchange for all
    media.close()


def test_access_token_is_renewed_before_expiry(studio):
    studio.token_lifetime = 1  # less than the renewal margin: renewed after half of it
    media = make_media(studio, studio.personal_token)
    media.fetch(UPLOAD)
    media.fetch(UPLOAD)
    assert len(studio.refresh_bodies) == 1
    threading.Event().wait(0.6)
    media.fetch(UPLOAD)
    assert len(studio.refresh_bodies) == 2
    media.close()


def test_rejected_access_token_is_renewed_once(studio):
    media = make_media(studio, studio.personal_token)
    media.fetch(UPLOAD)
    studio.valid_tokens.clear()
    studio.token_lifetime += 1
    assert media.fetch(UPLOAD) == IMAGE_BYTES
    assert len(studio.refresh_bodies) == 2
    studio.valid_tokens.clear()
    studio.responses["/ls/api/token/refresh/"] = StubResponse(200, b'{"access": "worth.no.thing"}')
    with pytest.raises(ValueError, match="the server answers 401 Unauthorized to the key in LABEL_STUDIO_API_KEY"):
        media.fetch(UPLOAD)
    assert len(studio.refresh_bodies) == 3
    media.close()


def test_threads_share_one_token_exchange(studio):
    media = make_media(studio, studio.personal_token)
    studio.responses |= {f"/ls/data/upload/3/{n}": StubResponse(body=b"x") for n in range(24)}
    threads = [threading.Thread(target=media.fetch, args=(f"/data/upload/3/{n}",)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(studio.refresh_bodies) == 1
    assert len(studio.requests) == 25
    media.close()


def test_access_token_is_not_exchanged(studio):
    token = make_jwt("access", 0, 300)
    studio.valid_tokens.add(token)
    media = make_media(studio, token)
    assert media.fetch(UPLOAD) == IMAGE_BYTES
    assert studio.refresh_bodies == []
    media.close()


@pytest.mark.parametrize(
    ("answer", "error", "sentence"),
    [
        (
            StubResponse(401),
            ValueError,
            "answers 401 Unauthorized to the personal access token in LABEL_STUDIO_API_KEY",
        ),
        (StubResponse(404), ValueError, "/api/token/refresh/: the server answers 404 Not Found"),
        (StubResponse(503), TransientError, "answers 503"),
        (StubResponse(302, headers={"Location": "http://127.0.0.1:9/"}), ValueError, "leads somewhere else"),
        (StubResponse(200, b"<html>"), ValueError, "is not JSON"),
        (StubResponse(200, b"[]"), ValueError, "no access token"),
        (StubResponse(200, b"[" * 100_000), ValueError, "is not JSON"),
    ],
)
def test_failed_exchange_is_not_repeated_at_once(studio, answer, error, sentence):
    studio.responses["/ls/api/token/refresh/"] = answer
    media = make_media(studio, studio.personal_token)
    for _ in range(3):
        with pytest.raises(error, match=sentence) as raised:
            media.fetch(UPLOAD)
        assert studio.personal_token not in str(raised.value)
    assert len(studio.refresh_bodies) == 1  # not once for each of 400,000 tasks
    media.close()


def test_deleted_upload_is_explained(studio):
    """Label Studio 1.23 answers 500, which is retried like every 500, with an explanation."""
    studio.responses["/ls/data/upload/3/gone"] = StubResponse(500)
    media = make_media(studio, KEY)
    with pytest.raises(TransientError, match=r"answers 500 .* \(as Label Studio does for an upload that was deleted\)"):
        media.fetch("/data/upload/3/gone")
    media.close()


def test_rejected_key_is_explained(studio):
    studio.legacy_allowed = False
    messages = {None: "LABEL_STUDIO_API_KEY is not set", KEY: "use a personal access token"}
    for key, sentence in messages.items():
        media = make_media(studio, key)
        with pytest.raises(ValueError, match=sentence) as error:
            media.fetch(UPLOAD)
        assert KEY not in str(error.value)
        media.close()


# Where the key is sent


def test_key_is_sent_to_label_studio_only(studio, key):
    with run_stub_server() as other:
        other.responses["/a"] = StubResponse(body=IMAGE_BYTES)
        other.responses["/ls/data/upload/3/a é.png"] = StubResponse(body=IMAGE_BYTES)
        other.responses["/ls/data/upload/3/a%20%C3%A9.png"] = StubResponse(body=IMAGE_BYTES)
        studio.responses["/ls/data/upload/3/moved"] = StubResponse(302, headers={"Location": f"{other.url}/a"})
        there_and_back = StubResponse(302, headers={"Location": studio.url + UPLOAD})
        other.responses["/back"] = there_and_back
        media = make_media(studio, key)
        assert media.fetch(f"{other.url}/a") == IMAGE_BYTES
        assert media.fetch("/data/upload/3/moved") == IMAGE_BYTES
        assert media.fetch(f"{other.url}/ls{UPLOAD}") == IMAGE_BYTES  # another port is another server
        localhost = studio.url.replace("127.0.0.1", "localhost")
        with pytest.raises(ValueError, match="401"):  # another name as well
            media.fetch(f"{localhost}{UPLOAD}")
        assert set(other.authorizations) == {None}
        assert media.fetch(f"{other.url}/back") == IMAGE_BYTES  # a redirect to Label Studio gets the key
        assert {request.cookie for request in studio.requests + other.requests} == {None}
        media.close()


@pytest.mark.parametrize(
    "path",
    [
        *("/ls/api/users", "/api/users", "/ls/data/../api/users", "/ls/data/%2e%2e/api/users", "/ls/tasks/7"),
        *("/ls/projects/7/export", "/other/data/upload/3/a.png"),
    ],
)
def test_key_is_sent_to_media_paths_only(studio, path):
    """Label Studio's API is on the same host, and answers GET requests with more than media."""
    media = make_media(studio, KEY)
    with pytest.raises(ValueError, match=r"401|leads upwards"):
        media.fetch(studio.url.removesuffix("/ls") + path)
    assert set(studio.authorizations) <= {None}
    media.close()


@pytest.mark.parametrize("value", ["/data/upload/../../api/users", "/data/upload/%2e%2e/x", "/data/upload/..%5cx"])
def test_upward_path_gets_no_request(studio, value):
    media = make_media(studio, KEY)
    with pytest.raises(ValueError, match="leads upwards"):
        media.fetch(value)
    assert studio.requests == []


def test_key_is_neither_shown_nor_stored(studio, key, tmp_path):
    media = make_media(studio, key, cache=Cache(tmp_path / "cache"))
    assert media.fetch(UPLOAD) == IMAGE_BYTES
    assert key not in repr(media) + str(media) + repr(media.label_studio)
    assert key not in "".join(repr(value) for value in vars(media).values())
    cached = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(cached) == 1
    assert key.encode() not in cached[0].read_bytes() + str(cached[0]).encode()
    assert pickle.loads(pickle.dumps(media)).label_studio.key == key  # it travels to replica processes, though
    media.close()


# Presigned


def test_bucket_file_is_presigned_by_label_studio(studio, key):
    """Label Studio has the credentials and redirects to the bucket, which must not get its key."""
    with run_stub_server() as bucket:
        bucket.responses["/some dir/é.png"] = bucket.responses["/some%20dir/%C3%A9.png"] = StubResponse(
            body=IMAGE_BYTES
        )
        studio.presigned_urls = {"s3://bucket/some dir/é.png": f"{bucket.url}/some%20dir/%C3%A9.png?signature=abc"}
        for hosts in (AllowedHosts((f"127.0.0.1:{bucket.port}",)), AllowedHosts(("*", "127.0.0.1"))):
            media = make_media(studio, key, allowed_hosts=hosts)
            assert media.fetch("s3://bucket/some dir/é.png", 7) == IMAGE_BYTES
            with pytest.raises(ValueError, match="it has no task 7, or no storage is connected"):
                media.fetch("s3://other/a.png", 7)
            with pytest.raises(ValueError, match="it has no task 8"):
                media.fetch("s3://bucket/some dir/é.png", 8)
            assert "only for a task with an id" in str(media.find_problem("s3://bucket/a.png"))
            assert media.find_problem("s3://bucket/a.png", 7) is None
            assert "no storage" in str(media.find_problem("s3://bucket/a.png", 7, check_remote=True))
            media.close()
        closed = make_media(studio, key, allowed_hosts=AllowedHosts(("*",)))
        with pytest.raises(ValueError, match=r"s3://bucket/.*: 127\.0\.0\.1 has an address that is not public"):
            closed.fetch("s3://bucket/some dir/é.png", 7)
        closed.close()
        assert set(bucket.authorizations) == {None}
        assert "signature=abc" in bucket.paths[0]


# Addresses and keys


@pytest.mark.parametrize(
    "url", ["", "label.example.com", "ftp://h", "http://", "http://u:p@h", "http://h?a", "http://h:x"]
)
def test_invalid_address_is_rejected(url):
    with pytest.raises(UsageError, match="is not the address of a Label Studio"):
        LabelStudioCredentials(url)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("https://Label.Example.com.", ("label.example.com", 443)),
        ("http://bücher.example:8080/ls", ("xn--bcher-kva.example", 8080)),
        ("http://[0:0::1]/", ("::1", 80)),
    ],
)
def test_hosts_are_normalized(address, host):
    credentials = LabelStudioCredentials(address)
    assert credentials.host_and_port == host
    assert AllowedHosts((credentials.netloc,)).trust_level(*host) == "named"
    url = httpx.URL(f"{credentials.url}/data/upload/3/a.png")
    assert credentials.is_media_url(url.scheme, url.raw_host.decode(), host[1], url.path)


def test_invalid_key_is_rejected():
    for key in ("a b", "a\nb", "schlüssel"):
        with pytest.raises(UsageError, match="holds characters that no key has") as error:
            LabelStudioCredentials("http://h", key)
        assert key not in str(error.value)
    assert LabelStudioCredentials("http://h/", " key\n") == LabelStudioCredentials("http://h", "key")
    assert LabelStudioCredentials("http://h", " ").key is None


def test_key_is_read_from_environment(monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "abc")
    assert LabelStudioCredentials.from_env("https://h/ls").key == "abc"
    monkeypatch.delenv("LABEL_STUDIO_API_KEY")
    assert LabelStudioCredentials.from_env("https://h/ls").key is None
