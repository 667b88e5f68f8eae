"""lsml.toml: flags win, then the file, then what is built in; and a file beside the data decides nothing harmful."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lsml_cli.cli import app
from lsml_cli.commands.settings.setting import COMMAND_LINE_ONLY, Option, collect_options
from lsml_cli.commands.settings.settings import SettingsCommand, to_toml
from lsml_cli.errors import ModelError, UsageError
from tests.helpers import models
from tests.helpers.cli import build_command

MODELS = Path(models.__file__)
WORDS = f"{MODELS}:Words"
LSML: Any = build_command(app)
COMMANDS: dict[str, Any] = {
    name: command for name, command in LSML.commands.items() if isinstance(command, SettingsCommand)
}
OPTIONS = {
    (name, key): option for name, command in COMMANDS.items() for key, option in collect_options(command).items()
}


def invoke(*args: str) -> str:
    """What the command prints on stdout. Raises LsmlError like the command does."""
    with CliRunner().isolation() as (stdout, _, _):
        LSML.main(args, standalone_mode=False)
        sys.stdout.flush()
        return stdout.getvalue().decode()


def shown(*args: str) -> dict[str, tuple[Any, str]]:
    """key -> (value or None, where it comes from), as `--show-settings` prints them."""
    printed = invoke(*args, "--show-settings")
    [table] = tomllib.loads(printed).values()
    inner = ""
    settings: dict[str, tuple[Any, str]] = {}
    for line in printed.splitlines()[2:]:
        place = line.rpartition("  # ")[2]
        if line.startswith("["):
            inner = line.strip("[]").partition(".")[2]
        elif line and inner:
            settings.setdefault(inner, (table[inner], place))
        elif line:
            key = line.removeprefix("# ").split(" ", 1)[0]
            settings[key] = (table.get(key), place)
    return settings


def samples(option: Option) -> tuple[Any, str, Any, list[str], Any]:
    """TOML value, how it is written, what it comes out as; a flag that says something else, and its value."""
    if option.is_table:
        return {"a": 1}, "{ a = 1 }", {"a": 1}, [f"--{option.key}", "a=2"], {"a": 2}
    if option.is_model:
        return "text-classifier", '"text-classifier"', "text-classifier", [f"--{option.key}", "x:Y"], "x:Y"
    kind = option.value_types[0]
    if kind is bool:
        return True, "true", True, [f"--no-{option.key}"], False
    if kind is list:
        return ["a"], '["a"]', ["a"], [f"--{option.key}", "b"], ["b"]
    pairs: dict[Any, tuple[Any, Any]] = {int: (3, 4), float: (0.25, 0.5)}
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        file, flag = choices[-1], choices[0]
    else:
        file, flag = pairs.get(kind, ("some", "other"))
    return file, json.dumps(file), file, [f"--{option.key}", str(flag)], flag


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, with data/tasks.json and a label config beside it."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/tasks.json").write_text(json.dumps([{"id": n, "data": {"text": "word " * n}} for n in range(9)]))
    Path("data/config.xml").write_text(models.TEXT_CONFIG)
    return tmp_path


@pytest.mark.parametrize(("command", "key"), OPTIONS)
def test_precedence_of_option_file_and_default(work: Path, command: str, key: str) -> None:
    _, written, value, flag, flagged = samples(OPTIONS[command, key])
    default = shown(command).get(key, (None, "built in"))
    assert default[1] in {"built in", "required"}
    assert default[0] != value
    named = ("--config", "lsml.toml") if is_closed(OPTIONS[command, key]) else ()
    for spelled in (key, key.replace("-", "_")):
        Path("lsml.toml").write_text(f"[{command}]\n{spelled} = {written}\n")
        assert shown(command, *named)[key] == (value, "lsml.toml")
        assert shown(command, *named, *flag)[key] == (flagged, "command line")
    Path("lsml.toml").unlink()
    assert shown(command, *flag)[key] == (flagged, "command line")


def is_closed(option: Option) -> bool:
    """Whether a file must be named before this option is taken from it."""
    return option.is_unrestricted and not option.is_path and not option.is_model


def toml_of(command: str, keys: set[str]) -> str:
    lines = [f"{key} = {samples(OPTIONS[command, key])[1]}" for key in sorted(keys)]
    return "\n".join([f"[{command}]", *lines])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), command=st.sampled_from(sorted(COMMANDS)))
def test_any_mixture_of_file_and_options(work: Path, data: Any, command: str) -> None:
    keys = sorted(key for name, key in OPTIONS if name == command)
    in_file, as_flags = data.draw(st.sets(st.sampled_from(keys))), data.draw(st.sets(st.sampled_from(keys)))
    Path("lsml.toml").write_text(toml_of(command, in_file))
    flags = [part for key in sorted(as_flags) for part in samples(OPTIONS[command, key])[3]]
    settings = shown(command, "--config", "lsml.toml", *flags)
    for key in keys:
        _, _, value, _, flagged = samples(OPTIONS[command, key])
        if key in as_flags:
            assert settings[key] == (flagged, "command line")
        elif key in in_file:
            assert settings[key] == (value, "lsml.toml")
        else:
            assert settings.get(key, (None, "built in"))[1] in {"built in", "required"}
    # What is printed is a settings file itself, and says the same.
    Path("again.toml").write_text(invoke(command, "--config", "lsml.toml", *flags, "--show-settings"))
    again = shown(command, "--config", "again.toml")
    assert {key: value for key, (value, _) in again.items()} == {key: value for key, (value, _) in settings.items()}


def test_model_parameters_are_merged_by_name(work: Path) -> None:
    Path("lsml.toml").write_text('[predict.with]\nkept = [1, { a = "3" }]\nother = 1.5\n')
    assert shown("predict", "--with", "other=x", "--with", "new=true")["with"][0] == {
        "kept": [1, {"a": "3"}],
        "other": "x",
        "new": True,
    }


def test_map_setting_is_a_list_of_pairs(work: Path) -> None:
    """A list of strings, since a prefix may hold "="; the folder is relative to the file."""
    Path("lsml.toml").write_text('[predict]\nmap = ["s3://bucket/=data", "/data/local-files/?d==/srv"]\n')
    maps = shown("predict", "--config", "./lsml.toml")["map"]
    assert maps == (["s3://bucket/=data", "/data/local-files/?d==/srv"], "lsml.toml")
    Path("data/mine.toml").write_text('[predict]\nmap = ["s3://bucket/=copy"]\nmedia-cache-size = 1000\n')
    settings = shown("predict", "--config", "data/mine.toml")
    assert settings["map"] == (["s3://bucket/=data/copy"], "data/mine.toml")
    assert settings["media-cache-size"][0] == 1000
    assert shown("predict", "--config", "data/mine.toml", "--map", "a=b")["map"] == (["a=b"], "command line")


def test_gates_and_holdout_in_settings(work: Path) -> None:
    """`--fail-under METRIC=VALUE` is a table, in which a dot needs no quotes; a number may be a number."""
    Path("lsml.toml").write_text(
        '[fit]\nholdout = 0.1\n[fit.fail-under]\naccuracy = 0.9\ncategory.macro-f1 = 0.8\n"f1:spam" = 0.7\n'
    )
    settings = shown("fit", "--fail-under", "accuracy=0.95")
    assert settings["fail-under"][0] == {"accuracy": 0.95, "category.macro-f1": 0.8, "f1:spam": 0.7}
    assert settings["holdout"] == ("0.1", "lsml.toml")
    Path("lsml.toml").write_text('[fit]\nholdout = "../other.json"\n')
    with pytest.raises(UsageError, match=r"holdout is ../other.json, outside of its folder"):
        shown("fit")


texts = st.text().filter(lambda text: text.encode("utf-8", "replace").decode() == text)


@given(
    st.recursive(
        st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts,
        lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    )
)
def test_shown_settings_parse_to_equal_values(value: Any) -> None:
    assert tomllib.loads(f"x = {to_toml(value)}") == {"x": value}


WRONG = {
    "tabel = 1": "lsml.toml: tabel is outside of a table",
    'model = "news"\n[predict]': "lsml.toml: model is outside of a table",
    "[predcit]": "lsml.toml: [predcit] is not a command that takes settings. Those that do: [predict], ",
    "predict = 3": "lsml.toml: predict is not a table",
    "[predict]\nbatchsize = 3": "lsml.toml: [predict] has no setting 'batchsize'. It has: batch-size, ",
    "[predict]\nbatch-size = 3\nbatch_size = 3": "[predict] batch-size is given twice",
    "[predict]\nresume = true": "[predict] resume is not a setting. Give --resume on the command line",
    '[predict]\nconfig = "x"': "[predict] config is not a setting",
    "[predict]\nshow-settings = true": "[predict] show-settings is not a setting",
    "[predict]\nhelp = true": "[predict] help is not a setting",
    "[predict]\nquiet = 1": "[predict] quiet must be true or false, not 1",
    '[predict]\nworkers = "2"': "[predict] workers must be a whole number, not '2'",
    "[predict]\nworkers = true": "[predict] workers must be a whole number, not true",
    "[predict]\nworkers = 0": "[predict] workers: ",
    "[predict]\nthreshold = 1.5": "[predict] threshold: ",
    '[predict]\nthreshold = "0.5"': "[predict] threshold must be a number, not '0.5'",
    '[predict]\nshape = "task"': """[predict] shape must be "tasks" or "predictions", not 'task'""",
    "[predict]\nmodel = 3": "[predict] model must be a string, not 3",
    "[predict]\nerrors = 3": "[predict] errors must be a path in quotes, not 3",
    '[predict]\noutput = ["a"]': "[predict] output must be a string, not a list",
    '[predict]\noutput = "a\\u0000"': "[predict] output holds a NUL character",
    '[predict]\nwith = "a=1"': "[predict] with must be a table of names and values",
    "[predict.with]\na = 2026-01-01": "[predict] with cannot hold a",
    "[predict.with]\na = inf": "[predict] with cannot hold a",
    "[predict": "lsml.toml are not TOML: ",
    "[predict]\nx = " + "[" * 5000: "lsml.toml are not TOML: ",
    "\xff": "lsml.toml are not TOML: ",
}


@pytest.mark.parametrize("text", WRONG)
@pytest.mark.parametrize("named", [True, False])
def test_invalid_settings_give_one_sentence(work: Path, text: str, named: bool) -> None:
    Path("data/lsml.toml").write_text(text, encoding="latin-1")
    with pytest.raises(UsageError) as refused:
        invoke("predict", *(["-", "--config", "data/lsml.toml"] if named else ["data/tasks.json"]))
    assert WRONG[text] in str(refused.value)
    assert "data/lsml.toml" in str(refused.value)
    assert refused.value.hint
    assert refused.value.exit_code == 2


def test_missing_explicit_settings_file_is_an_error(work: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no file other.toml \(--config\)"):
        invoke("predict", "data/tasks.json", "--config", "other.toml")
    with pytest.raises(UsageError, match=r"data cannot be read: Is a directory"):
        invoke("predict", "data/tasks.json", "--config", "data")


HARMFUL = {
    f'model = "{WORDS}"': f"model is {WORDS}, which would run that code",
    'model = "evil.py:Evil"': "model is data/evil.py:Evil, which would run that code",
    'model = "evil:Evil"': "model is evil:Evil, which would run that code",
    'model = "evil.py:Evil@trained"': "model is data/evil.py:Evil@data/trained, which would run that code",
    'output = "/tmp/x.json"': "output is /tmp/x.json, outside of its folder",
    'output = "../x.json"': "output is data/../x.json, outside of its folder",
    'errors = "link/x.json"': "errors is data/link/x.json, outside of its folder",
    'summary = ".bashrc"': "summary is data/.bashrc, a hidden file",
    'label-config = "/etc/passwd"': "label-config is /etc/passwd, outside of its folder",
    'label-map = "../map.json"': "label-map is data/../map.json, outside of its folder",
    'document-root = "/"': "document-root is /, outside of its folder",
    'upload-root = ".."': "upload-root is data/.., outside of its folder",
    'media-cache = "/tmp/cache"': "media-cache is /tmp/cache, outside of its folder",
    'label-studio-url = "https://evil.example"': "label-studio-url is neither a name nor a number",
    'from = "paths"': "from decides what is read, and from where",
    'map = ["s3://bucket/=/"]': "map is /, outside of its folder",
    'map = ["a=b", "/data/local-files/?d==../.."]': "map is data/../.., outside of its folder",
    'map = ["a=link"]': "map is data/link, outside of its folder",
    'with = { config = "evil.py" }': 'with has config = "evil.py", which may be a file',
    'with = { checkpoint = ["a/b"] }': "which may be a file",
}


@pytest.mark.parametrize("line", HARMFUL)
def test_settings_beside_data_cannot_do_harm(work: Path, line: str) -> None:
    Path("data/lsml.toml").write_text(f"[predict]\n{line}\n")
    Path("data/link").symlink_to("/tmp")
    evil_version("/tmp/evil.py:Evil")
    with pytest.raises(UsageError) as refused:
        invoke("predict", "data/tasks.json")
    assert HARMFUL[line] in refused.value.message
    key = line.split(" ")[0]
    assert f"--{key} on the command line or, if the file is your own, --config data/lsml.toml" in str(refused.value)
    # Whoever names the file vouches for it; and what a flag decides, the file does not.
    assert shown("predict", "-", "--config", "data/lsml.toml")[key][1] == "data/lsml.toml"
    flag = ["--with", f"{line.split()[3]}=1"] if key == "with" else [f"--{key}", "tasks" if key == "from" else "mine"]
    assert shown("predict", "data/tasks.json", *flag)[key][1] == "command line"


def test_version_beside_data_runs_no_code(work: Path) -> None:
    """It is data like the settings: a registered class, or none."""
    Path("data/lsml.toml").write_text('[predict]\nmodel = "trained"\n')
    Path("data/evil.py").write_text(f"open({str(work / 'was-here')!r}, 'w')\n")
    evil_version(f"{work}/data/evil.py:Evil")
    with pytest.raises(ModelError, match=r"data/trained is a version of evil\.py:Evil, a class that is not registered"):
        invoke("predict", "data/tasks.json")
    assert not Path("was-here").exists()


def evil_version(family: str) -> None:
    version = Path("data/trained/20261120T213015")
    version.mkdir(parents=True)
    version.with_name("current").write_text(version.name)
    texts = dict.fromkeys(("name", "version", "label_config", "created", "digest"), "x")
    facts = texts | {"format": 1, "family": family, "state": {}, "params": {}, "files": {}}
    (version / "model.json").write_text(json.dumps(facts))


def test_every_option_is_classified_as_safe_or_not() -> None:
    """A new option that takes any string is not read from beside the data, until its metavar says what it takes."""
    closed = {"allow-host", "basic-auth", "host", "jobs", "label-studio-url", "secret-path"}  # addresses, secrets
    closed |= {"from"}  # of predict: paths that lead anywhere
    closed |= {"project", "existing", "create-tasks", "keep-versions"}  # pull and push: what is sent, deleted
    assert {key for (_, key), option in OPTIONS.items() if is_closed(option)} == closed


def test_options_of_one_run_are_no_settings() -> None:
    assert not {key for _, key in OPTIONS} & COMMAND_LINE_ONLY
    assert {"model", "with", "batch-size", "quiet"} <= {key for name, key in OPTIONS if name == "predict"}


# From outside


def test_settings_act_like_options(lsml, work):
    flags = ("--model", WORDS, "--label-config", "data/config.xml", "--shape", "predictions", "--with", "pause=0")
    expected = lsml("predict", "data/tasks.json", *flags, "--limit", "5")
    assert expected.returncode == 0, expected.stderr
    Path("data/mine.toml").write_text(
        f'[predict]\nmodel = "{WORDS}"\nlabel_config = "config.xml"\nshape = "predictions"\nlimit = 5\n'
        'output = "out.jsonl"\n[predict.with]\npause = 0\n[fit]\nseed = 3\n'
    )
    run = lsml("predict", "data/tasks.json", "--config", "data/mine.toml")
    assert run.returncode == 0, run.stderr
    assert "Settings from" not in run.stderr
    assert Path("data/out.jsonl").read_text() == expected.stdout
    run = lsml("predict", "data/tasks.json", "--config", "data/mine.toml", "-o", "-", "--limit", "2")
    assert run.stdout.splitlines() == expected.stdout.splitlines()[:2]


def test_used_settings_file_is_reported(lsml, work):
    Path("data/lsml.toml").write_text('[predict]\nlabel-config = "config.xml"\nlimit = 3\n')
    run = lsml("predict", "data/tasks.json", "--model", WORDS)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 3
    assert run.stderr.startswith("lsml: Settings from data/lsml.toml (label-config, limit).\n")
    run = lsml("predict", "data/tasks.json", "--model", WORDS, "--limit", "4")
    assert "Settings from data/lsml.toml (label-config).\n" in run.stderr
    assert len(run.stdout.splitlines()) == 4
    assert lsml("predict", "data/tasks.json", "--model", WORDS, "--quiet").stderr == ""
    assert "needs a label config" in lsml("predict", "-", "--model", WORDS).stderr  # none in the working folder
    run = lsml("predict", "-", "--model", WORDS, input=Path("data/tasks.json").read_text(), cwd=Path("data"))
    assert "lsml: Settings from lsml.toml (label-config, limit).\n" in run.stderr
    none = lsml("predict", "data/tasks.json", "--model", WORDS, "--config", "/dev/null")
    assert "needs a label config" in none.stderr


def test_settings_beside_data_run_no_code(lsml_process, work):
    Path("data/evil.py").write_text(f"open({str(work / 'was-here')!r}, 'w')\n")
    for model in ("evil.py:Evil", "evil:Evil", "./evil.py:Evil"):
        Path("data/lsml.toml").write_text(f'[predict]\nlabel-config = "config.xml"\nmodel = "{model}"\n')
        for option in ("--quiet", "--show-settings"):
            run = lsml_process("predict", "tasks.json", option, cwd=Path("data"))
            assert (run.returncode, run.stdout) == (2, "")
            assert "a settings file beside the data may not set that" in run.stderr
    assert not Path("was-here").exists()


def test_required_options_may_come_from_settings(lsml, work, ticket_model):
    Path("data/lsml.toml").write_text(f'[predict]\nmodel = "{ticket_model}"\n[fit]\noutput = "models/new"\n')
    run = lsml("predict", "data/tasks.json")
    assert run.returncode == 0, run.stderr
    assert "Settings from data/lsml.toml (model)." in run.stderr
    run = lsml("fit", "data/tasks.json", "--model", "text-classifier")
    assert "Missing option" not in run.stderr
    Path("data/lsml.toml").write_text("")
    run = lsml("predict", "data/tasks.json")
    assert run.returncode == 2
    assert "--model" in run.stderr


def test_relative_paths_resolve_against_settings_file(work: Path) -> None:
    Path("models").mkdir()
    Path("other").mkdir()
    Path("other/mine.toml").write_text(
        '[predict]\nmodel = "../models@3"\noutput = "out.json"\nerrors = "/abs"\nlabel-config = "c.xml"\n'
    )
    settings = shown("predict", "-", "--config", "other/mine.toml")
    named = {key: settings[key][0] for key in ("model", "output", "errors", "label-config")}
    assert named == {
        "model": "other/../models@3",
        "output": "other/out.json",
        "errors": "/abs",
        "label-config": "other/c.xml",
    }
    for written, meant in {
        "m.py:C": "other/m.py:C",
        "m.py:C@models": "other/m.py:C@other/models",
        "../m.py:C@../models@3": "other/../m.py:C@other/../models@3",
        "package.module:C@models": "package.module:C@other/models",
        "package.module:C": "package.module:C",
        "models": "other/models",  # never the folder of that name that happens to be here
        "plugged-in": "plugged-in",
        "text-classifier": "text-classifier",
    }.items():
        Path("other/mine.toml").write_text(f'[predict]\nmodel = "{written}"\noutput = "-"\n')
        settings = shown("predict", "-", "--config", "other/mine.toml")
        assert (settings["model"][0], settings["output"][0]) == (meant, "-")


def test_show_settings_runs_nothing(lsml, work):
    Path("data/lsml.toml").write_text('[predict]\noutput = "out.json"\nworkers = 2\n')
    run = lsml("predict", "data/tasks.json", "--show-settings", "--workers", "3")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("# data/lsml.toml: read\n[predict]\nfrom = ")
    assert not Path("data/out.json").exists()
    run = lsml("predict", "--show-settings")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("# lsml.toml: does not exist\n")
    assert lsml("predict", "--show-settings", "--workers", "x").returncode == 2


def test_help_ignores_invalid_settings(lsml, work):
    Path("lsml.toml").write_text("[predict")
    run = lsml("predict", "--help")
    assert run.returncode == 0
    assert "--show-settings" in run.stdout


def test_settings_of_the_documentation_are_valid(work, ticket_model):
    section = (Path(__file__).parents[2] / "docs" / "reference" / "settings.md").read_text("utf-8")
    [example] = re.findall(r"^```toml\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    [session] = re.findall(r"^```text\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    command, _, printed = session.partition("\n")
    Path("data/lsml.toml").write_text(example)
    Path("models").mkdir()
    Path("models/news").symlink_to(ticket_model)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shell = ["bash", "-c", f"{command.removeprefix('$ ')} 2>&1"]
    run = subprocess.run(shell, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == printed
    assert shown("fit", "data/tasks.json")["holdout"] == ("0.1", "data/lsml.toml")
