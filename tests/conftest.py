"""Fixtures for every suite."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

# Failed assertions of helpers show their values too. Before the first import of a helper.
pytest.register_assert_rewrite("tests.helpers", "tests.slow.scenario")

from tests.helpers.cli import EXAMPLE, SHARED_DATA, Lsml, run_in_process, run_lsml  # noqa: E402

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as under `nohup make test &`
    # A process inherits an ignored signal, and Python then never raises KeyboardInterrupt: tests that send ctrl-C to a
    # child would fail. With a handler here, a child starts with SIGINT's default.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def lsml() -> Lsml:
    """`lsml("predict", path, "--model", model)` -> exit code, stdout and stderr, run inside of this process."""
    return run_in_process


@pytest.fixture(scope="session")
def lsml_process() -> Lsml:
    """The same as a process of its own, where signals, pipes, memory, limits or imports are tested."""
    return run_lsml


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real exports and media, which are too large for the project itself."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the data in ../shared/data, which is not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def sms_model(lsml: Lsml, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text classifier fitted on 4,000 real messages (ham, spam). Do not write into it."""
    return fit_model(
        lsml,
        shared_data / "exports" / "sms-spam-annotated.json",
        shared_data / "exports" / "sms-spam.xml",
        tmp_path_factory.mktemp("models") / "sms",
    )


@pytest.fixture(scope="session")
def ticket_model(lsml: Lsml, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text classifier fitted on the shipped example. Do not write into it."""
    return fit_model(
        lsml,
        EXAMPLE / "annotated.json",
        EXAMPLE / "label_config.xml",
        tmp_path_factory.mktemp("models") / "tickets",
    )


def fit_model(lsml: Lsml, export: Path, config: Path, output: Path) -> Path:
    run = lsml("fit", export, "--model", "text-classifier", "--label-config", config, "--output", output)
    assert run.returncode == 0, run.stderr
    return output
