"""Exported tasks, prediction records and files of them, for evaluation and ranking tests."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

TEXT_CONFIG = """
<View><Text name="text" value="$text"/>
  <Choices name="mood" toName="text"><Choice value="good"/><Choice value="bad"/></Choices>
  <Choices name="topic" toName="text" choice="multiple"><Choice value="food"/><Choice value="drink"/></Choices>
</View>
"""


def choice_region(control: str, labels: list[str], score: float | None = None) -> dict[str, Any]:
    region = {"id": control, "from_name": control, "to_name": "text", "type": "choices", "value": {"choices": labels}}
    return region | ({"score": score} if score is not None else {})


def exported_task(id: int, *moods: str, text: str | None = None, topics: list[str] | None = None) -> dict[str, Any]:
    """Return an exported task with one annotation for each of `moods`."""
    annotations = [
        {
            "id": 100 * id + i,
            "result": [choice_region("mood", [mood]), *([choice_region("topic", topics)] if topics else [])],
        }
        for i, mood in enumerate(moods)
    ]
    return {"id": id, "project": 7, "data": {"text": text or f"text {id}"}, "annotations": annotations}


def prediction_record(id: int, mood: str, score: float, topics: list[str] | None = None) -> dict[str, Any]:
    result = [choice_region("mood", [mood], score), *([choice_region("topic", topics, 0.9)] if topics else [])]
    return {"task": id, "result": result, "score": score, "model_version": "v1"}


def other_mood(mood: str) -> str:
    return "bad" if mood == "good" else "good"


def write_records(path: Path, records: list[Any]) -> None:
    lines = [json.dumps(record) for record in records]
    path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]")


def perturb_annotations(tasks: list[dict[str, Any]], seed: int, amount: float) -> list[dict[str, Any]]:
    """Turn annotations into predictions: boxes are moved and resized, some are missing or of another class."""
    rng = random.Random(seed)
    records = []
    for task in tasks:
        result = []
        for region in task["annotations"][0]["result"]:
            value = dict(region["value"])
            for start, length in (("x", "width"), ("y", "height")):
                value[start] = min(95.0, max(0.0, value[start] + rng.gauss(0, amount) * value[length]))
                value[length] = min(100 - value[start], max(0.5, value[length] * (1 + rng.gauss(0, amount))))
            if rng.random() < 0.1:
                value["rectanglelabels"] = ["person"]
            if rng.random() > 0.1:
                result.append(region | {"value": value, "score": round(rng.random(), 3)})
        records.append({"task": task["id"], "result": result, "score": None, "model_version": f"jitter {amount}"})
    return records
