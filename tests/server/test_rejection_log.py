"""What is logged about rejected requests: short printable lines, few of a kind."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI, Request

from lsml_cli.errors import LabelMismatch
from lsml_cli.server.error_responses import install_error_handlers
from lsml_cli.server.log_setup import MAX_MESSAGE_CHARACTERS, InvalidHttpFilter, PrintableFormatter
from lsml_cli.server.rejection_log import MAX_CHARACTERS, MAX_LINES, RejectionLog, shorten_line
from lsml_cli.server.requests import parse_event


def run_in_loop(scenario: Callable[[], None], seconds: float = 0.0) -> None:
    async def main() -> None:
        scenario()
        await asyncio.sleep(seconds)

    asyncio.run(main())


def test_lines_of_one_kind_are_limited_and_the_rest_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    rejections = RejectionLog(interval=0.05)

    def scenario() -> None:
        for number in range(1000):
            rejections.warning("/webhook", f"reason {number}.")
        rejections.warning("/train", "another reason.")

    run_in_loop(scenario, 0.2)
    logged = caplog.messages
    assert logged[:MAX_LINES] == [f"/webhook: reason {number}." for number in range(MAX_LINES)]
    assert logged[MAX_LINES:] == [
        "/webhook: more rejected requests are counted, not logged, for a minute.",
        "/train: another reason.",
        f"/webhook: {1000 - MAX_LINES} more requests were rejected.",
    ]


def test_lines_are_logged_again_after_the_interval(caplog: pytest.LogCaptureFixture) -> None:
    rejections = RejectionLog(interval=0.02)

    async def main() -> None:
        for number in (1, 2):
            for _ in range(2 * MAX_LINES):
                rejections.warning("/webhook", f"round {number}.")
            await asyncio.sleep(0.1)

    asyncio.run(main())
    assert [caplog.messages.count(f"/webhook: round {number}.") for number in (1, 2)] == [MAX_LINES] * 2


@pytest.mark.parametrize("text", ["", "short", "x" * 10_000_000, "\x1b[31m\u202e\n" * 5000, "\ud800" * 301, "é" * 300])
def test_line_is_short_and_printable(text: str) -> None:
    line = shorten_line(text)
    assert len(line) <= MAX_CHARACTERS
    assert "\n" not in line
    assert "\x1b" not in line
    assert line == text or f"({len(text):,} characters)" in line


def test_message_that_quotes_megabytes_is_cut() -> None:
    record = logging.LogRecord("lsml.serve", logging.INFO, "", 0, "Project 3: %s", ("label\n" * 1_000_000,), None)
    line = PrintableFormatter("lsml: %(message)s").format(record)
    assert line.startswith("lsml: Project 3: label\\nlabel")
    assert len(line) <= MAX_MESSAGE_CHARACTERS
    assert line.isprintable()


def test_malformed_webhooks_write_bounded_lines(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    install_error_handlers(app)

    @app.post("/webhook")
    async def webhook(request: Request) -> None:
        parse_event(await request.body())

    @app.post("/setup")
    async def setup() -> None:
        raise LabelMismatch("The label config has \x1b[2J" + "label, " * 100_000)

    huge_number = b'{"action": "x\\ud800", "project": %s}' % (b"9" * 4000)
    bodies = [huge_number, b"\xff" * 1000, json.dumps({"action": [1] * 1000}).encode()] * 100

    async def send_all() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://lsml") as client:
            for body in bodies:
                assert (await client.post("/webhook", content=body)).status_code == 400
            assert (await client.post("/setup")).status_code == 400

    caplog.clear()
    with caplog.at_level(logging.WARNING):
        asyncio.run(send_all())
    assert len(caplog.messages) == MAX_LINES + 2
    assert max(map(len, caplog.messages[:-1])) <= MAX_CHARACTERS
    assert len(caplog.messages[-1]) <= 2000
    assert all(message.isprintable() for message in caplog.messages)


def test_warnings_about_invalid_http_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tests.uvicorn")
    invalid_http = InvalidHttpFilter(RejectionLog())
    logger.addFilter(invalid_http)

    def scenario() -> None:
        for _ in range(1000):
            logger.warning("Invalid HTTP request received.")
        logger.error("Exception in ASGI application")

    try:
        run_in_loop(scenario)
    finally:
        logger.removeFilter(invalid_http)
    assert caplog.messages.count("Invalid HTTP request received.") == MAX_LINES
    assert caplog.messages[-1] == "Exception in ASGI application"
