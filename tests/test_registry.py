"""What a user may call a model."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lsml_cli.errors import ModelError, UnknownModel, UsageError
from lsml_cli.registry import find_model, known_models, parse_params, trained_config
from tests import models

WORDS = f"{models.__file__}:Words"


def test_a_built_in_model_is_found_without_importing_anything_heavy():
    script = (
        "import sys; from lsml_cli.registry import find_model; find_model('text-classifier').build();"
        "assert not {'sklearn', 'numpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_spec_is_small_and_picklable():
    spec = find_model(WORDS, {"pause": 0.5})
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert len(pickle.dumps(spec)) < 1_000
    assert spec.build().param("pause") == 0.5


def test_identity_is_code_and_parameters(tmp_path):
    copy = tmp_path / "models.py"
    shutil.copy(models.__file__, copy)
    same = find_model(f"{copy}:Words")
    assert same.digest == find_model(WORDS).digest
    assert same.digest != find_model(WORDS, {"pause": 1.0}).digest
    copy.write_text(copy.read_text() + "\n# changed\n")
    assert find_model(f"{copy}:Words").digest != same.digest


def test_a_class_in_an_importable_module():
    assert find_model("tests.models:Words").model_version.startswith("tests.models:Words@")


def test_two_files_of_one_name_do_not_meet(tmp_path):
    for folder, label in (("a", "one"), ("b", "two")):
        (tmp_path / folder).mkdir()
        source = f"from lsml_cli.models.base import Model\nclass M(Model):\n    label = {label!r}\n"
        source += "    def forward(self, inputs, binding): ...\n    def decode(self, output, task, binding): ...\n"
        (tmp_path / folder / "model.py").write_text(source)
    one, two = (find_model(f"{tmp_path}/{folder}/model.py:M").family() for folder in "ab")
    assert (one.label, two.label) == ("one", "two")


def test_a_trained_version_by_folder_name_and_version(ticket_model):
    spec = find_model(str(ticket_model))
    assert spec.name == "tickets"
    assert spec.model_version == f"tickets@{spec.version}"
    assert find_model(f"{ticket_model}@{spec.version}") == spec
    assert find_model(f"{ticket_model}/{spec.version}").digest == spec.digest
    config = trained_config(spec)
    assert config is not None
    assert "Choices" in {control.tag for control in config.controls.values()}
    with pytest.raises(UnknownModel, match="has no version"):
        find_model(f"{ticket_model}@20000101T000000")


def test_a_version_moves_to_another_place(ticket_model, tmp_path):
    shutil.copytree(ticket_model, tmp_path / "elsewhere")
    assert find_model(str(tmp_path / "elsewhere")).digest == find_model(str(ticket_model)).digest


def test_an_unknown_name_lists_the_known_ones_the_closest_first():
    with pytest.raises(UnknownModel) as unknown:
        find_model("text-clasifier")
    assert unknown.value.hint is not None
    assert unknown.value.hint.startswith("Known models: text-classifier")
    assert "text-classifier" in known_models()


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("class M: ...", "is not a subclass of lsml_cli.Model"),
        ("from lsml_cli.models.base import Model\nclass M(Model): ...", "does not override decode and forward"),
        ("class Other: ...", "has no M"),
    ],
)
def test_a_file_that_is_no_model_says_so(tmp_path, source, sentence):
    path = tmp_path / "model.py"
    path.write_text(source)
    with pytest.raises(ModelError, match=sentence):
        find_model(f"{path}:M")


def test_a_file_with_an_error_of_its_own_is_told_apart(tmp_path):
    path = tmp_path / "model.py"
    path.write_text("import no_such_thing\n")
    with pytest.raises(ModelError, match=r"model.py cannot be imported: .*no_such_thing"):
        find_model(f"{path}:M")


def test_params_are_json_where_they_can_be():
    assert parse_params(["a=1", "b=true", "c=[1]", "d=word", "e=1=2"]) == {
        "a": 1,
        "b": True,
        "c": [1],
        "d": "word",
        "e": "1=2",
    }
    with pytest.raises(UsageError):
        parse_params(["=1"])


def test_the_folder_of_a_model_that_was_never_promoted(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match="holds no trained model"):
        find_model(str(Path(tmp_path / "model")))
