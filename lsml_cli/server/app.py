"""Label Studio's ML-backend protocol over HTTP, as Label Studio 1.23 speaks it.

GET  /health, /      is it there
POST /setup          a project introduces itself; the answer names the version
POST /predict        tasks in, as many results out, in order
POST /webhook        START_TRAINING, and what happened to annotations
GET  /versions       what answers
GET  /metrics        for Prometheus
POST /train, GET /is_training   what older Label Studios call
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp

from lsml_cli._version import __version__
from lsml_cli.errors import LsmlError
from lsml_cli.server import schemas
from lsml_cli.server.auth import AuthConfig, AuthMiddleware
from lsml_cli.server.requests import (
    START_TRAINING,
    BadRequest,
    parse_event,
    parse_json_object,
    parse_label_config_xml,
    parse_predict_request,
    parse_project_id,
)
from lsml_cli.server.service import ClientDisconnected, Service
from lsml_cli.server.train_scheduler import TrainScheduler

BODY_IDLE_TIMEOUT = 30.0  # seconds without a byte of a body that was begun
BODY_TIMEOUT = 300.0  # seconds for a whole body
DRAIN_TIMEOUT = 2.0  # seconds for the rest of one that is refused
CLIENT_CLOSED_REQUEST = 499  # as nginx logs it; nobody reads that answer

log = logging.getLogger("lsml.serve")


class BodyTooLarge(Exception):
    """A body with more bytes than are allowed."""


class BodyTooSlow(Exception):
    """A body that stopped coming."""


def make_app(
    service: Service,
    train_scheduler: TrainScheduler | None,
    *,
    auth: AuthConfig | None = None,
    max_body_bytes: int = 256 << 20,
    verbose: bool = False,
) -> ASGIApp:
    """The ASGI app. `trainer` is None where training is off; `most_bytes` of one body."""
    auth = auth or AuthConfig()
    app = FastAPI(
        title="lsml",
        version=__version__,
        summary="A model behind Label Studio's ML-backend protocol.",
        # Whoever reaches the server below a path, through a proxy or a secret one, finds the routes relative to it.
        servers=[{"url": auth.secret_path or "/"}],
        root_path_in_servers=False,
    )

    async def body_of(request: Request) -> bytes:
        """Raises TooLarge, TooSlow, HungUp."""
        if (length := request.headers.get("content-length", "0")).isdigit() and int(length) > max_body_bytes:
            await _drain_body(request)
            raise BodyTooLarge
        body = bytearray()
        ends = asyncio.get_running_loop().time() + BODY_TIMEOUT
        while True:
            try:
                async with asyncio.timeout_at(min(ends, asyncio.get_running_loop().time() + BODY_IDLE_TIMEOUT)):
                    message = await request.receive()
            except TimeoutError:
                raise BodyTooSlow from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            body += message.get("body", b"")
            if len(body) > max_body_bytes:
                if message.get("more_body"):
                    await _drain_body(request)
                raise BodyTooLarge
            if not message.get("more_body"):
                return bytes(body)

    async def health() -> dict[str, Any]:
        started = service.model_pool.default_spec
        return {
            "status": "UP",
            "model_class": started.model_class().__name__,
            "model_version": service.model_pool.version_for(None),
            "lsml": __version__,
        }

    app.get("/health", responses=schemas.RESPONSES["health"])(health)
    app.get("/", include_in_schema=False)(health)

    @app.post("/setup", openapi_extra=schemas.REQUEST_BODIES["setup"], responses=schemas.RESPONSES["setup"])
    async def setup(request: Request) -> dict[str, Any]:
        """A project introduces itself. The credentials that come along are not used."""
        found = parse_json_object(await body_of(request))
        project = parse_project_id(found.get("project"))
        return {"model_version": await service.setup(project, parse_label_config_xml(found, "schema"))}

    @app.post("/predict", openapi_extra=schemas.REQUEST_BODIES["predict"], responses=schemas.RESPONSES["predict"])
    async def predict(request: Request) -> Response:
        """One result for each task, in order; `{}` for a task that has none."""
        wanted, tasks = parse_predict_request(await body_of(request), service.limits.max_tasks)
        answer = await service.predict(wanted, tasks, request.state.started_at, _disconnect_waiter(request))
        return Response(answer.to_bytes(), media_type="application/json")

    @app.post("/webhook", openapi_extra=schemas.REQUEST_BODIES["webhook"], responses=schemas.RESPONSES["webhook"])
    async def webhook(request: Request) -> JSONResponse:
        """START_TRAINING trains the project's model in the background; annotation events count for `--train-every`."""
        event = parse_event(await body_of(request))
        if event.action == START_TRAINING:
            if not request.state.credentials:
                return _error_response(401, "START_TRAINING needs user and password, on the secret path too.")
            return train_now(event.project, START_TRAINING)
        job = None
        if train_scheduler is not None and event.project is not None and event.annotation_count:
            job = train_scheduler.count_annotations(event.project, event.annotation_count)
        return JSONResponse({"status": "ok"} | ({"job": job.id} if job else {}))

    @app.post("/train", openapi_extra=schemas.REQUEST_BODIES["train"], responses=schemas.RESPONSES["train"])
    async def train(request: Request) -> JSONResponse:
        """The same as START_TRAINING; the annotations that older Label Studios send along are not used."""
        return train_now(parse_project_id(parse_json_object(await body_of(request)).get("project")), "/train")

    def train_now(project: int | None, why: str) -> JSONResponse:
        if train_scheduler is None:
            sentence = "Training is off: lsml serve needs --versions DIR and --label-studio-url URL for it."
            log.warning("%s was asked for. %s", why, sentence)
            return _error_response(409, sentence)
        if project is None:
            raise BadRequest('"project" is missing')
        return JSONResponse({"status": "ok", "job": train_scheduler.request_training(project, why).id}, 201)

    @app.get("/is_training", responses=schemas.RESPONSES["is_training"])
    async def is_training(project: str | None = None) -> dict[str, bool]:
        number = parse_project_id(project)
        return {
            "is_training": train_scheduler is not None and number is not None and train_scheduler.is_training(number)
        }

    @app.get("/versions", responses=schemas.RESPONSES["versions"])
    async def versions() -> dict[str, Any]:
        """What answers: the started model first, then each project's own version that is loaded."""
        found = service.model_pool.loaded_versions()
        return {"versions": list(dict.fromkeys(found.values())), "projects": found}

    @app.get("/metrics", responses=schemas.RESPONSES["metrics"])
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for kind, handler in _ERROR_HANDLERS.items():
        app.add_exception_handler(kind, handler)
    routes = [route.path for route in app.routes if hasattr(route, "path")]
    return AuthMiddleware(app, auth, service.metrics, routes, verbose)


async def _drain_body(request: Request) -> None:
    """Read on for a moment and forget it: who is still sending when the connection is closed sees no answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_TIMEOUT):
            while (message := await request.receive())["type"] != "http.disconnect" and message.get("more_body"):
                pass


def _disconnect_waiter(request: Request) -> Callable[[], Awaitable[None]]:
    async def until_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return until_gone


_CLOSE_CONNECTION = {"Connection": "close"}  # or the rest of the body would be read to its end, if it has one


def _error_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """What it quotes of a request may hold halves of characters."""
    return JSONResponse({"detail": detail.encode("utf-8", "replace").decode()}, status, headers)


def _path_for_log(request: Request) -> str:
    """What was asked for, for the log: without the secret path."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


async def _handle_bad_request(request: Request, error: Exception) -> Response:
    """Logged, because Label Studio shows nobody the body."""
    log.warning("%s: %s.", _path_for_log(request), error)
    return _error_response(400, f"{error}.")


async def _handle_lsml_error(request: Request, error: Exception) -> Response:
    """What is wrong with a model or a label config; logged, because Label Studio shows nobody the body."""
    log.warning("%s: %s", _path_for_log(request), error)
    return _error_response(400, str(error))


async def _handle_body_too_large(request: Request, error: Exception) -> Response:
    log.warning("%s: the body has more bytes than --max-body allows.", _path_for_log(request))
    return _error_response(413, "The body has more bytes than this server accepts.", _CLOSE_CONNECTION)


async def _handle_body_too_slow(request: Request, error: Exception) -> Response:
    log.warning("%s: the body came too slowly.", _path_for_log(request))
    return _error_response(408, "The body came too slowly.", _CLOSE_CONNECTION)


async def _handle_client_disconnected(request: Request, error: Exception) -> Response:
    log.info("%s: the client hung up before the answer was there.", _path_for_log(request))
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _handle_unexpected_error(request: Request, error: Exception) -> Response:
    """The error goes on from here, to the guard, which logs it."""
    return _error_response(500, "This is a bug in lsml; its log says more.")


_ERROR_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    BadRequest: _handle_bad_request,
    LsmlError: _handle_lsml_error,
    BodyTooLarge: _handle_body_too_large,
    BodyTooSlow: _handle_body_too_slow,
    ClientDisconnected: _handle_client_disconnected,
    Exception: _handle_unexpected_error,
}
