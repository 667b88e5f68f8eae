"""Fetch files from servers, including those that fail in every way that servers do."""

from __future__ import annotations

import gzip
import shutil
import ssl
import subprocess
import time

import pytest

from lsml_cli.errors import TransientError
from lsml_cli.media.fetcher import ANY_HOST, AllowedHosts, Media
from tests.helpers.media_servers import IMAGE_BYTES, StubResponse, drip_response, run_stub_server

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def site():
    with run_stub_server() as site:
        for status in (401, 403, 404, 429, 500, 503):
            site.responses[f"/{status}"] = StubResponse(status)
        site.responses["/good"] = StubResponse(body=IMAGE_BYTES)
        site.redirect("/loop", "/loop")
        site.redirect("/elsewhere", "ftp://example.com/a")
        site.responses["/large"] = StubResponse(headers={"Content-Length": "100001"})
        site.responses["/endless"] = drip_response(ENDLESS, b"2710\r\n" + b"x" * 10_000 + b"\r\n", 0)
        site.responses["/truncated"] = drip_response(HEAD.replace(b"1000000000", b"100"), b"part of it", 0, times=1)
        site.responses["/silent"] = drip_response(HEAD.replace(b"1000000000", b"100"), b"", 0.7, times=1)
        site.responses["/slow"] = drip_response(HEAD.replace(b"1000000000", b"100"), b"x", 0.05)
        site.responses["/slow-header"] = drip_response(b"HTTP/1.1 200 OK\r\n", b"X: x\r\n", 0.05)
        site.responses["/nothing"] = drip_response(b"", b"", 0, times=0)
        site.responses["/nonsense"] = drip_response(b"SSH-2.0-OpenSSH\r\n", b"", 0, times=1)
        yield site


def quick(allowed_hosts: AllowedHosts = ANY_HOST) -> Media:
    """Return media with small limits: 100 kB, a second, half a second without a byte."""
    return Media(allowed_hosts=allowed_hosts, max_bytes=100_000, total_timeout=1.0, read_timeout=0.5)


@pytest.fixture(params=["any host", "named hosts"])
def media(request):
    """As in `predict` and as in `serve`: they use different connections."""
    media = quick() if request.param == "any host" else quick(AllowedHosts(("127.0.0.1",)))
    yield media
    media.close()


def test_file_is_fetched(site, media):
    site.redirect("/moved", "good", 307)
    for address in ("/good", "/moved", "/moved?a=b#c"):
        assert media.fetch(site.url + address) == IMAGE_BYTES
        assert media.find_problem(site.url + address, check_remote=True) is None
    assert {request.authorization for request in site.requests} == {None}
    assert {request.cookie for request in site.requests} == {None}


@pytest.mark.parametrize(
    ("address", "error", "sentence"),
    [
        ("/401", ValueError, "the server answers 401 Unauthorized"),
        ("/403", ValueError, "the server answers 403 Forbidden"),
        ("/404", ValueError, "the server answers 404 Not Found"),
        ("/429", TransientError, "the server answers 429"),
        ("/500", TransientError, "the server answers 500"),
        ("/503", TransientError, "the server answers 503"),
        ("/loop", ValueError, "/loop: more than 5 redirects"),
        ("/elsewhere", ValueError, "/elsewhere: "),
        ("/large", ValueError, "more than 100,000 bytes"),
        ("/endless", ValueError, "more than 100,000 bytes"),
        ("/truncated", TransientError, "/truncated: "),
        ("/silent", TransientError, "/silent: "),
        ("/slow", TransientError, "/slow had not arrived after 1 s|/slow: "),
        ("/nothing", TransientError, "/nothing: "),
        ("/nonsense", TransientError, "/nonsense: "),
    ],
)
def test_failing_servers_raise_within_limits(site, media, address, error, sentence):
    started_at = time.monotonic()
    with pytest.raises(error, match=sentence):
        media.fetch(site.url + address)
    assert time.monotonic() - started_at < 2
    assert media.fetch(f"{site.url}/good") == IMAGE_BYTES


def test_total_timeout_covers_slow_header(site):
    """Only connections to restricted hosts count every single wait."""
    media = quick(AllowedHosts(("127.0.0.1",)))
    started_at = time.monotonic()
    with pytest.raises(TransientError, match="/slow-header"):
        media.fetch(f"{site.url}/slow-header")
    assert time.monotonic() - started_at < 2
    media.close()


def test_check_remote_does_not_fetch(site, media):
    assert media.find_problem(f"{site.url}/404") is None
    assert site.requests == []
    assert "404" in str(media.find_problem(f"{site.url}/404", check_remote=True))
    assert "500" in str(media.find_problem(f"{site.url}/500", check_remote=True))
    assert media.find_problem(f"{site.url}/endless", check_remote=True) is None


def test_unreachable_server_is_transient(media):
    with pytest.raises(TransientError, match=r"http://127\.0\.0\.1:9/"):
        media.fetch("http://127.0.0.1:9/a.png")
    for url in ("http://", "http://:80/a", "http://127.0.0.1:99999/", "http://127.0.0.1/\n"):
        with pytest.raises(ValueError, match="http://"):
            media.fetch(url)


def test_gzip_encoded_files_are_unpacked_within_limits(site, media):
    """Buckets send a file as it is stored, whatever was requested. A few packed bytes may become very many."""
    gzip_header = {"Content-Encoding": "gzip"}
    site.responses["/gzip"] = StubResponse(body=gzip.compress(IMAGE_BYTES * 1000), headers=gzip_header)
    site.responses["/bomb"] = StubResponse(body=gzip.compress(bytes(50_000_000)), headers=gzip_header)
    site.responses["/truncated-gzip"] = StubResponse(body=gzip.compress(IMAGE_BYTES * 1000)[:-9], headers=gzip_header)
    site.responses["/damaged"] = StubResponse(body=b"no gzip at all", headers=gzip_header)
    site.responses["/twice"] = StubResponse(body=b"x", headers={"Content-Encoding": "gzip, gzip"})
    assert media.fetch(f"{site.url}/gzip") == IMAGE_BYTES * 1000
    for address, error, sentence in (
        ("/bomb", ValueError, "more than 100,000 bytes"),
        ("/truncated-gzip", TransientError, "ends too early"),
        ("/damaged", ValueError, "damaged gzip"),
        ("/twice", ValueError, "packed with gzip, gzip"),
    ):
        with pytest.raises(error, match=sentence):
            media.fetch(site.url + address)


def test_redirect_target_is_not_shown(site, media):
    """The target may be presigned."""
    site.redirect("/moved", f"{site.url.replace('127.0.0.1', 'localhost')}/404?signature=secret")
    media = quick()
    with pytest.raises(ValueError, match="/moved: localhost answers 404") as error:
        media.fetch(f"{site.url}/moved")
    assert "secret" not in str(error.value)
    media.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make a certificate")
def test_safe_transport_checks_certificates(tmp_path, monkeypatch):
    """It connects to a resolved address, but the certificate has to be that of the name."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with run_stub_server(tls=context) as site:
        site.responses["/a"] = StubResponse(body=IMAGE_BYTES)
        media = Media(allowed_hosts=AllowedHosts(("localhost", "127.0.0.1")), read_timeout=5)
        assert media.fetch(f"https://localhost:{site.port}/a") == IMAGE_BYTES
        with pytest.raises(TransientError, match="certificate"):
            media.fetch(f"https://127.0.0.1:{site.port}/a")
        media.close()
