"""Measure how long a user waits for the first output of a command.

python benchmarks/startup.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from _measure import rounds, run
from bulk_text import sources

BARE = """
import typer
app = typer.Typer()
@app.command()
def one(name: str, times: int = 1): ...
@app.command()
def two(name: str, times: int = 1): ...
app()
"""
SKLEARN = "import sklearn.linear_model, sklearn.feature_extraction.text"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    annotated, _, config = sources()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = str(folder / "model")
        lsml = [sys.executable, "-m", "lsml_cli"]
        fit = ["fit", str(annotated), "--model", "text-classifier", "--label-config", str(config), "--output", model]
        subprocess.run([*lsml, *fit], check=True, stdout=subprocess.DEVNULL)
        (folder / "bare.py").write_text(BARE)
        (folder / "task.json").write_text('{"id": 1, "data": {"text": "free entry, call now", "ticket": "my bill"}}')
        task = str(folder / "task.json")
        commands: dict[str, Callable[[], tuple[float, float]]] = {
            "bare Typer app --help": lambda: run([sys.executable, str(folder / "bare.py"), "--help"]),
            "lsml --help": lambda: run([*lsml, "--help"]),
            "import scikit-learn": lambda: run([sys.executable, "-c", SKLEARN]),
            "first prediction": lambda: run([*lsml, "predict", "-", "--model", model], stdin=task),
        }
        measurements = rounds(commands, options.rounds)
    for name, measurement in measurements.items():
        print(f"{name:24}{measurement.spread():>28}")
    for a, b in (("lsml --help", "bare Typer app --help"), ("first prediction", "import scikit-learn")):
        ratios = [x / y for x, y in zip(measurements[a].seconds, measurements[b].seconds, strict=True)]
        print(f"{a} / {b}: {statistics.mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
