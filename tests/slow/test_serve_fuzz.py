"""No request to `lsml serve` is answered with a 5xx status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.serve_process import ServerFactory

MODEL = Path(__file__).parents[1] / "helpers" / "server_models.py"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_generated_requests_get_no_5xx(serve: ServerFactory, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="needs schemathesis: `make test-slow` installs it")
    server = serve("--model", f"{MODEL}:Anything")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.root}/openapi.json"),
            *("--checks", "not_a_server_error", "--mode", "all", "--max-examples", "100", "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=380,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Tested: 8" in run.stdout
    assert server.request_ok("GET", "/health")["status"] == "UP"
    assert "bug in lsml" not in server.log.read_text("utf-8")
