"""Label Studio's ML-backend protocol over HTTP, as Label Studio 1.23 speaks it.

GET  /health, /      status and version of the model
POST /setup          introduce a project; the answer names the model version
POST /predict        tasks in, as many results out, in the same order
POST /webhook        START_TRAINING and annotation events
GET  /versions       the loaded model versions
GET  /metrics        metrics for Prometheus
GET  /docs           these endpoints with examples; /openapi.json for programs
POST /train, GET /is_training   training as older Label Studios ask for it
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp

from lsml_cli._version import __version__
from lsml_cli.server import schemas
from lsml_cli.server.auth import AuthConfig, AuthMiddleware
from lsml_cli.server.docs_page import render_docs
from lsml_cli.server.error_responses import error_response, install_error_handlers
from lsml_cli.server.job_record import Job
from lsml_cli.server.project_directory import ProjectDirectory
from lsml_cli.server.request_body import BodyReader, disconnect_waiter
from lsml_cli.server.requests import (
    START_TRAINING,
    BadRequest,
    WebhookEvent,
    parse_event,
    parse_json_object,
    parse_label_config_xml,
    parse_predict_request,
    parse_project_id,
)
from lsml_cli.server.service import Service
from lsml_cli.server.status_phrases import FAILURE_STATUSES, STATUS_PHRASES
from lsml_cli.server.train_scheduler import TrainScheduler

MAX_EVENT_BYTES = 16 << 20  # of a webhook's body: it is parsed in the event loop, and says little

log = logging.getLogger("lsml.serve")


def make_app(
    service: Service,
    train_scheduler: TrainScheduler | None,
    project_directory: ProjectDirectory | None,
    *,
    auth: AuthConfig,
    max_body_bytes: int,
    verbose: bool = False,
) -> ASGIApp:
    """Build the ASGI app.

    Args:
        train_scheduler: None when training is off.
        project_directory: Admits events; None when annotations are not counted.
        max_body_bytes: Limit of one request's body.
        verbose: Log each request.
    """
    body_reader = BodyReader(max_body_bytes)
    app = FastAPI(
        title="lsml",
        version=__version__,
        summary="A model behind Label Studio's ML-backend protocol.",
        # Clients below a proxy's path or the secret path resolve the routes relative to it.
        servers=[{"url": auth.secret_path or "/"}],
        root_path_in_servers=False,
        docs_url=None,  # FastAPI's own pages load their scripts from a CDN
        redoc_url=None,
    )
    _add_health_routes(app, service)
    _add_prediction_routes(app, service, body_reader)
    event_reader = BodyReader(min(max_body_bytes, MAX_EVENT_BYTES))
    _add_webhook_route(app, train_scheduler, project_directory, event_reader)
    _add_training_routes(app, train_scheduler, body_reader)
    _add_introspection_routes(app, service)
    _add_docs_route(app, auth)
    install_error_handlers(app)
    paths = [route.path for route in app.routes if hasattr(route, "path")]
    return AuthMiddleware(app, auth, service.metrics, paths, verbose)


def _add_health_routes(app: FastAPI, service: Service) -> None:
    async def health() -> dict[str, Any]:
        return {
            "status": "UP",
            "model_class": service.model_pool.default_spec.model_class().__name__,
            "model_version": service.model_pool.version_for(None),
            "lsml": __version__,
        }

    app.get("/health", responses=schemas.RESPONSES["health"])(health)
    app.get("/", include_in_schema=False)(health)


def _add_prediction_routes(app: FastAPI, service: Service, body_reader: BodyReader) -> None:
    @app.post("/setup", openapi_extra=schemas.REQUEST_BODIES["setup"], responses=schemas.RESPONSES["setup"])
    async def setup(request: Request) -> dict[str, Any]:
        """Introduce a project. The credentials in the body are not used."""
        body = parse_json_object(await body_reader.read(request))
        project = parse_project_id(body.get("project"))
        return {"model_version": await service.setup(project, parse_label_config_xml(body, "schema"))}

    @app.post("/predict", openapi_extra=schemas.REQUEST_BODIES["predict"], responses=schemas.RESPONSES["predict"])
    async def predict(request: Request) -> Response:
        """One result for each task, in order; `{}` for a task that has none."""
        body = await body_reader.read(request)
        predict_request, task_count = parse_predict_request(body, service.limits.max_tasks)
        response = await service.predict(
            predict_request, task_count, request.state.started_at, disconnect_waiter(request)
        )
        return Response(response.to_bytes(), media_type="application/json")


def _add_webhook_route(
    app: FastAPI,
    train_scheduler: TrainScheduler | None,
    project_directory: ProjectDirectory | None,
    event_reader: BodyReader,
) -> None:
    @app.post("/webhook", openapi_extra=schemas.REQUEST_BODIES["webhook"], responses=schemas.RESPONSES["webhook"])
    async def webhook(request: Request) -> JSONResponse:
        """START_TRAINING trains the project's model in the background; annotation events count for `--train-every`."""
        event = parse_event(await event_reader.read(request))
        if event.action == START_TRAINING:
            if not request.state.credentials:
                return error_response(401, "START_TRAINING needs user and password, on the secret path too.")
            return _request_training(train_scheduler, event.project, START_TRAINING)
        host = request.headers.get("host", "")
        job = _count_annotations(event, host, train_scheduler, project_directory)
        return JSONResponse({"status": "ok"} | ({"job": job.id} if job else {}))


def _add_training_routes(app: FastAPI, train_scheduler: TrainScheduler | None, body_reader: BodyReader) -> None:
    @app.post("/train", openapi_extra=schemas.REQUEST_BODIES["train"], responses=schemas.RESPONSES["train"])
    async def train(request: Request) -> JSONResponse:
        """The same as START_TRAINING; the annotations that older Label Studios send along are not used."""
        body = parse_json_object(await body_reader.read(request))
        return _request_training(train_scheduler, parse_project_id(body.get("project")), "/train")

    @app.get("/is_training", responses=schemas.RESPONSES["is_training"])
    async def is_training(project: str | None = None) -> dict[str, bool]:
        project_id = parse_project_id(project)
        if train_scheduler is None or project_id is None:
            return {"is_training": False}
        return {"is_training": train_scheduler.is_training(project_id)}


def _add_introspection_routes(app: FastAPI, service: Service) -> None:
    @app.get("/versions", responses=schemas.RESPONSES["versions"])
    async def versions() -> dict[str, Any]:
        """The loaded versions: the default model first, then each project's own version."""
        by_project = service.model_pool.loaded_versions()
        return {"versions": list(dict.fromkeys(by_project.values())), "projects": by_project}

    @app.get("/metrics", responses=schemas.RESPONSES["metrics"])
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_docs_route(app: FastAPI, auth: AuthConfig) -> None:
    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        base_url = str(request.base_url).rstrip("/")
        page, policy = render_docs(app.openapi(), base_url, needs_password=auth.basic_auth is not None)
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})


def _count_annotations(
    event: WebhookEvent,
    host: str,
    train_scheduler: TrainScheduler | None,
    project_directory: ProjectDirectory | None,
) -> Job | None:
    """Count the annotations of an event; return the job that they request, if they do."""
    if train_scheduler is None or project_directory is None or event.project is None or not event.annotation_count:
        return None
    if not project_directory.admit(event.project, event.annotation_count, host):
        return None
    return train_scheduler.count_annotations(event.project, event.annotation_count)


def _request_training(train_scheduler: TrainScheduler | None, project: int | None, trigger: str) -> JSONResponse:
    """Request training, and say how the last one ended if it came to nothing.

    Label Studio keeps an error of this request as the error message of the backend, and has no other place for it. It
    goes on asking for predictions.
    """
    if train_scheduler is None:
        message = "Training is off: start lsml serve with --versions DIR and --label-studio-url URL."
        log.warning("%s was requested. %s", trigger, message)
        return error_response(409, message)
    if project is None:
        raise BadRequest('"project" is missing')
    if not train_scheduler.has_room(project):
        return error_response(429, "Too many projects wait for training; try again later.")
    failure = train_scheduler.last_failure(project)
    body = {"status": "ok", "job": train_scheduler.request_training(project, trigger).id}
    if failure is None:
        return JSONResponse(body, 201)
    status = FAILURE_STATUSES[failure.state]
    return JSONResponse(body | {"detail": f"{STATUS_PHRASES[status]}: {failure.reason}"}, status)
