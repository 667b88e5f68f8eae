"""A reverse proxy that serves another server below a path, as nginx does for a Label Studio at https://host/ls."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from urllib.parse import urlsplit

from tests.helpers.stub_http import StubHandler, run_server

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}
TIMEOUT = 600  # seconds that the server behind may take


class ReverseProxy:
    """Attributes: url, with the path; outside_paths: paths of requests that were not below it."""

    def __init__(self, root: str, upstream: str, prefix: str) -> None:
        self.url = root + prefix
        self.upstream = urlsplit(upstream).netloc
        self.prefix = prefix
        self.outside_paths: list[str] = []


class _ProxyHandler(StubHandler[ReverseProxy]):
    def handle_request(self) -> None:
        body = self.read_body()
        prefix = self.state.prefix
        if not self.path.startswith(f"{prefix}/"):
            self.state.outside_paths.append(self.path)
            return self.send_body(404, b"<html>no such page</html>")
        upstream = http.client.HTTPConnection(self.state.upstream, timeout=TIMEOUT)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            upstream.request(self.command, self.path.removeprefix(prefix), body or None, headers)
            response = upstream.getresponse()
            kept = {name: value for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP}
            self.send_body(response.status, response.read(), kept)
        finally:
            upstream.close()


@contextmanager
def run_reverse_proxy(upstream: str, prefix: str) -> Iterator[ReverseProxy]:
    """Serve the server at the URL `upstream` below the path `prefix` of another port."""
    with run_server(_ProxyHandler, partial(ReverseProxy, upstream=upstream, prefix=prefix)) as proxy:
        yield proxy
