"""Starting `lsml` loads nothing heavy. Which package may import which is import-linter's to check (`make lint`)."""

from __future__ import annotations

import subprocess
import sys

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
