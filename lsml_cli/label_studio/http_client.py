"""The HTTP client that the SDK sends through: it adds the key, waits for rate limits and bounds responses.

Whatever is no success is raised here, as httpx.HTTPStatusError. So the SDK never sees a status that it would retry, or
take for the end of a list (404).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import httpx
import orjson
from label_studio_sdk.core.http_client import get_keepalive_socket_options

from lsml_cli.errors import LsmlError, TransientError
from lsml_cli.label_studio.request_errors import (
    GATEWAY_STATUSES,
    RequestRejected,
    invalid_key_error,
    unexpected_response_error,
)
from lsml_cli.media.credentials import AuthorizationProvider, LabelStudioCredentials

CONNECT_TIMEOUT = 10.0  # seconds
MAX_RESPONSE_BYTES = 1 << 30  # of one response, decompressed; 1,000 tasks with brush strokes have a third of it
KEEPALIVE_IDLE = 30  # seconds of silence before a TCP keep-alive probe
MAX_RATE_LIMIT_WAIT = 900.0  # seconds in total that responses of status 429 may ask for


class LabelStudioHttpClient(httpx.Client):
    """An HTTP client for one Label Studio.

    The SDK would exchange a personal access token too, but below a sub-path at the wrong address, by the clock of this
    machine, and taking an access token for a personal one. `AuthorizationProvider`, which media need anyway, does not.
    """

    def __init__(self, credentials: LabelStudioCredentials, timeout: float) -> None:
        # A request may take an hour without a byte on the wire; keep-alive probes notice a connection that died.
        socket_options = get_keepalive_socket_options(KEEPALIVE_IDLE)
        transport = httpx.HTTPTransport(proxy=_environment_proxy(credentials), socket_options=socket_options)
        # Redirects are not followed: a POST would arrive as a GET, and the key at another host.
        super().__init__(transport=transport, timeout=timeout)
        self._address = credentials.url
        self._authorization = AuthorizationProvider(credentials, self._exchange_token)

    def send(self, request: httpx.Request, *, stream: bool = False, **options: Any) -> httpx.Response:
        """Send a request, again after a rate limit, and once more with a new access token.

        Args:
            request: What to send.
            stream: Leave the body of a success to be read, in whatever size it has.
            options: See httpx.

        Raises:
            httpx.HTTPStatusError: The status is no success.
            LsmlError: The key cannot be used, the response is too large, or the rate limit is too low.
        """
        request.extensions["timeout"]["connect"] = CONNECT_TIMEOUT
        is_token_renewed = False
        waited = 0.0  # seconds
        while True:
            header = self._authorization_header()
            request.headers["Authorization"] = header
            response = super().send(request, stream=True, **options)
            if stream and response.is_success:
                return response
            response = self._read(response)
            if response.is_success:
                return response
            if response.status_code == 401 and not is_token_renewed and self._authorization.invalidate(header):
                is_token_renewed = True
                continue
            if response.status_code != 429:
                raise httpx.HTTPStatusError("no success", request=request, response=response)
            pause = _retry_delay(response.headers.get("Retry-After"), waited)
            if waited + pause > MAX_RATE_LIMIT_WAIT:
                raise RequestRejected(
                    f"Label Studio at {self._address} accepts no requests (429) for {pause:,.0f} more seconds.",
                    "Try again later; the last one had no effect.",
                    429,
                )
            waited += pause
            time.sleep(pause)

    def read_bounded(self, chunks: Iterable[bytes]) -> bytes:
        """Join the chunks of a body, of which a hostile server could make no end; raise LsmlError if it is too long."""
        body = bytearray()
        for chunk in chunks:
            body += chunk
            if len(body) > MAX_RESPONSE_BYTES:
                raise LsmlError(
                    f"The server at {self._address} sent a response of more than {MAX_RESPONSE_BYTES:,} bytes.",
                    "Is that the address of Label Studio? If so, ask for less at a time: --view, --only or --fields.",
                )
        return bytes(body)

    def _read(self, response: httpx.Response) -> httpx.Response:
        """Return a streamed response with its decompressed body."""
        try:
            body = self.read_bounded(response.iter_bytes())
        finally:
            response.close()
        names = ("Location", "Retry-After")  # the others describe the body as it was sent
        headers = {name: response.headers[name] for name in names if name in response.headers}
        return httpx.Response(response.status_code, headers=headers, content=body, request=response.request)

    def _authorization_header(self) -> str:
        try:
            return self._authorization.authorization_header() or ""
        except ValueError as error:
            raise invalid_key_error(self._address) from error

    def _exchange_token(self, url: str, body: Mapping[str, str]) -> Any:
        """Exchange a personal access token for an access token; see `AuthorizationProvider`."""
        response = self._read(super().send(self.build_request("POST", url, json=body), stream=True))
        if response.status_code in GATEWAY_STATUSES or response.status_code == 429:
            raise TransientError(
                f"Label Studio at {self._address} answered {response.status_code}.", "Try again later."
            )
        if not response.is_success:
            raise ValueError(f"answered {response.status_code}")
        try:
            return orjson.loads(response.content)
        except orjson.JSONDecodeError:
            raise unexpected_response_error(self._address, "an access token") from None


def _environment_proxy(credentials: LabelStudioCredentials) -> str | None:
    """Return the proxy of the environment, which httpx ignores for a client with its own transport."""
    from urllib.request import getproxies, proxy_bypass

    return None if proxy_bypass(credentials.host_and_port[0]) else getproxies().get(credentials.url.partition(":")[0])


def _retry_delay(header: str | None, total_waited: float) -> float:
    """Return the seconds to wait: what the server says, else as long as it has been waited already."""
    try:
        seconds = float(header or "")
    except ValueError:
        seconds = math.nan
    return max(0.1, seconds) if math.isfinite(seconds) else max(1.0, total_waited)
