"""Run `lsml predict` on small tasks, for the suites that look at what it writes."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from tests.helpers import misbehaving_models, models
from tests.helpers.cli import Lsml

MODELS = Path(models.__file__)
WORDS = f"{MODELS}:Words"
FRAGILE = f"{MODELS}:Fragile"
FLAKY = f"{MODELS}:Flaky"
MISBEHAVING_MODELS = Path(misbehaving_models.__file__)


def make_task(n: int, **data: Any) -> dict[str, Any]:
    """Return a task with the id `n` and a text of `n % 9` words; `data` adds to its data or replaces it."""
    return {"id": n, "data": {"text": "word " * (n % 9)} | data, "meta": {"n": n}}


def predict(
    lsml: Lsml, tasks: str | Path, *options: str | Path, model: str = WORDS, **kwargs: Any
) -> CompletedProcess[str]:
    """Run `lsml predict TASKS` with the label config `config.xml` of the working folder."""
    return lsml("predict", tasks, "--model", model, "--label-config", "config.xml", *options, **kwargs)


def predicted_choice(record: dict[str, Any]) -> str:
    """Return the choice in the only prediction of a record of the output."""
    [prediction] = record["predictions"]
    choice: str = prediction["result"][0]["value"]["choices"][0]
    return choice
