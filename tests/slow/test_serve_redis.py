"""Training on a worker that a real Redis hands the job to, and that dies over it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.serve_process import ServerFactory, read_jobs, wait_until
from tests.slow.scenario import create_ticket_project, train_and_repredict

if TYPE_CHECKING:
    from conftest import LabelStudio, Lsml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_the_worker_is_killed_in_the_middle(
    label_studio: LabelStudio, lsml: Lsml, serve: ServerFactory, ticket_model: Path, tmp_path: Path
) -> None:
    versions = tmp_path / "versions"
    redis = serve.redis()
    key = {"LABEL_STUDIO_API_KEY": label_studio.token}
    server = serve(
        *("--model", ticket_model, "--versions", versions, "--label-studio-url", label_studio.url, "--jobs", redis),
        env=key,
    )
    doomed = serve.worker("--jobs", redis, env=key)

    def learns() -> bool:
        (job,) = read_jobs(versions) or [{"progress": None}]
        return job["progress"] is not None and not job["progress"].startswith("Asking")

    def kill_the_worker(project: int) -> None:
        """When it has the annotations and learns from them, which it says in the job's file."""
        wait_until("the model learns", learns)
        doomed.kill()
        (job,) = read_jobs(versions)
        assert job["state"] == "running", "the worker was done before it could be killed"
        wait_until("the server has seen that it runs", lambda: server.is_training(project), 10)
        # Whoever labels meanwhile is served.
        assert server.request_ok("GET", "/health")["status"] == "UP"
        serve.worker("--jobs", redis, env=key)

    version = train_and_repredict(label_studio, server, on_training_started=kill_the_worker)

    wait_until("the job is finished", lambda: [job["state"] for job in read_jobs(versions)] == ["done"])
    (job,) = read_jobs(versions)
    assert (job["attempt"], job["version"]) == (2, version)
    # One version came out, and nothing of the first attempt is left beside it.
    listed = lsml("versions", versions / f"project-{job['project']}", "--json")
    assert listed.returncode == 0, listed.stderr
    assert [each["version"] for each in json.loads(listed.stdout)] == [version.partition("@")[2]]


def test_a_job_waits_for_a_worker_and_outlives_the_server(
    label_studio: LabelStudio, serve: ServerFactory, ticket_model: Path, tmp_path: Path
) -> None:
    """Nobody works yet, and the server is restarted: the job is done all the same, and the new server uses it."""
    versions = tmp_path / "versions"
    redis = serve.redis()
    key = {"LABEL_STUDIO_API_KEY": label_studio.token}
    started = ("--model", ticket_model, "--versions", versions, "--label-studio-url", label_studio.url, "--jobs", redis)
    server = serve(*started, env=key)
    made = create_ticket_project(label_studio, "patient", annotated=60, unlabeled=1)
    backend = label_studio.connect_backend(made.project, server.url)
    label_studio.request_ok("POST", f"/api/ml/{backend}/train", {})
    wait_until("the job is on record", lambda: read_jobs(versions))
    server.kill()

    again = serve(*started, env=key)
    label_studio.request_ok("PATCH", f"/api/ml/{backend}", {"url": again.url, "project": made.project})
    assert [job["state"] for job in read_jobs(versions)] == ["waiting"]
    serve.worker("--jobs", redis, env=key)
    version = wait_until(
        "the project has a version of its own",
        lambda: next((v for v in [label_studio.model_version(backend)] if v.startswith("project-")), None),
        90,
    )
    wait_until("the job says which", lambda: [job["version"] for job in read_jobs(versions)] == [version])
