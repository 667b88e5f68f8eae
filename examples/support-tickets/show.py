"""Print the first predictions of an output file: score, category, signals and the start of the ticket."""

import json
import sys
import textwrap
from pathlib import Path


def choices(prediction: dict, control: str) -> list[str]:
    regions = (region for region in prediction["result"] if region["from_name"] == control)
    return [choice for region in regions for choice in region["value"]["choices"]]


tasks = json.loads(Path(sys.argv[1]).read_text("utf-8"))
for task in tasks[:8]:
    text = textwrap.shorten(task["data"]["text"], 70, placeholder=" ...")
    for prediction in task["predictions"]:
        (category,) = choices(prediction, "category")
        signals = ", ".join(choices(prediction, "signals")) or "-"
        print(f"{prediction['score']:.2f}  {category:9}  {signals:24}  {text}")
print(f"... and {len(tasks) - 8} more, all by {tasks[0]['predictions'][0]['model_version']}")
