"""TAB, from outside: the protocol by which bash and zsh ask `lsml` what fits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_imports import NOT_AT_START

BIN = Path(sys.executable).parent
LSML = BIN / "lsml"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("models/news", "models/spam", "top"):
        Path(name).mkdir(parents=True)
        Path(name, "current").write_text("20261120T213015")
    Path("models/nothing").mkdir()
    return tmp_path


def ask(program: list[str | Path], **env: str) -> list[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("LSML_")}
    run = subprocess.run(
        program, env=own | {"COLUMNS": "400"} | env, capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stderr == ""
    return run.stdout.splitlines()


def bash(line: str) -> list[str]:
    """What bash would offer at the end of the line."""
    asked = {"_LSML_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    return [each for each in ask([LSML], **asked) if each]


def zsh(line: str) -> list[str]:
    """The same for zsh, of whose `"value":"help"` only the value is kept."""
    said = ask([LSML], _LSML_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=line)
    if said == ["_files"]:
        return []
    assert said[0].startswith("_arguments '*: :((\"")
    assert said[-1].endswith("\"))'")
    return [each.removeprefix("_arguments '*: :((").split('"')[1] for each in said]


@pytest.mark.parametrize("shell", [bash, zsh])
def test_completes_commands_options_choices_and_models(shell, work):
    assert shell("lsml pre") == ["predict"]
    assert {"predict", "fit"} <= set(shell("lsml "))
    assert shell("lsml predict --show") == ["--show-settings"]
    assert {"--seed", "--output", "--config"} <= set(shell("lsml fit export.json --"))
    assert shell("lsml predict --shape pre") == ["predictions"]
    assert shell("lsml predict --model ") == [
        *("image-classifier", "object-detector", "ocr", "text-classifier", "models/news", "models/spam", "top")
    ]
    assert shell("lsml predict tasks.json -m models/n") == ["models/news"]
    assert shell("lsml predict --model ./t") == ["./top"]
    Path("top/current").rename("top/model.toml")  # a project of lsml init
    assert shell("lsml check t") == ["text-classifier", "top"]
    assert shell("lsml predict tas") == []  # the shell goes on with its own file names


def test_completion_ignores_broken_settings_file(work):
    Path("lsml.toml").write_text("[predict")
    assert bash("lsml predict --thr") == ["--threshold"]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_show_completion_prints_shell_script(shell):
    script = "\n".join(ask([LSML], _LSML_COMPLETE=f"source_{shell}"))
    assert f"_LSML_COMPLETE=complete_{shell}" in script
    assert "lsml" in script


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_completion_in_real_bash(work):
    script = (
        f'PATH="{BIN}:$PATH"; eval "$(_LSML_COMPLETE=source_bash lsml)"; '
        "COMP_WORDS=(lsml pre); COMP_CWORD=1; _lsml_completion lsml; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert ask(["bash", "--norc", "-c", script]) == ["predict"]


def test_completion_loads_nothing_heavy(work):
    """Quick for a reason that can be tested: what is imported."""
    code = (
        "import atexit, sys; sys.argv = ['lsml']; "
        "atexit.register(lambda: print(*sys.modules)); "
        "from lsml_cli.cli import main; main()"
    )
    asked = {"_LSML_COMPLETE": "complete_bash", "COMP_WORDS": "lsml predict --model ", "COMP_CWORD": "3"}
    *offered, loaded = ask([sys.executable, "-c", code], **asked)
    assert "text-classifier" in offered
    assert not NOT_AT_START & set(loaded.split())
    assert "tomllib" not in loaded.split()
