"""Training on a worker that a real Redis hands the job to, and that dies over it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.serve_process import Serve, jobs, until
from tests.slow.scenario import tickets, train_and_predict_anew

if TYPE_CHECKING:
    from conftest import LabelStudio, Lsml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_the_worker_is_killed_in_the_middle(
    label_studio: LabelStudio, lsml: Lsml, serve: Serve, ticket_model: Path, tmp_path: Path
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
        (job,) = jobs(versions) or [{"progress": None}]
        return job["progress"] is not None and not job["progress"].startswith("Asking")

    def kill_the_worker(project: int) -> None:
        """When it has the annotations and learns from them, which it says in the job's file."""
        until("the model learns", learns)
        doomed.kill()
        (job,) = jobs(versions)
        assert job["state"] == "running", "the worker was done before it could be killed"
        until("the server has seen that it runs", lambda: server.is_training(project), 10)
        # Whoever labels meanwhile is served.
        assert server.ask("GET", "/health")["status"] == "UP"
        serve.worker("--jobs", redis, env=key)

    version = train_and_predict_anew(label_studio, server, during=kill_the_worker)

    until("the job is finished", lambda: [job["state"] for job in jobs(versions)] == ["done"])
    (job,) = jobs(versions)
    assert (job["attempt"], job["version"]) == (2, version)
    # One version came out, and nothing of the first attempt is left beside it.
    listed = lsml("versions", versions / f"project-{job['project']}", "--json")
    assert listed.returncode == 0, listed.stderr
    assert [each["version"] for each in json.loads(listed.stdout)] == [version.partition("@")[2]]


def test_a_job_waits_for_a_worker_and_outlives_the_server(
    label_studio: LabelStudio, serve: Serve, ticket_model: Path, tmp_path: Path
) -> None:
    """Nobody works yet, and the server is restarted: the job is done all the same, and the new server uses it."""
    versions = tmp_path / "versions"
    redis = serve.redis()
    key = {"LABEL_STUDIO_API_KEY": label_studio.token}
    started = ("--model", ticket_model, "--versions", versions, "--label-studio-url", label_studio.url, "--jobs", redis)
    server = serve(*started, env=key)
    made = tickets(label_studio, "patient", annotated=60, fresh=1)
    backend = label_studio.connect(made.project, server.url)
    label_studio.ask("POST", f"/api/ml/{backend}/train", {})
    until("the job is on record", lambda: jobs(versions))
    server.kill()

    again = serve(*started, env=key)
    label_studio.ask("PATCH", f"/api/ml/{backend}", {"url": again.url, "project": made.project})
    assert [job["state"] for job in jobs(versions)] == ["waiting"]
    serve.worker("--jobs", redis, env=key)
    version = until(
        "the project has a version of its own",
        lambda: next((v for v in [label_studio.model_version(backend)] if v.startswith("project-")), None),
        90,
    )
    until("the job says which", lambda: [job["version"] for job in jobs(versions)] == [version])
