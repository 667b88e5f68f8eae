"""/docs: complete without a network."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Iterator
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.server.docs_page import list_endpoints, render_docs
from tests.helpers.cli import ROOT
from tests.helpers.serve_process import DIRECT_OPENER, Server, ServerFactory

MODELS = ROOT / "tests" / "helpers" / "models.py"
LOADING_ATTRIBUTES = {"src", "srcset", "data", "poster", "action", "background"}


class PageParser(HTMLParser):
    """Collect what a page loads, where it links to, and its style."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.style = ""
        self.tag = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tag = tag
        for name, value in attrs:
            if name in LOADING_ATTRIBUTES or (tag == "link" and name == "href"):
                self.loaded.append(value or "")
            if tag == "a" and name == "href":
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            assert name != "style"
            assert not name.startswith("on")

    def handle_data(self, data: str) -> None:
        if self.tag == "style":
            self.style += data
            self.tag = ""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    factory = ServerFactory(tmp_path_factory.mktemp("docs"))
    yield factory("--model", f"{MODELS}:Words")
    factory.close()


def get_page(server: Server) -> tuple[str, str]:
    with DIRECT_OPENER.open(f"{server.url}/docs") as response:
        return response.read().decode(), response.headers["Content-Security-Policy"]


def test_page_loads_nothing_and_shows_every_route(server: Server) -> None:
    page, policy = get_page(server)
    parser = PageParser()
    parser.feed(page)
    assert parser.loaded == []
    assert "<script" not in page
    assert "url(" not in parser.style
    assert "@import" not in parser.style
    assert all(link == "openapi.json" or link.startswith("#") for link in parser.links)
    document = server.request_ok("GET", "/openapi.json")
    for path, operations in document["paths"].items():
        for method in operations:
            assert f"{method.upper()}-{path}" in parser.ids
            assert f"#{method.upper()}-{path}" in parser.links
    assert {"/health", "/setup", "/predict", "/webhook", "/train", "/versions", "/metrics"} <= set(document["paths"])
    assert policy.startswith("default-src 'none'; ")
    assert base64.b64encode(sha256(parser.style.encode()).digest()).decode() in policy
    assert server.request("GET", "/redoc")[0] == 404


def test_examples_can_be_sent_as_they_are(server: Server) -> None:
    document: Any = server.request_ok("GET", "/openapi.json")
    for endpoint in list_endpoints(document, "", needs_password=False):
        words = shlex.split(endpoint.curl)
        path = next(word for word in words if word.startswith("/"))
        body = json.loads(words[words.index("-d") + 1]) if "-d" in words else None
        status, answer = server.request(endpoint.method, path, body)
        if endpoint.path in ("/train", "/webhook"):  # training is off
            assert status in (200, 409), answer
        elif endpoint.path in ("/predict", "/setup"):  # this model may not fill the label config of the example
            assert status in (200, 400), answer
        else:
            assert status == 200, answer


def test_untrusted_host_is_escaped_and_password_is_named(server: Server) -> None:
    document: Any = server.request_ok("GET", "/openapi.json")
    page, _ = render_docs(document, "http://x/<script>alert(1)</script>'", needs_password=True)
    assert "<script" not in page
    assert "-u USER:PASS" in page


def test_templates_are_part_of_the_package() -> None:
    folder = Path(render_docs.__code__.co_filename).parent / "templates"
    assert {path.name for path in folder.iterdir()} == {"docs.html.j2", "docs.css"}
