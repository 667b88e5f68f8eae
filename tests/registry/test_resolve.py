"""What a user may call a model."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lsml_cli import Prediction, load_model
from lsml_cli.errors import ModelError, UnknownModel, UsageError
from lsml_cli.registry import promotion, version_writer, versions
from lsml_cli.registry.code_digest import code_digest
from lsml_cli.registry.resolve import (
    family_name,
    find_model,
    model_argument,
    parse_params,
    stored_label_config,
)
from tests.helpers import models, trainable_models

WORDS = f"{models.__file__}:Words"


def test_find_model_imports_nothing_heavy():
    script = (
        "import sys; from lsml_cli.registry.resolve import find_model; find_model('text-classifier').build();"
        "assert not {'sklearn', 'numpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_spec_is_small_and_picklable():
    spec = find_model(WORDS, {"pause": 0.5})
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert len(pickle.dumps(spec)) < 1_000
    assert spec.build().param("pause") == 0.5


def test_identity_covers_code_and_parameters(tmp_path):
    copy = tmp_path / "models.py"
    shutil.copy(models.__file__, copy)
    same = find_model(f"{copy}:Words")
    assert same.digest == find_model(WORDS).digest
    assert same.digest != find_model(WORDS, {"pause": 1.0}).digest
    copy.write_text(copy.read_text() + "\n# changed\n")
    assert find_model(f"{copy}:Words").digest != same.digest


def test_identity_covers_files_named_by_parameters(tmp_path):
    def digest(**params: Any) -> str:
        return find_model(f"{models.__file__}:Stored", params).digest

    weights, referenced = tmp_path / "weights.bin", tmp_path / "referenced.bin"
    name = str(weights)
    digests = [digest(), digest(weights=name)]  # without such a file it is a parameter like any other
    for path, content in (
        (weights, "referenced.bin"),
        (referenced, "one"),
        (referenced, "two"),
        (weights, "others.bin"),
    ):
        path.write_text(content)
        digests.append(digest(weights=name))
        assert digest(weights=name) == digests[-1]
    assert len(set(digests)) == len(digests)
    for no_file in (str(tmp_path), "\0", "x" * 5_000):
        assert not find_model(f"{models.__file__}:Stored", {"weights": no_file}).file_digests
    for value in (3, None):
        with pytest.raises(UsageError, match=f"weights must be a text, not {value}"):
            digest(weights=value)
    weights.write_text("referenced.bin")
    referenced.write_text("weights.bin")  # a cycle
    assert list(find_model(f"{models.__file__}:Stored", {"weights": name}).file_digests) == [name, str(referenced)]


def test_built_in_models_declare_their_files(tmp_path):
    (tmp_path / "shared").mkdir()
    texts = {
        "small.py": "_base_ = [\n    './shared/a.py',  # two of them\n    \"mmdet::rtmdet/b.py\",\n]\nlr = 1\n",
        "shared/a.py": "with read_base():\n    from ..c import *\n    from .shared.d import e\n",
        "c.py": "_base_ = 'd.json'\n",
        "d.json": '{"_base_": ["e.yml"], "model": {}}',
        "e.yml": "_base_: f.py\nmodel: x.py\n",
        "f.py": "x = ['c.py']\n",
        "x.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"_base_ = 'x.py'")
    for family, config, checkpoint in (
        ("object-detector", "config_file", "checkpoint_file"),
        ("ocr", "det_config", "det_ckpt"),
        ("ocr", "recog_config", "recog_ckpt"),
    ):
        spec = find_model(family, {config: str(tmp_path / "small.py"), checkpoint: str(weights)})
        names = {Path(path).resolve().relative_to(tmp_path).as_posix() for path in spec.file_digests}
        assert names == {*texts, "weights.pth"} - {"x.py"}
    assert list(find_model("image-classifier", {"weights": str(weights)}).file_digests) == [str(weights)]


def test_identity_covers_the_class_name():
    assert find_model(WORDS).digest != find_model(WORDS.replace("Words", "Script")).digest


def test_class_in_importable_module_is_found():
    assert find_model("tests.helpers.models:Words").model_version.startswith("tests.helpers.models:Words@")


def test_two_files_of_one_name_are_two_modules(tmp_path):
    for folder, label in (("a", "one"), ("b", "two")):
        (tmp_path / folder).mkdir()
        source = f"from lsml_cli.models.base import Model\nclass M(Model):\n    label = {label!r}\n"
        source += "    def forward(self, inputs, binding): ...\n    def decode(self, output, task, binding): ...\n"
        (tmp_path / folder / "model.py").write_text(source)
    labels = [vars(find_model(f"{tmp_path}/{folder}/model.py:M").model_class())["label"] for folder in "ab"]
    assert labels == ["one", "two"]


def test_version_is_found_by_folder_and_by_version_name(ticket_model):
    spec = find_model(str(ticket_model))
    assert spec.name == "tickets"
    assert spec.model_version == f"tickets@{spec.version}"
    assert find_model(f"{ticket_model}@{spec.version}") == spec
    assert find_model(f"{ticket_model}/{spec.version}").digest == spec.digest
    config = stored_label_config(spec)
    assert config is not None
    assert "Choices" in {control.tag for control in config.controls.values()}
    with pytest.raises(UnknownModel, match="has no version"):
        find_model(f"{ticket_model}@20000101T000000")


def test_version_keeps_its_identity_when_moved(ticket_model, tmp_path):
    shutil.copytree(ticket_model, tmp_path / "elsewhere")
    assert find_model(str(tmp_path / "elsewhere")).digest == find_model(str(ticket_model)).digest


def trained(root: Path, target: str, **changes: Any) -> Path:
    """Write a version of a class as `lsml fit` does, and apply `changes` to its model.json."""
    spec = find_model(target)
    with version_writer.open_version_writer(root) as writer:
        (writer.folder / "counts.json").write_text('{"red": {"long": 1}}')
        version = writer.commit(
            family=family_name(spec.target),
            label_config=models.TEXT_CONFIG,
            state={},
            params={"weight": 1},
            code_digest=code_digest(spec.model_class()),
        )
    promotion.promote(root, version.version)
    path = version.folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))
    return version.folder


@pytest.fixture
def counting(tmp_path: Path) -> str:
    """Write a file with a model that can be trained; return the name of the model."""
    shutil.copy(trainable_models.__file__, tmp_path / "counting.py")
    return f"{tmp_path / 'counting.py'}:Counting"


def test_version_records_its_class_without_a_path(tmp_path, counting):
    assert family_name(find_model("text-classifier").target) == "text-classifier"
    assert family_name("lsml_cli.models.text_classifier.model:TextClassifier") == "text-classifier"
    assert family_name("tests.helpers.trainable_models:Counting") == "tests.helpers.trainable_models:Counting"
    assert family_name(counting) == "counting.py:Counting"
    folder = trained(tmp_path / "m", counting)
    assert str(tmp_path) not in (folder / "model.json").read_text()


EVIL = "from pathlib import Path\nPath(__file__).with_name('was-here').touch()\n"


@pytest.mark.parametrize(
    ("recorded", "hint"),
    [
        ("{folder}/evil.py:Evil", "Name the class together with the folder: --model path/to/evil.py:Evil@{folder}/m"),
        ("evil.py:Evil", "Name the class together with the folder: --model path/to/evil.py:Evil@{folder}/m"),
        ("evil:Evil", "Name the class together with the folder: --model evil:Evil@{folder}/m"),
        (
            "$(touch x).py:Evil",
            "Name the class together with the folder: --model 'path/to/$(touch x).py:Evil@{folder}/m'",
        ),
        ("evil", "Install the package that brings it; `lsml models` lists what is there."),
    ],
)
def test_folder_cannot_name_code_to_load(tmp_path, monkeypatch, recorded, hint):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(EVIL)
    folder = trained(tmp_path / "m", "text-classifier", family=recorded.format(folder=tmp_path))
    for name in (f"{tmp_path}/m", f"{tmp_path}/m@{folder.name}", str(folder)):
        with pytest.raises(ModelError, match=r"is a version of .*evil|is a version of .*touch") as refused:
            find_model(name)
        assert refused.value.hint == hint.format(folder=tmp_path).replace(f"{tmp_path}/m", name)
    with pytest.raises(ModelError, match="is a version of"):
        load_model(f"{tmp_path}/m")
    assert [entry.version is not None for entry in versions.scan_versions(tmp_path / "m")] == [True]
    assert not (tmp_path / "was-here").exists()


def test_unregistered_class_is_named_together_with_folder(tmp_path, counting, monkeypatch):
    folder = trained(tmp_path / "m", counting)
    spec = find_model(f"{counting}@{tmp_path}/m")
    assert (spec.name, spec.version, spec.path, spec.notes) == ("m", folder.name, folder, ())
    assert spec.model_class().__name__ == "Counting"
    assert pickle.loads(pickle.dumps(spec)) == spec
    for name in (f"{tmp_path}/m@{folder.name}", str(folder)):
        assert find_model(f"{counting}@{name}") == spec
    with load_model(f"{counting}@{tmp_path}/m") as model:
        [(_, outcome)] = model.predict([{"text": "red"}])
        assert isinstance(outcome, Prediction)
        assert outcome.result[0].value == {"choices": ["long"]}
    assert model_argument(spec, Path("models/my m")) == f"'{counting}@models/my m'"
    monkeypatch.chdir(tmp_path)
    assert model_argument(spec, Path("m")) == "counting.py:Counting@m"
    assert find_model("counting.py:Counting@m").digest == spec.digest
    assert model_argument(find_model("text-classifier"), Path("m")) == "m"
    trained(tmp_path / "n", "tests.helpers.trainable_models:Counting")
    assert find_model("tests.helpers.trainable_models:Counting@n").name == "n"


def test_class_other_than_the_trained_one_is_refused(tmp_path, counting):
    trained(tmp_path / "m", counting)
    other = counting.replace("counting.py", "other.py")
    shutil.copy(trainable_models.__file__, tmp_path / "other.py")
    for name in (other, counting.replace(":Counting", ":Stumbling"), "text-classifier"):
        if name == "text-classifier":
            name = "lsml_cli.models.text_classifier.model:TextClassifier"
        with pytest.raises(ModelError, match=r"is a version of counting\.py:Counting, not of "):
            find_model(f"{name}@{tmp_path}/m")
    for name, sentence in {
        f"{counting}@{tmp_path}/n": "There is no folder",
        f"{counting}x@{tmp_path}/m": "has no Countingx",
        f"{tmp_path}/nothing.py:Counting@{tmp_path}/m": "There is no file",
        f"no_such.module:Counting@{tmp_path}/m": "There is no module no_such.module",
        f"{counting}@{tmp_path}/m@x": "has no version 'x'",
    }.items():
        with pytest.raises((UnknownModel, ModelError), match=sentence):
            find_model(name)


def test_changed_code_is_noted_and_changes_the_identity(tmp_path, counting):
    folder = trained(tmp_path / "m", counting)
    before = find_model(f"{counting}@{tmp_path}/m")
    Path(counting.partition(":")[0]).write_text(Path(trainable_models.__file__).read_text() + "\n# changed\n")
    spec = find_model(f"{counting}@{tmp_path}/m")
    assert spec.notes == (f"The code of Counting has changed since m@{folder.name} was trained.",)
    assert spec.digest != before.digest
    with load_model(spec) as model:
        assert model.notes == spec.notes


def test_version_of_format_1_loads(tmp_path):
    """They recorded the imported module, and no digests of their files."""
    target = "lsml_cli.models.text_classifier.model:TextClassifier"
    trained(tmp_path / "m", "text-classifier", format=1, family=target, digests={}, params={"C": 1.0})
    assert find_model(f"{tmp_path}/m").target == target
    assert find_model(f"{target}@{tmp_path}/m") == find_model(f"{tmp_path}/m")


def test_undeclared_parameter_is_refused(tmp_path):
    trained(tmp_path / "m", "text-classifier", params={"C": 1.0, "secret": 1})
    with pytest.raises(ModelError, match=r"damaged, or was written by another lsml: .* has no parameter 'secret'"):
        find_model(f"{tmp_path}/m")
    with pytest.raises(UsageError, match="TextClassifier has no parameter 'c'"):
        find_model("text-classifier", {"c": 1})


@pytest.mark.parametrize("file", ["weights.safetensors", "vocabulary.json"])
def test_single_changed_byte_is_detected(ticket_model, tmp_path, file):
    shutil.copytree(ticket_model, tmp_path / "m")
    path = versions.resolve(f"{tmp_path}/m") / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"{file} is damaged: its content is not what was written"):
        find_model(f"{tmp_path}/m")
    assert versions.scan_versions(tmp_path / "m")[0].damage is None, "reading a list should not read all weights"


def test_unknown_name_lists_known_ones_by_similarity():
    with pytest.raises(UnknownModel) as unknown:
        find_model("text-clasifier")
    assert unknown.value.hint is not None
    assert unknown.value.hint.startswith("Did you mean 'text-classifier'? Known models: text-classifier, ")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("class M: ...", "is not a subclass of lsml_cli.Model"),
        ("from lsml_cli.models.base import Model\nclass M(Model): ...", "does not override decode and forward"),
        ("class Other: ...", "has no M"),
    ],
)
def test_file_without_the_model_is_refused(tmp_path, source, sentence):
    path = tmp_path / "model.py"
    path.write_text(source)
    with pytest.raises(ModelError, match=sentence):
        find_model(f"{path}:M")


def test_import_error_of_the_file_is_reported(tmp_path):
    path = tmp_path / "model.py"
    path.write_text("import no_such_thing\n")
    with pytest.raises(ModelError, match=r"model.py cannot be imported: .*no_such_thing"):
        find_model(f"{path}:M")


def test_parse_params_decodes_json_values():
    assert parse_params(["a=1", "b=true", "c=[1]", "d=word", "e=1=2"]) == {
        "a": 1,
        "b": True,
        "c": [1],
        "d": "word",
        "e": "1=2",
    }
    with pytest.raises(UsageError):
        parse_params(["=1"])


def test_folder_without_versions_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match="holds no trained model"):
        find_model(str(Path(tmp_path / "model")))
