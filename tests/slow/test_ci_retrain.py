"""examples/ci-retrain against a real Label Studio: a first version, a better one, and one that must not take over."""

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
    from conftest import LabelStudio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).parents[2] / "examples" / "ci-retrain" / "retrain"


def test_a_better_version_takes_over_and_a_worse_one_does_not(label_studio: LabelStudio, tmp_path: Path) -> None:
    made = create_ticket_project(label_studio, "retrained", annotated=60, unlabeled=8)
    model, work = tmp_path / "models" / "tickets", tmp_path / "work"

    def retrain(**variables: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LABEL_STUDIO_URL": label_studio.url,
            "LABEL_STUDIO_API_KEY": label_studio.token,
            "XDG_STATE_HOME": str(tmp_path / "state"),
            "PROJECT": str(made.project),
            "MODEL": str(model),
            "METRIC": "category.accuracy",
            "AT_LEAST": "0",
            "WORK": str(work),
        }
        return subprocess.run(
            [SCRIPT], env=env | variables, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )

    def in_use() -> str:
        return f"tickets@{(model / 'current').read_text().strip()}"

    first = retrain()
    assert first.returncode == 0, first.stderr
    one = in_use()
    assert count_stored_predictions(label_studio, made.project) == expected_predictions(made.unlabeled, one)

    label_studio.import_tasks(made.project, load_annotated_tickets()[60:])
    added = add_unlabeled(label_studio, made.project, 2, start=50)
    second = retrain()
    assert second.returncode == 0, second.stderr
    two = in_use()
    compared = json.loads((work / "evaluation.json").read_text())
    (gate,) = compared["not_worse"]
    assert (two != one, gate["passed"], compared["compared"]["name"]) == (True, True, one)
    # Both were measured on what neither has seen: about a fifth of the annotated tasks.
    assert compared["left_out"]["a model that was trained on it"] > compared["tasks"] > 50
    assert count_stored_predictions(label_studio, made.project) == expected_predictions(
        made.unlabeled, one, two
    ) | expected_predictions(added, two)
    assert label_studio.request_ok("GET", f"/api/projects/{made.project}/")["model_version"] == two

    before = count_stored_predictions(label_studio, made.project)
    worse = retrain(FIT_OPTIONS="--with C=1e-9")  # which learns next to nothing
    assert worse.returncode == 4, worse.stderr
    assert "category.accuracy" in worse.stderr.splitlines()[-2] + worse.stderr.splitlines()[-1]
    assert in_use() == two
    assert len(list(model.glob("2*"))) == 3  # it is kept, for whoever wants to look
    assert count_stored_predictions(label_studio, made.project) == before
    assert "<html" in (work / "report.html").read_text()

    hopeless = retrain(FIT_OPTIONS="--with C=1e-9", AT_LEAST="0.9")
    assert hopeless.returncode == 4, hopeless.stderr
    assert not (work / "evaluation.json").exists()
    assert (in_use(), count_stored_predictions(label_studio, made.project)) == (two, before)
