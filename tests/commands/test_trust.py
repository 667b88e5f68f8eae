"""A settings file that nobody named with --config leads to no code, whatever its model finally resolves to."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lsml_cli.errors import UsageError
from lsml_cli.registry import resolve, versions
from lsml_cli.schema.label_config import LabelConfig
from tests.commands.test_settings import OPTIONS
from tests.helpers import models
from tests.helpers.cli import run_in_process as run

# Every option of every command that takes a model, with what else the command needs to get to the model.
MODEL_OPTIONS = sorted(key for key, option in OPTIONS.items() if option.is_model)
ARGUMENTS = {
    "predict": ["data/tasks.json", "--quiet"],
    "fit": ["data/tasks.json", "-c", "data/config.xml", "-o", "out", "--quiet"],
    "evaluate": ["data/tasks.json", "-c", "data/config.xml", "--quiet"],
    "rank": ["data/tasks.json", "--accept-above", "0.5", "--annotated", "data/tasks.json", "-c", "data/config.xml"],
    "serve": [],
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data/ from a stranger; its code writes `was-here` when it is imported."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/tasks.json").write_text(json.dumps([{"id": n, "data": {"text": "word " * n}} for n in range(3)]))
    Path("data/config.xml").write_text(models.TEXT_CONFIG)
    return tmp_path


def plant_code(path: Path) -> None:
    """Write a module with one model that leaves a mark when it is imported."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = str(Path("was-here").absolute())
    path.write_text(
        f"open({mark!r}, 'w').close()\nfrom lsml_cli import Model\n\n\nclass Evil(Model):\n"
        "    def forward(self, inputs, binding): return []\n    def decode(self, output, task, binding): ...\n"
    )


def script_in_file() -> str:
    plant_code(Path("data/evil.py"))
    return "evil.py"


def class_in_file() -> str:
    plant_code(Path("data/evil.py"))
    return "evil.py:Evil"


def folder_with_model_py() -> str:
    plant_code(Path("data/m/model.py"))
    return "m"


def folder_served_by_wsgi() -> str:
    plant_code(Path("data/m/other.py"))
    Path("data/m/_wsgi.py").write_text("from other import Evil\ninit_app(model_class=Evil)\n")
    Path("data/m/model.py").write_text("")
    return "m"


def project_naming_class() -> str:
    plant_code(Path("data/m/evil.py"))
    Path("data/m/model.toml").write_text('model = "evil.py:Evil"\n')
    return "m"


def project_naming_file() -> str:
    plant_code(Path("data/m/evil.py"))
    Path("data/m/model.toml").write_text('model = "evil.py"\n')
    return "./m/"


def project_naming_file_outside() -> str:
    plant_code(Path("data/evil.py"))
    Path("data/m").mkdir()
    Path("data/m/model.toml").write_text('model = "../m/../evil.py:Evil"\n')
    return "m/../m"


def project_naming_module() -> str:
    plant_code(Path("data/evil_module.py"))
    Path("data/m").mkdir()
    Path("data/m/model.toml").write_text('model = "evil_module:Evil"\n')
    return "m"


def linked_project() -> str:
    plant_code(Path("elsewhere/evil.py"))
    Path("elsewhere/model.toml").write_text('model = "evil.py:Evil"\n')
    Path("data/m").symlink_to(Path("elsewhere").absolute())
    return "m"


def linked_project_file() -> str:
    plant_code(Path("data/m/evil.py"))
    Path("data/harmless").write_text('model = "evil.py:Evil"\n')
    Path("data/m/model.toml").symlink_to("../harmless")
    return "m"


def project_outside_of_folder() -> str:
    plant_code(Path("m/evil.py"))
    Path("m/model.toml").write_text('model = "evil.py:Evil"\n')
    return "../m"


def project_with_version() -> str:
    plant_code(Path("data/m/evil.py"))
    Path("data/m/model.toml").write_text('model = "evil.py:Evil"\nversions = "v"\n')
    write_version(Path("data/m/v"), "evil.py:Evil")
    return "m"


def class_at_folder() -> str:
    plant_code(Path("data/evil.py"))
    write_version(Path("data/v"), "evil.py:Evil")
    return "evil.py:Evil@v"


def module_on_the_path() -> str:
    plant_code(Path("data/evil_module.py"))
    return "evil_module:Evil"


def package_on_the_path() -> str:
    """Finding `evil_package.inner` would import `evil_package`."""
    plant_code(Path("data/evil_package/__init__.py"))
    return "evil_package.inner:Evil"


CODE = (
    script_in_file,
    class_in_file,
    folder_with_model_py,
    folder_served_by_wsgi,
    project_naming_class,
    project_naming_file,
    project_naming_file_outside,
    project_naming_module,
    linked_project,
    linked_project_file,
    project_outside_of_folder,
    project_with_version,
    class_at_folder,
    module_on_the_path,
    package_on_the_path,
)


def write_version(root: Path, family: str, **changes: Any) -> Path:
    """Write a version that names a class; return its folder."""
    version = root / "20261120T213015"
    version.mkdir(parents=True)
    (root / "current").write_text(version.name)
    texts = dict.fromkeys(("name", "version", "created", "digest"), "x") | {"label_config": models.TEXT_CONFIG}
    facts = texts | {"format": 1, "family": family, "state": {}, "params": {}, "files": {}}
    (version / "model.json").write_text(json.dumps(facts | changes))
    return version


@pytest.mark.parametrize("plant", CODE)
def test_settings_beside_data_lead_to_no_code(
    work: Path, plant: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(work / "data"))
    model = plant()
    for args in (["data/tasks.json"], ["data/tasks.json", "--check"], ["data/tasks.json", "--show-settings"]):
        Path("data/lsml.toml").write_text(f'[predict]\nlabel-config = "config.xml"\nmodel = "{model}"\n')
        refused = run("predict", *args)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "lsml: data/lsml.toml: [predict] model is " in refused.stderr
        assert "which would run" in refused.stderr
        assert "--config data/lsml.toml" in refused.stderr
    assert not Path("was-here").exists()
    assert not {"evil_module", "evil_package"} & sys.modules.keys()


@pytest.mark.parametrize(("command", "option"), MODEL_OPTIONS)
@pytest.mark.parametrize("plant", [folder_with_model_py, project_naming_class, script_in_file])
def test_every_model_option_of_every_command_is_checked(
    work: Path, plant: Callable[[], str], command: str, option: str
) -> None:
    """Beside the data where the command takes data, and in the working folder where it takes none."""
    model = plant()
    folder = Path() if command == "serve" else Path("data")
    value = f"data/{model}" if command == "serve" else model
    (folder / "lsml.toml").write_text(f'[{command}]\n{option} = "{value}"\n')
    other = [] if option == "model" or command == "rank" else ["--model", "text-classifier"]
    refused = run(command, *ARGUMENTS[command], *other)
    assert refused.returncode == 2
    assert f"[{command}] {option} is data/{model.rstrip('/')}, which would run" in refused.stderr
    assert not Path("was-here").exists()


def test_settings_in_the_working_folder_lead_to_no_code(work: Path) -> None:
    plant_code(Path("m/evil.py"))
    Path("m/model.toml").write_text('model = "evil.py:Evil"\n')
    Path("lsml.toml").write_text('[predict]\nmodel = "m"\nlabel-config = "data/config.xml"\n')
    refused = run("predict", "-", input='{"text": "a"}\n')
    assert refused.returncode == 2
    assert "lsml.toml: [predict] model is m, which would run the code in m/evil.py" in refused.stderr
    assert "--config lsml.toml" in refused.stderr
    assert not Path("was-here").exists()
    # Who names the file vouches for it.
    trusted = run("predict", "-", "--config", "lsml.toml", "--quiet", input='{"text": "a"}\n')
    assert Path("was-here").exists(), trusted.stderr


@pytest.mark.parametrize(
    ("params", "objection"),
    [
        ("trust_checkpoint = true", "has trust_checkpoint, which may run code"),
        ('checkpoint_file = "weights.pt"', 'has checkpoint_file = "weights.pt", which may be a file'),
        ('config_file = "evil.py"', 'has config_file = "evil.py", which may be a file'),
        ('thresholds = { a = ["x", "../weights.pt"] }', "has thresholds = "),
        ("epochs = 999999999", "has epochs = 999999999, which is above"),
    ],
)
def test_project_reached_through_settings_sets_no_harmful_parameter(work: Path, params: str, objection: str) -> None:
    Path("weights.pt").touch()
    Path("data/m").mkdir()
    Path("data/m/model.toml").write_text(f'model = "object-detector"\n[with]\n{params}\n')
    Path("data/lsml.toml").write_text('[predict]\nlabel-config = "config.xml"\nmodel = "m"\n')
    refused = run("predict", "data/tasks.json")
    assert refused.returncode == 2
    assert f"model is data/m, whose model.toml {objection}" in refused.stderr


def test_registered_model_reached_through_settings_is_allowed(work: Path, ticket_model: Path) -> None:
    shutil.copytree(ticket_model, "data/m/v")
    Path("data/m/model.toml").write_text('model = "text-classifier"\nversions = "v"\n')
    for model in ("m", "m/v", "text-classifier"):
        Path("data/lsml.toml").write_text(f'[predict]\nmodel = "{model}"\n')
        shown = run("predict", "data/tasks.json", "--show-settings")
        assert shown.returncode == 0, shown.stderr


# A folder of versions is data


def plant_in_version(root: Path) -> None:
    """Add everything to a folder of versions, and to each version, that would make another folder a project."""
    for folder in (root, *(path for path in root.iterdir() if path.is_dir())):
        for name in ("model.py", "evil.py", "__init__.py", "_wsgi.py"):
            plant_code(folder / name)
        (folder / "model.toml").write_text('model = "evil.py:Evil"\n')


def test_version_with_added_code_stays_a_version(work: Path, ticket_model: Path) -> None:
    shutil.copytree(ticket_model, "models/news")
    plant_in_version(Path("models/news"))
    version = versions.resolve("models/news")
    names = ["models/news", f"models/news@{version.name}", str(version), "models/../models/news/"]
    Path("link").symlink_to("models/news")
    for name in (*names, "link"):
        done = run("models", name, "--json")
        assert json.loads(done.stdout)[0]["target"].endswith(":TextClassifier"), done.stderr
        Path("lsml.toml").write_text(f'[predict]\nmodel = "{name}"\n')
        assert run("predict", "--show-settings").returncode == 0
    assert not Path("was-here").exists()


@pytest.mark.parametrize("kept", ["current", "model.json", "versions"])
def test_damaged_version_with_added_code_runs_none_of_it(work: Path, ticket_model: Path, kept: str) -> None:
    root = Path("models/news")
    if kept == "versions":  # no version is promoted
        shutil.copytree(ticket_model, root)
        (root / "current").unlink()
    else:
        root.mkdir(parents=True)
        (root / kept).write_text("{}")
    plant_in_version(root)
    for args in (
        ["models", "models/news"],
        ["predict", "data/tasks.json", "-m", "models/news", "-c", "data/config.xml"],
    ):
        assert run(*args).returncode == 1
    assert not Path("was-here").exists()


def test_folder_does_not_shadow_a_registered_model(work: Path) -> None:
    plant_code(Path("text-classifier/model.py"))
    done = run("models", "text-classifier", "--json")
    assert json.loads(done.stdout)[0]["package"] == "lsml"
    assert not Path("was-here").exists()
    assert run("models", "./text-classifier").returncode == 0
    assert Path("was-here").exists(), "the folder itself is named with a slash"


# Numbers

IMMODERATE: dict[str, dict[str, Any]] = {
    "predict": {"workers": 10_000, "fetch-concurrency": 5000, "batch-size": 10**9, "media-cache-size": "9000T"},
    "fit": {"media-cache-size": "9000T", "with": {"epochs": 10**9}},
    "evaluate": {"batch-size": 10**9, "examples": 10**9},
    "serve": {"workers": 10_000, "batch-size": 10**9, "deadline": 1e9, "max-tasks": 10**9, "max-body": 10**6},
}


@pytest.mark.parametrize(("command", "key"), [(name, key) for name, table in IMMODERATE.items() for key in table])
def test_settings_beside_data_take_no_more_than_the_machine_has(work: Path, command: str, key: str) -> None:
    value = IMMODERATE[command][key]
    inline = "{ epochs = 1000000000 }" if key == "with" else json.dumps(value)
    folder = Path() if command == "serve" else Path("data")
    (folder / "lsml.toml").write_text(f"[{command}]\n{key} = {inline}\n")
    arguments = [] if command == "serve" else ["data/tasks.json"]
    refused = run(command, *arguments, "--show-settings")
    assert refused.returncode == 2
    assert f"[{command}] {key} " in refused.stderr
    assert "Give --" in refused.stderr
    assert run(command, *arguments, "--config", str(folder / "lsml.toml"), "--show-settings").returncode == 0
    flag = "epochs=1000000000" if key == "with" else str(value)
    assert run(command, *arguments, f"--{key}", flag, "--show-settings").returncode == 0


def test_moderate_numbers_beside_data_are_taken(work: Path) -> None:
    Path("data/lsml.toml").write_text(
        '[predict]\nworkers = 2\nfetch-concurrency = 32\nbatch-size = "auto"\nmedia-cache-size = "10G"\n'
    )
    assert run("predict", "data/tasks.json", "--show-settings").returncode == 0


def test_every_numeric_option_is_bounded_or_known_to_be_harmless() -> None:
    """A new numeric option gets a bound in `trust.MAX_VALUES`, or is added here with a reason."""
    from lsml_cli.commands.settings.trust import MAX_VALUES

    harmless = {"limit", "max-failures"}  # make a run smaller, or stop it
    harmless |= {"threshold", "accept-above", "holdout", "seed"}  # change the result, not its cost
    harmless |= {"port", "max-wait-ms", "train-every", "view"}  # ranges that the option itself checks, and ids
    numeric = {key for (_, key), option in OPTIONS.items() if {int, float} & set(option.value_types)}
    restricted = {key for (_, key), option in OPTIONS.items() if option.is_unrestricted}
    assert numeric - restricted - harmless - MAX_VALUES.keys() == set()


# What a version records


def write_detector(root: Path, **params: Any) -> None:
    """Write a version of a detector that has been trained with these parameters; its weights are not needed here."""
    state = {"classes": ["a"]}
    write_version(root, "object-detector", name="x", version="20261120T213015", state=state, params=params)


@pytest.mark.parametrize(
    ("params", "shown", "option"),
    [
        ({"config_file": "data/evil.py"}, 'config_file = "data/evil.py"', "config_file=data/evil.py"),
        ({"checkpoint_file": "data/evil.pth"}, 'checkpoint_file = "data/evil.pth"', "checkpoint_file=data/evil.pth"),
        ({"trust_checkpoint": True}, "trust_checkpoint = true", "trust_checkpoint=true"),
        ({"launch": "--no-python data/evil.sh"}, "launch = ", "'launch=--no-python data/evil.sh'"),
    ],
)
@pytest.mark.parametrize("option_name", ["--model", "--init-from"])
def test_training_from_a_version_opens_nothing_that_it_names(
    work: Path, params: dict[str, Any], shown: str, option: str, option_name: str
) -> None:
    plant_code(Path("data/evil.py"))
    Path("data/evil.pth").touch()
    write_detector(Path("data/v"), **params)
    refused = run("fit", "data/tasks.json", option_name, "data/v", "-c", "data/config.xml", "-o", "out")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert shown in refused.stderr
    assert "a version may not decide that" in refused.stderr
    assert f"If you trust it, give it for this run: --with {option}" in " ".join(refused.stderr.split())
    assert not Path("was-here").exists()


def test_parameters_of_a_version_are_confirmed_on_the_command_line_or_by_its_project(work: Path) -> None:
    plant_code(Path("data/own.py"))
    write_detector(Path("data/m/v"), config_file="data/own.py", epochs=3)
    spec = resolve.find_model("data/m/v")
    assert spec.unconfirmed_params == {"config_file": "data/own.py"}
    assert (spec.params["epochs"], spec.build().param("epochs")) == (3, 3)
    with pytest.raises(UsageError, match="a version may not decide that"):
        spec.build().param("config_file")
    assert resolve.find_model("data/m/v", {"config_file": "data/own.py"}).unconfirmed_params == {}
    Path("data/m/model.toml").write_text(
        'model = "object-detector"\nversions = "v"\n[with]\nconfig_file = "data/own.py"\n'
    )
    assert resolve.find_model("data/m").unconfirmed_params == {}
    # The project itself, reached through settings beside the data, confirms nothing.
    Path("data/lsml.toml").write_text('[predict]\nmodel = "m"\n')
    assert "model.toml has config_file" in run("predict", "data/tasks.json").stderr


def test_version_that_names_no_file_trains_again_without_a_word(work: Path) -> None:
    write_detector(Path("v"), config_file="yolox_tiny_8xb8-300e_coco", checkpoint_file="gone.pth", epochs=3)
    assert resolve.find_model("v").unconfirmed_params == {}


def test_version_of_ocr_opens_no_config_while_it_is_bound(work: Path) -> None:
    """One without its own recognizer would read the config that its parameters name."""
    plant_code(Path("data/evil.py"))
    write_version(Path("data/v"), "ocr", params={"recog_config": "data/evil.py", "det": "none"}, state={"parts": []})
    config = LabelConfig.parse(
        '<View><Image name="i" value="$i"/><Rectangle name="b" toName="i"/>'
        '<TextArea name="t" toName="i" perRegion="true"/></View>'
    )
    with pytest.raises(UsageError, match=r'was trained with recog_config = "data/evil\.py"'):
        resolve.find_model("data/v").build().bind(config, {}, None)
    assert not Path("was-here").exists()


@pytest.mark.parametrize("value", [5, {"a": {}}, ["x"], "2", -1, "nested"])
def test_version_with_a_parameter_of_another_kind_is_damaged(work: Path, value: Any) -> None:
    write_detector(Path("v"), epochs=json.loads("[" * 900 + "]" * 900) if value == "nested" else value)
    refused = run("models", "v")
    if value == 5:
        assert refused.returncode == 0
    else:
        assert refused.returncode == 1
        assert "epochs must be a whole number from 1" in refused.stderr


SCRIPT = """
from label_studio_ml.model import LabelStudioMLBase
import pickle


class Old(LabelStudioMLBase):
    def __init__(self, weights="", **kwargs):
        super().__init__(**kwargs)
        for path in (weights, self.train_output.get("file")):
            if path:
                with open(path, "rb") as file:
                    pickle.load(file)

    def predict(self, tasks, **kwargs):
        return [{"result": []} for _ in tasks]

    def fit(self, tasks, workdir=None, **kwargs):
        return {"file": ""}
"""


class Mark:
    """Unpickling it makes a folder."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("was-here",)


@pytest.mark.parametrize(
    "changes",
    [
        {"params": {"weights": "data/evil.pkl"}},
        {"params": {"weights": {"deeper": ["data/evil.pkl"]}}},
        {"state": {"train_output": {"file": "data/evil.pkl"}}},
        {"state": {"train_output": {"file": "{version}/../../evil.pkl"}}},
        {"state": {"train_output": {"file": "{version}/link.pkl"}}},
        {"state": {"train_output": {"file": "noword"}}},
    ],
)
def test_script_opens_no_file_outside_of_its_version(work: Path, changes: dict[str, Any]) -> None:
    Path("old.py").write_text(SCRIPT)
    Path("data/evil.pkl").write_bytes(pickle.dumps(Mark()))
    shutil.copy("data/evil.pkl", "noword")
    version = write_version(Path("data/v"), "old.py:Old", **changes)
    (version / "link.pkl").symlink_to(Path("data/evil.pkl").absolute())
    refused = run("predict", "data/tasks.json", "-m", "old.py:Old@data/v", "-c", "data/config.xml")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "a version may not" in refused.stderr
    assert not Path("was-here").exists()


def test_script_that_reads_pickles_is_named_and_says_so(work: Path) -> None:
    Path("old.py").write_text(SCRIPT)
    Path("label").mkdir()
    state = {"train_output": {"file": "{version}/own.pkl", "labels": ["label"]}}
    version = write_version(Path("v"), "old.py:Old", state=state)
    (version / "own.pkl").write_bytes(pickle.dumps([1]))
    unnamed = run("predict", "data/tasks.json", "-m", "v", "-c", "data/config.xml")
    assert unnamed.returncode == 1
    assert "Name the class together with the folder" in unnamed.stderr
    named = run("predict", "data/tasks.json", "-m", "old.py:Old@v", "-c", "data/config.xml", "-o", "out.json")
    assert named.returncode == 0, named.stderr
    assert "old.py reads pickles, and reading one runs the code in it" in named.stderr


def test_pipeline_of_htx_is_read_from_its_version_alone(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lsml_cli.models.legacy_backends.htx import SklearnModel

    Path("version").mkdir()
    monkeypatch.setenv("MODEL_DIR", "version")
    for path in ("model.pkl", "version/model.pkl"):
        Path(path).write_bytes(pickle.dumps(Mark()))
    with pytest.raises(UsageError, match="outside of its folder"):
        SklearnModel().load({"model": "model.pkl"})
    assert not Path("was-here").exists()
    SklearnModel().load({"model": "version/model.pkl"})
    assert Path("was-here").exists()
