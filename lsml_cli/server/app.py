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
from lsml_cli.server.auth import Access, Guard
from lsml_cli.server.requests import (
    START_TRAINING,
    BadRequest,
    labelling_xml,
    parse_event,
    parse_object,
    parse_predict,
    parse_project,
)
from lsml_cli.server.service import HungUp, Service
from lsml_cli.server.train_scheduler import Trainer

SILENCE = 30.0  # seconds without a byte of a body that was begun
SLOWEST = 300.0  # seconds for a whole body
LINGERING = 2.0  # seconds for the rest of one that is refused
HUNG_UP = 499  # as nginx logs it; nobody reads that answer

log = logging.getLogger("lsml.serve")


class TooLarge(Exception):
    """A body with more bytes than are allowed."""


class TooSlow(Exception):
    """A body that stopped coming."""


def make_app(
    service: Service,
    trainer: Trainer | None,
    *,
    access: Access | None = None,
    most_bytes: int = 256 << 20,
    verbose: bool = False,
) -> ASGIApp:
    """The ASGI app. `trainer` is None where training is off; `most_bytes` of one body."""
    access = access or Access()
    app = FastAPI(
        title="lsml",
        version=__version__,
        summary="A model behind Label Studio's ML-backend protocol.",
        # Whoever reaches the server below a path, through a proxy or a secret one, finds the routes relative to it.
        servers=[{"url": access.secret_path or "/"}],
        root_path_in_servers=False,
    )

    async def body_of(request: Request) -> bytes:
        """Raises TooLarge, TooSlow, HungUp."""
        if (length := request.headers.get("content-length", "0")).isdigit() and int(length) > most_bytes:
            await _let_finish(request)
            raise TooLarge
        body = bytearray()
        ends = asyncio.get_running_loop().time() + SLOWEST
        while True:
            try:
                async with asyncio.timeout_at(min(ends, asyncio.get_running_loop().time() + SILENCE)):
                    message = await request.receive()
            except TimeoutError:
                raise TooSlow from None
            if message["type"] == "http.disconnect":
                raise HungUp
            body += message.get("body", b"")
            if len(body) > most_bytes:
                if message.get("more_body"):
                    await _let_finish(request)
                raise TooLarge
            if not message.get("more_body"):
                return bytes(body)

    async def health() -> dict[str, Any]:
        started = service.serving.started
        return {
            "status": "UP",
            "model_class": started.family().__name__,
            "model_version": service.serving.version_for(None),
            "lsml": __version__,
        }

    app.get("/health", responses=schemas.ANSWERS["health"])(health)
    app.get("/", include_in_schema=False)(health)

    @app.post("/setup", openapi_extra=schemas.BODIES["setup"], responses=schemas.ANSWERS["setup"])
    async def setup(request: Request) -> dict[str, Any]:
        """A project introduces itself. The credentials that come along are not used."""
        found = parse_object(await body_of(request))
        project = parse_project(found.get("project"))
        return {"model_version": await service.setup(project, labelling_xml(found, "schema"))}

    @app.post("/predict", openapi_extra=schemas.BODIES["predict"], responses=schemas.ANSWERS["predict"])
    async def predict(request: Request) -> Response:
        """One result for each task, in order; `{}` for a task that has none."""
        wanted, tasks = parse_predict(await body_of(request), service.limits.most_tasks)
        answer = await service.predict(wanted, tasks, request.state.begun, _disconnected(request))
        return Response(answer.body(), media_type="application/json")

    @app.post("/webhook", openapi_extra=schemas.BODIES["webhook"], responses=schemas.ANSWERS["webhook"])
    async def webhook(request: Request) -> JSONResponse:
        """START_TRAINING trains the project's model in the background; annotation events count for `--train-every`."""
        event = parse_event(await body_of(request))
        if event.action == START_TRAINING:
            if not request.state.credentials:
                return _refusal(401, "START_TRAINING needs user and password, on the secret path too.")
            return train_now(event.project, START_TRAINING)
        job = None
        if trainer is not None and event.project is not None and event.annotations:
            job = trainer.annotations_changed(event.project, event.annotations)
        return JSONResponse({"status": "ok"} | ({"job": job.id} if job else {}))

    @app.post("/train", openapi_extra=schemas.BODIES["train"], responses=schemas.ANSWERS["train"])
    async def train(request: Request) -> JSONResponse:
        """The same as START_TRAINING; the annotations that older Label Studios send along are not used."""
        return train_now(parse_project(parse_object(await body_of(request)).get("project")), "/train")

    def train_now(project: int | None, why: str) -> JSONResponse:
        if trainer is None:
            sentence = "Training is off: lsml serve needs --versions DIR and --label-studio-url URL for it."
            log.warning("%s was asked for. %s", why, sentence)
            return _refusal(409, sentence)
        if project is None:
            raise BadRequest('"project" is missing')
        return JSONResponse({"status": "ok", "job": trainer.request(project, why).id}, 201)

    @app.get("/is_training", responses=schemas.ANSWERS["is_training"])
    async def is_training(project: str | None = None) -> dict[str, bool]:
        number = parse_project(project)
        return {"is_training": trainer is not None and number is not None and trainer.is_training(number)}

    @app.get("/versions", responses=schemas.ANSWERS["versions"])
    async def versions() -> dict[str, Any]:
        """What answers: the started model first, then each project's own version that is loaded."""
        found = service.serving.versions()
        return {"versions": list(dict.fromkeys(found.values())), "projects": found}

    @app.get("/metrics", responses=schemas.ANSWERS["metrics"])
    async def metrics() -> Response:
        return Response(service.numbers.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for kind, handler in _ERRORS.items():
        app.add_exception_handler(kind, handler)
    routes = [route.path for route in app.routes if hasattr(route, "path")]
    return Guard(app, access, service.numbers, routes, verbose)


async def _let_finish(request: Request) -> None:
    """Read on for a moment and forget it: who is still sending when the connection is closed sees no answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGERING):
            while (message := await request.receive())["type"] != "http.disconnect" and message.get("more_body"):
                pass


def _disconnected(request: Request) -> Callable[[], Awaitable[None]]:
    async def until_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return until_gone


_CLOSING = {"Connection": "close"}  # or the rest of the body would be read to its end, if it has one


def _refusal(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """What it quotes of a request may hold halves of characters."""
    return JSONResponse({"detail": sentence.encode("utf-8", "replace").decode()}, status, headers)


def _path(request: Request) -> str:
    """What was asked for, for the log: without the secret path."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


async def _bad_request(request: Request, error: Exception) -> Response:
    """Logged, because Label Studio shows nobody the body."""
    log.warning("%s: %s.", _path(request), error)
    return _refusal(400, f"{error}.")


async def _model_says_no(request: Request, error: Exception) -> Response:
    """What is wrong with a model or a label config; logged, because Label Studio shows nobody the body."""
    log.warning("%s: %s", _path(request), error)
    return _refusal(400, str(error))


async def _too_large(request: Request, error: Exception) -> Response:
    log.warning("%s: the body has more bytes than --max-body allows.", _path(request))
    return _refusal(413, "The body has more bytes than this server accepts.", _CLOSING)


async def _too_slow(request: Request, error: Exception) -> Response:
    log.warning("%s: the body came too slowly.", _path(request))
    return _refusal(408, "The body came too slowly.", _CLOSING)


async def _hung_up(request: Request, error: Exception) -> Response:
    log.info("%s: the client hung up before the answer was there.", _path(request))
    return Response(status_code=HUNG_UP)


async def _bug(request: Request, error: Exception) -> Response:
    """The error goes on from here, to the guard, which logs it."""
    return _refusal(500, "This is a bug in lsml; its log says more.")


_ERRORS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    BadRequest: _bad_request,
    LsmlError: _model_says_no,
    TooLarge: _too_large,
    TooSlow: _too_slow,
    HungUp: _hung_up,
    Exception: _bug,
}
