"""A script for label_studio_ml 1.0 in bulk: by `lsml predict`, and as label-studio-ml 1.0.9 serves it, task by task.

    python benchmarks/scripts.py [--tasks 50000] [--rounds 3]

One script, one fitted pipeline. Label Studio asks a server for one task when somebody opens it; a selection it sends in
one request, and drops everything after 100 seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from _measure import run
from _servers import HERE, baseline, started
from serve import fitted, material

ASKED = 1_000  # tasks that the server is asked for in a round, one after the other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = material(folder)
        _, pipeline = fitted(given, folder)
        os.environ["LSML_PIPELINE"] = str(pipeline)
        tasks, config = folder / "many.json", folder / "config.xml"
        many = [{**given.tasks[n % len(given.tasks)], "id": n + 1} for n in range(asked.tasks)]
        tasks.write_text(json.dumps(many), "utf-8")
        config.write_text(given.config, "utf-8")
        bodies = [given.body([task]) for task in given.tasks[:ASKED]]
        served, bulk = [], []
        start = baseline(folder)
        command = [sys.executable, "-m", "lsml_cli", "predict", str(tasks), "--batch-size", "512", "--quiet"]
        script = f"{HERE / '_label_studio_ml_model.py'}:PipelineModel"
        for number in range(asked.rounds):
            with started(start, folder, given.setup(), {"LSML_PIPELINE": str(pipeline)}) as server:
                begun = time.perf_counter()
                for body in bodies:
                    status, answer = server.ask("POST", "/predict", body)
                    assert status == 200, answer
                    assert len(answer["results"]) == 1, answer
                served.append(len(bodies) / (time.perf_counter() - begun))
            output = folder / "out.json"
            seconds, megabytes = run([*command, "--model", script, "-c", str(config), "-o", str(output)])
            output.unlink()
            bulk.append(asked.tasks / seconds)
            print(
                f"  round {number + 1}: served {served[-1]:,.0f}/s, lsml predict {bulk[-1]:,.0f}/s, {megabytes:.0f} MB",
                flush=True,
            )
    ratios = [one / other for one, other in zip(bulk, served, strict=True)]
    print(f"\nlabel-studio-ml 1.0.9, one task a request: {statistics.mean(served):,.0f} tasks/s")
    print(f"lsml predict, start included:              {statistics.mean(bulk):,.0f} tasks/s")
    print(f"{statistics.mean(ratios):.0f} times the rate ({min(ratios):.0f} to {max(ratios):.0f})")


if __name__ == "__main__":
    main()
