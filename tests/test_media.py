"""Values that point to media: files, data: URIs, and servers that behave in every way servers do."""

from __future__ import annotations

import base64
import pickle
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lsml_cli import media as media_module
from lsml_cli.errors import TransientError
from lsml_cli.media import Media


def test_paths_below_the_root(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a b.bin").write_bytes(b"bytes")
    media = Media(tmp_path)
    assert media.fetch("in/a b.bin") == b"bytes"
    assert media.fetch(str(tmp_path / "in" / "a b.bin")) == b"bytes"
    assert media.problem("in/a b.bin") is None
    with pytest.raises(FileNotFoundError):
        media.fetch("in/c.bin")
    assert media.problem("in/c.bin") == f"there is no file {tmp_path / 'in' / 'c.bin'}"


@pytest.mark.parametrize("value", ["../secret", "/etc/passwd", "in/../../secret", "link"])
def test_a_path_never_leaves_the_root(tmp_path, value):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("secret")
    (root / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="lies outside"):
        Media(root).fetch(value)
    assert "lies outside" in str(Media(root).problem(value))


@pytest.mark.parametrize("value", ["s3://bucket/a.jpg", "file:///etc/passwd", "ftp://example.com/a"])
def test_other_schemes_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match="neither a file on this machine nor"):
        Media(tmp_path).fetch(value)


def test_data_uris(tmp_path):
    media = Media(tmp_path)
    assert media.fetch("data:text/plain;base64," + base64.b64encode(b"hi").decode()) == b"hi"
    assert media.fetch("data:,h%20i") == b"h i"
    for wrong in ("data:text/plain", "data:;base64,***"):
        with pytest.raises(ValueError, match="data: URI"):
            media.fetch(wrong)
        assert "data: URI" in str(media.problem(wrong))


class Pictures(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        answers = {"/good": 200, "/missing": 404, "/secret": 401, "/broken": 500, "/busy": 429}
        if self.path in answers:
            self.send_response(answers[self.path])
            self.send_header("Content-Length", "7")
            self.end_headers()
            self.wfile.write(b"picture")
        elif self.path in ("/moved", "/loop"):
            self.send_response(302)
            self.send_header("Location", "/good" if self.path == "/moved" else "/loop")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", "1000000000")
            self.end_headers()
            self.misbehave()
        self.close_connection = self.path not in (*answers, "/moved", "/loop")

    def misbehave(self) -> None:
        self.wfile.write(b"part of it")
        if self.path == "/silent":
            time.sleep(1)
        try:
            while self.path == "/endless":
                self.wfile.write(b"x" * 10_000)
            while self.path == "/slow":
                self.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:  # the other side had enough
            pass

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what these tests are about."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with Server(("127.0.0.1", 0), Pictures) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


@pytest.fixture
def media(tmp_path, monkeypatch):
    monkeypatch.setattr(media_module, "PATIENCE", 0.5)
    monkeypatch.setattr(media_module, "SLOWEST_FILE", 1.0)
    monkeypatch.setattr(media_module, "LARGEST_FILE", 100_000)
    media = Media(tmp_path)
    yield media
    media.close()


def test_a_file_from_a_server(server, media):
    for address in ("/good", "/moved"):
        assert media.fetch(server + address) == b"picture"
        assert media.problem(server + address, ask_remote=True) is None
    copy = pickle.loads(pickle.dumps(media))
    assert copy.fetch(server + "/good") == b"picture"
    copy.close()


@pytest.mark.parametrize(
    ("address", "error", "sentence"),
    [
        ("/missing", ValueError, "the server answers 404 Not Found"),
        ("/secret", ValueError, "the server answers 401 Unauthorized"),
        ("/loop", ValueError, "redirect"),
        ("/endless", ValueError, "more than 100,000 bytes"),
        ("/broken", TransientError, "the server answers 500"),
        ("/busy", TransientError, "the server answers 429"),
        ("/truncated", TransientError, "/truncated: "),
        ("/silent", TransientError, "/silent: "),
        ("/slow", TransientError, "was not there after 1 s"),
    ],
)
def test_servers_that_do_not_deliver(server, media, address, error, sentence):
    with pytest.raises(error, match=sentence):
        media.fetch(server + address)


def test_asking_without_fetching(server, media):
    assert media.problem(server + "/missing") is None
    assert "404" in str(media.problem(server + "/missing", ask_remote=True))
    assert "500" in str(media.problem(server + "/broken", ask_remote=True))
    assert media.problem(server + "/endless", ask_remote=True) is None


def test_nobody_there(media):
    with pytest.raises(TransientError, match=r"http://127\.0\.0\.1:9/"):
        media.fetch("http://127.0.0.1:9/a.png")
    with pytest.raises(ValueError, match="http://"):
        media.fetch("http://")
