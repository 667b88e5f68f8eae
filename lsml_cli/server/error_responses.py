"""Map exceptions to HTTP error responses, and log them: Label Studio does not show error bodies to its users."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from lsml_cli.errors import LsmlError
from lsml_cli.server.request_body import BodyTooLarge, BodyTooSlow
from lsml_cli.server.requests import BadRequest
from lsml_cli.server.service import ClientDisconnected

CLIENT_CLOSED_REQUEST = 499  # nginx's code for it; no client receives this response

# Without it the server would read a rejected body to its end, which may never come.
_CLOSE_CONNECTION = {"Connection": "close"}

log = logging.getLogger("lsml.serve")


def error_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return `{"detail": detail}` with a status; lone surrogates in quoted input become question marks."""
    return JSONResponse({"detail": detail.encode("utf-8", "replace").decode()}, status, headers)


def install_error_handlers(app: FastAPI) -> None:
    """Register a handler for every exception that a route may raise."""
    for exception_type, handler in _ERROR_HANDLERS.items():
        app.add_exception_handler(exception_type, handler)


def _path_for_log(request: Request) -> str:
    """Return the requested path without the secret path."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


async def _handle_bad_request(request: Request, error: Exception) -> Response:
    log.warning("%s: %s.", _path_for_log(request), error)
    return error_response(400, f"{error}.")


async def _handle_lsml_error(request: Request, error: Exception) -> Response:
    """Answer with the message: the model cannot be loaded, or cannot fill the label config."""
    log.warning("%s: %s", _path_for_log(request), error)
    return error_response(400, str(error))


async def _handle_body_too_large(request: Request, error: Exception) -> Response:
    log.warning("%s: the body has more bytes than --max-body allows.", _path_for_log(request))
    return error_response(413, "The body has more bytes than this server accepts.", _CLOSE_CONNECTION)


async def _handle_body_too_slow(request: Request, error: Exception) -> Response:
    log.warning("%s: timed out while reading the body.", _path_for_log(request))
    return error_response(408, "Timed out while reading the body.", _CLOSE_CONNECTION)


async def _handle_client_disconnected(request: Request, error: Exception) -> Response:
    log.info("%s: the client disconnected before the answer was ready.", _path_for_log(request))
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _handle_unexpected_error(request: Request, error: Exception) -> Response:
    """Answer 500; Starlette raises the error again, and `AuthMiddleware` logs it."""
    return error_response(500, "This is a bug in lsml; see the server's log.")


_ERROR_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    BadRequest: _handle_bad_request,
    LsmlError: _handle_lsml_error,
    BodyTooLarge: _handle_body_too_large,
    BodyTooSlow: _handle_body_too_slow,
    ClientDisconnected: _handle_client_disconnected,
    Exception: _handle_unexpected_error,
}
