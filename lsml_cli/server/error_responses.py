"""Map exceptions to HTTP error responses, and log them: Label Studio does not show error bodies to its users."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from lsml_cli.errors import LsmlError
from lsml_cli.server.rejection_log import MAX_MISMATCH_CHARACTERS, RejectionLog
from lsml_cli.server.request_body import BodyTooLarge, BodyTooSlow
from lsml_cli.server.requests import BadRequest
from lsml_cli.server.service import ClientDisconnected

CLIENT_CLOSED_REQUEST = 499  # nginx's code for it; no client receives this response

# Without it the server would read a rejected body to its end, which may never come.
_CLOSE_CONNECTION = {"Connection": "close"}


def error_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return `{"detail": detail}` with a status; lone surrogates in quoted input become question marks."""
    return JSONResponse({"detail": detail.encode("utf-8", "replace").decode()}, status, headers)


def install_error_handlers(app: FastAPI) -> None:
    """Register a handler for every exception that a route may raise."""
    for exception_type, handler in _ErrorHandlers(RejectionLog()).by_type().items():
        app.add_exception_handler(exception_type, handler)


def _path_for_log(request: Request) -> str:
    """Return the requested path without the secret path."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


class _ErrorHandlers:
    """Answer requests whose route raised an exception. Only routes raise, so the paths in the log are theirs."""

    def __init__(self, rejections: RejectionLog) -> None:
        self._rejections = rejections

    def by_type(self) -> dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]:
        return {
            BadRequest: self._handle_bad_request,
            LsmlError: self._handle_lsml_error,
            BodyTooLarge: self._handle_body_too_large,
            BodyTooSlow: self._handle_body_too_slow,
            ClientDisconnected: self._handle_client_disconnected,
            Exception: self._handle_unexpected_error,
        }

    async def _handle_bad_request(self, request: Request, error: Exception) -> Response:
        self._rejections.warning(_path_for_log(request), f"{error}.")
        return error_response(400, f"{error}.")

    async def _handle_lsml_error(self, request: Request, error: Exception) -> Response:
        """Answer with the message: the model cannot be loaded, or cannot fill the label config."""
        self._rejections.warning(_path_for_log(request), str(error), MAX_MISMATCH_CHARACTERS)
        return error_response(400, str(error))

    async def _handle_body_too_large(self, request: Request, error: Exception) -> Response:
        self._rejections.warning(_path_for_log(request), "the body has more bytes than --max-body allows.")
        return error_response(413, "The body has more bytes than this server accepts.", _CLOSE_CONNECTION)

    async def _handle_body_too_slow(self, request: Request, error: Exception) -> Response:
        self._rejections.warning(_path_for_log(request), "timed out while reading the body.")
        return error_response(408, "Timed out while reading the body.", _CLOSE_CONNECTION)

    async def _handle_client_disconnected(self, request: Request, error: Exception) -> Response:
        self._rejections.warning(_path_for_log(request), "the client disconnected before the answer was ready.")
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    async def _handle_unexpected_error(self, request: Request, error: Exception) -> Response:
        """Answer 500; Starlette raises the error again, and `AuthMiddleware` logs it."""
        return error_response(500, "This is a bug in lsml; see the server's log.")
