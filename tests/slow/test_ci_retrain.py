"""examples/ci-retrain against Label Studio: a first version, a better one, unchanged annotations, and a worse one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.slow.scenario import (
    add_unlabeled,
    count_stored_predictions,
    create_ticket_project,
    expected_predictions,
    load_annotated_tickets,
)

if TYPE_CHECKING:
    from tests.helpers.label_studio_server import LabelStudio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).parents[2] / "examples" / "ci-retrain" / "retrain"


def test_better_version_is_promoted_and_worse_one_is_not(label_studio: LabelStudio, tmp_path: Path) -> None:
    tickets = create_ticket_project(label_studio, "retrained", annotated=60, unlabeled=8)
    model, work = tmp_path / "models" / "tickets", tmp_path / "work"

    def retrain(**variables: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LABEL_STUDIO_URL": label_studio.url,
            "LABEL_STUDIO_API_KEY": label_studio.token,
            "XDG_STATE_HOME": str(tmp_path / "state"),
            "PROJECT": str(tickets.project),
            "MODEL": str(model),
            "METRIC": "category.accuracy",
            "AT_LEAST": "0",
            "WORK": str(work),
        }
        return subprocess.run(
            [SCRIPT], env=env | variables, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )

    def promoted_version() -> str:
        return f"tickets@{(model / 'current').read_text().strip()}"

    first = retrain()
    assert first.returncode == 0, first.stderr
    first_version = promoted_version()
    assert count_stored_predictions(label_studio, tickets.project) == expected_predictions(
        tickets.unlabeled, first_version
    )

    label_studio.import_tasks(tickets.project, load_annotated_tickets()[60:])
    added = add_unlabeled(label_studio, tickets.project, 2, start=50)
    second = retrain()
    assert second.returncode == 0, second.stderr
    second_version = promoted_version()
    evaluation = json.loads((work / "evaluation.json").read_text())
    (gate,) = evaluation["not_worse"]
    assert (second_version != first_version, gate["passed"], evaluation["compared"]["name"]) == (
        True,
        True,
        first_version,
    )
    # Both were evaluated on tasks that neither was trained on, about a fifth of the annotated ones.
    assert evaluation["training_data"]["left_out"] > evaluation["tasks"] > 50
    assert count_stored_predictions(label_studio, tickets.project) == expected_predictions(
        tickets.unlabeled, first_version, second_version
    ) | expected_predictions(added, second_version)
    assert label_studio.request_ok("GET", f"/api/projects/{tickets.project}/")["model_version"] == second_version

    added += add_unlabeled(label_studio, tickets.project, 2, start=60)
    same = retrain()
    assert same.returncode == 0, same.stderr
    assert f"Nothing to train: {second_version}" in same.stderr
    assert (promoted_version(), len(list(model.glob("2*")))) == (second_version, 2)

    before = count_stored_predictions(label_studio, tickets.project)
    assert before == expected_predictions(tickets.unlabeled, first_version, second_version) | expected_predictions(
        added, second_version
    )
    worse = retrain(FIT_OPTIONS="--with C=1e-9")  # such a model learns almost nothing
    assert worse.returncode == 4, worse.stderr
    assert "category.accuracy" in worse.stderr.splitlines()[-2] + worse.stderr.splitlines()[-1]
    assert promoted_version() == second_version
    assert len(list(model.glob("2*"))) == 3  # the rejected version is kept
    assert count_stored_predictions(label_studio, tickets.project) == before
    assert "<html" in (work / "report.html").read_text()

    assert retrain(KEEP_VERSIONS="1").returncode == 0
    before = count_stored_predictions(label_studio, tickets.project)
    assert before == expected_predictions([*tickets.unlabeled, *added], second_version)

    rejected = retrain(FIT_OPTIONS="--with C=1e-9", AT_LEAST="0.9")
    assert rejected.returncode == 4, rejected.stderr
    assert not (work / "evaluation.json").exists()
    assert (promoted_version(), count_stored_predictions(label_studio, tickets.project)) == (second_version, before)
