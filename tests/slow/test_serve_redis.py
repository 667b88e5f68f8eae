"""Training in `lsml worker` with a Redis queue, interrupted by kills of the worker and of the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.serve_process import ServerFactory, read_jobs, wait_until
from tests.slow.scenario import create_ticket_project, train_and_repredict

if TYPE_CHECKING:
    from tests.helpers.cli import Lsml
    from tests.helpers.label_studio_server import LabelStudio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_job_of_a_killed_worker_is_repeated(
    label_studio: LabelStudio, lsml: Lsml, serve: ServerFactory, ticket_model: Path, tmp_path: Path
) -> None:
    versions = tmp_path / "versions"
    redis = serve.redis()
    key = {"LABEL_STUDIO_API_KEY": label_studio.token}
    server = serve(
        *("--model", ticket_model, "--versions", versions, "--label-studio-url", label_studio.url, "--jobs", redis),
        env=key,
    )
    killed_worker = serve.worker("--jobs", redis, env=key)

    def is_training() -> bool:
        (job,) = read_jobs(versions) or [{"progress": None}]
        return job["progress"] is not None and not job["progress"].startswith("Asking")

    def kill_the_worker(project: int) -> None:
        """Kill the worker while it trains, which the job's progress shows, and start another."""
        wait_until("the model trains", is_training)
        killed_worker.kill()
        (job,) = read_jobs(versions)
        assert job["state"] == "running", "the job ended before the worker was killed"
        wait_until("the server reports the training", lambda: server.is_training(project), 10)
        # The server answers meanwhile.
        assert server.request_ok("GET", "/health")["status"] == "UP"
        serve.worker("--jobs", redis, env=key)

    version = train_and_repredict(label_studio, server, on_training_started=kill_the_worker)

    wait_until("the job is finished", lambda: [job["state"] for job in read_jobs(versions)] == ["done"])
    (job,) = read_jobs(versions)
    assert (job["attempt"], job["version"]) == (2, version)
    # There is one version, and nothing is left of the first attempt.
    listed = lsml("versions", versions / f"project-{job['project']}", "--json")
    assert listed.returncode == 0, listed.stderr
    assert [row["version"] for row in json.loads(listed.stdout)] == [version.partition("@")[2]]


def test_job_survives_a_restart_of_the_server(
    label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path, tmp_path: Path
) -> None:
    """There is no worker until the server was restarted; the new server uses the trained version."""
    versions = tmp_path / "versions"
    redis = serve.redis()
    key = {"LABEL_STUDIO_API_KEY": label_studio.token}
    options = ("--model", ticket_model, "--versions", versions, "--label-studio-url", label_studio.url, "--jobs", redis)
    server = serve(*options, env=key)
    tickets = create_ticket_project(label_studio, "patient", annotated=60, unlabeled=1)
    backend = label_studio.connect_backend(tickets.project, server.url)
    label_studio.request_ok("POST", f"/api/ml/{backend}/train", {})
    wait_until("the job is on record", lambda: read_jobs(versions))
    server.kill()

    restarted = serve(*options, env=key)
    label_studio.request_ok("PATCH", f"/api/ml/{backend}", {"url": restarted.url, "project": tickets.project})
    assert [job["state"] for job in read_jobs(versions)] == ["waiting"]
    serve.worker("--jobs", redis, env=key)
    version = wait_until(
        "the project has a version of its own",
        lambda: next((v for v in [label_studio.model_version(backend)] if v.startswith("project-")), None),
        90,
    )
    wait_until("the job has the version", lambda: [job["version"] for job in read_jobs(versions)] == [version])
