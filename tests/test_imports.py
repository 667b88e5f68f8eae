"""Starting `lsml` loads nothing heavy. Which package may import which is import-linter's to check (`make lint`)."""

from __future__ import annotations

import subprocess
import sys
import tomllib

from lsml_cli.registry.model_location import BUILT_IN
from tests.helpers.cli import ROOT

# Must not be loaded by `import lsml_cli.cli`: `lsml --help` would pay for it.
NOT_AT_START = {
    *("torch", "torchvision", "sklearn", "mmcv", "mmengine", "mmdet", "mmocr", "transformers", "spacy"),
    *("numpy", "scipy", "safetensors", "joblib", "PIL", "jinja2", "cachetools"),  # Typer imports pydantic itself
    *("fastapi", "starlette", "uvicorn", "httpx", "ray", "label_studio_sdk", "multiprocessing"),
    *("redis", "rq"),
    *("rich.console", "rich.markdown", "rich.progress", "rich.table", "pygments", "markdown_it"),
}


def test_starting_the_command_loads_nothing_heavy() -> None:
    code = "import sys, lsml_cli.cli; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    heavy = NOT_AT_START & set(run.stdout.split())
    assert not heavy, f"`import lsml_cli.cli` loads {', '.join(sorted(heavy))}; import it where it is used."


def test_every_built_in_family_is_kept_apart_from_the_others() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    [independent] = [contract["modules"] for contract in contracts if contract["type"] == "independence"]
    families = {target.partition(".model:")[0] for target in BUILT_IN.values()}
    assert families - set(independent) == set()
