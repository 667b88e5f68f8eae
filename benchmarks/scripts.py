"""Compare a script for label_studio_ml 1.0 in `lsml predict` with label-studio-ml 1.0.9, which serves it task by task.

    python benchmarks/scripts.py [--tasks 50000] [--rounds 3]

Both run the same script with the same fitted pipeline. Label Studio requests one task when somebody opens it; a
selection is one request, which fails after 100 seconds.
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
from _servers import HERE, baseline, start_server
from serve import fit_models, prepare_data

NUM_REQUESTS = 1_000  # of one task, sent to the server in a round one after the other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = prepare_data(folder)
        _, pipeline = fit_models(data, folder)
        os.environ["LSML_PIPELINE"] = str(pipeline)
        tasks, config = folder / "many.json", folder / "config.xml"
        many = [{**data.tasks[n % len(data.tasks)], "id": n + 1} for n in range(options.tasks)]
        tasks.write_text(json.dumps(many), "utf-8")
        config.write_text(data.config, "utf-8")
        bodies = [data.body([task]) for task in data.tasks[:NUM_REQUESTS]]
        served, bulk = [], []
        start = baseline(folder)
        command = [sys.executable, "-m", "lsml_cli", "predict", str(tasks), "--batch-size", "512", "--quiet"]
        script = f"{HERE / '_label_studio_ml_model.py'}:PipelineModel"
        for number in range(options.rounds):
            with start_server(start, folder, data.setup(), {"LSML_PIPELINE": str(pipeline)}) as server:
                started_at = time.perf_counter()
                for body in bodies:
                    status, answer = server.request("POST", "/predict", body)
                    assert status == 200, answer
                    assert len(answer["results"]) == 1, answer
                served.append(len(bodies) / (time.perf_counter() - started_at))
            output = folder / "out.json"
            seconds, megabytes = run([*command, "--model", script, "-c", str(config), "-o", str(output)])
            output.unlink()
            bulk.append(options.tasks / seconds)
            print(
                f"  round {number + 1}: served {served[-1]:,.0f}/s, lsml predict {bulk[-1]:,.0f}/s, {megabytes:.0f} MB",
                flush=True,
            )
    ratios = [bulk_rate / served_rate for bulk_rate, served_rate in zip(bulk, served, strict=True)]
    print(f"\nlabel-studio-ml 1.0.9, one task per request: {statistics.mean(served):,.0f} tasks/s")
    print(f"lsml predict, start included:              {statistics.mean(bulk):,.0f} tasks/s")
    print(f"{statistics.mean(ratios):.0f} times the rate ({min(ratios):.0f} to {max(ratios):.0f})")


if __name__ == "__main__":
    main()
