"""Read request bodies within limits on size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from fastapi import Request

from lsml_cli.server.service import ClientDisconnected

BODY_IDLE_TIMEOUT = 30.0  # seconds without a byte of an unfinished body
BODY_TIMEOUT = 300.0  # seconds for a whole body
DRAIN_TIMEOUT = 2.0  # seconds spent on reading the rest of a rejected body


class BodyTooLarge(Exception):
    """The body exceeds the size limit."""


class BodyTooSlow(Exception):
    """The body did not arrive in time."""


@dataclass(frozen=True)
class BodyReader:
    """Read whole request bodies of at most `max_bytes` bytes."""

    max_bytes: int

    async def read(self, request: Request) -> bytes:
        """Return the body of a request.

        Raises:
            BodyTooLarge: The body has, or announces, more than `max_bytes`.
            BodyTooSlow: It stalled for `BODY_IDLE_TIMEOUT` or took longer than `BODY_TIMEOUT`.
            ClientDisconnected: The client went away.
        """
        if (length := request.headers.get("content-length", "0")).isdigit() and int(length) > self.max_bytes:
            await _drain_body(request)
            raise BodyTooLarge
        body = bytearray()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + BODY_TIMEOUT
        while True:
            try:
                async with asyncio.timeout_at(min(deadline, loop.time() + BODY_IDLE_TIMEOUT)):
                    message = await request.receive()
            except TimeoutError:
                raise BodyTooSlow from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            body += message.get("body", b"")
            if len(body) > self.max_bytes:
                if message.get("more_body"):
                    await _drain_body(request)
                raise BodyTooLarge
            if not message.get("more_body"):
                return bytes(body)


def disconnect_waiter(request: Request) -> Callable[[], Awaitable[None]]:
    """Return a coroutine function that returns once the client has disconnected; call it after reading the body."""

    async def wait_for_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return wait_for_disconnect


async def _drain_body(request: Request) -> None:
    """Discard more of the body for a moment.

    A client that is still sending when the connection is closed does not see the error response.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_TIMEOUT):
            while (message := await request.receive())["type"] != "http.disconnect" and message.get("more_body"):
                pass
