"""What a project of `lsml init -c` predicts for its sample tasks, imported into Label Studio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lsml_cli import Prediction, load_model, scaffold
from tests.helpers.recipe_configs import RECIPE_CONFIGS

if TYPE_CHECKING:
    from tests.helpers.label_studio_server import LabelStudio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("name", RECIPE_CONFIGS)
def test_sample_tasks_and_predictions_are_imported_unchanged(
    label_studio: LabelStudio, tmp_path: Path, name: str
) -> None:
    (tmp_path / "config.xml").write_text(RECIPE_CONFIGS[name], "utf-8")
    folder = tmp_path / "parts"
    scaffold.write_project(scaffold.ProjectOptions(folder, "own", label_config=tmp_path / "config.xml"))
    tasks = json.loads((folder / "tasks.json").read_text())
    project = label_studio.create_project(name, RECIPE_CONFIGS[name])

    sent = []
    with load_model(str(folder), folder / "label_config.xml", media=folder) as model:
        for task, outcome in zip(tasks, (outcome for _, outcome in model.predict(tasks)), strict=True):
            assert isinstance(outcome, Prediction), outcome
            sent.append({"data": task["data"], "predictions": [json.loads(json.dumps(outcome.to_json()))]})
    answer = label_studio.import_tasks(project, sent)
    assert (answer["task_count"], answer["prediction_count"]) == (len(tasks), len(tasks))
    stored = {prediction["task"]: prediction["result"] for prediction in label_studio.predictions(project)}
    assert [stored[task] for task in answer["task_ids"]] == [task["predictions"][0]["result"] for task in sent]
    exported = {task["id"]: task["data"] for task in label_studio.export(project)}
    assert [exported[task] for task in answer["task_ids"]] == [task["data"] for task in sent]
