"""The conformance suite: models that keep the contract pass; for others the report names the violated clause."""

from __future__ import annotations

import pickle
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from lsml_cli import ContractBroken, LabelConfig, check_model, find_model, read_tasks
from lsml_cli.errors import LsmlError, ModelError, UsageError
from lsml_cli.registry.model_location import BUILT_IN
from lsml_cli.testing.clauses import CLAUSES
from lsml_cli.testing.training import TRAINING_CLAUSES
from tests.helpers import broken_models, models

EXAMPLE = Path(__file__).parents[2] / "examples" / "support-tickets"
TASKS = [{"id": 7 + n, "data": {"text": "a" * n}} for n in (1, 12, 5, 30)]


def annotated(text: str, label: str) -> dict[str, Any]:
    region = {"from_name": "size", "to_name": "text", "type": "choices", "value": {"choices": [label]}}
    return {"data": {"text": text}, "annotations": [{"id": 1, "result": [region]}]}


ANNOTATED = [annotated("a" * n, "long" if n > 10 else "short") for n in range(1, 21)]

BROKEN = {
    "UnknownParallelism": ("class", "parallelism is 'gpu'"),
    "DevicesAreText": ("class", "devices is 'cpu'; it has to be a tuple"),
    "UnsupportedControlTag": ("class", "supported_controls names <Choice>"),
    "DefaultIsNoJson": ("params", "the default of folder is PosixPath('/tmp'), which is not JSON"),
    "DefaultIsOutOfRange": ("params", "the default of limit is 10; it has to be a whole number of at most 5"),
    "ChoiceIsNoJson": ("params", "a choice of folder is PosixPath('/tmp'), which is not JSON"),
    "HelpIsNoText": ("params", "the help of limit is a list; it has to be text"),
    "RangeOfText": ("params", "limit has a range, which is for numbers, and its kind is 'str'"),
    "ParameterIsNoName": ("params", "params has the name 3; it has to be text"),
    "ParamsAreAList": ("params", "params is a list; it has to map each name to its default"),
    "BuildFails": ("build", "raised KeyError: 'words' (broken_models.py, line "),
    "BindNeedsLoad": ("bind", "before load, raised AttributeError: 'BindNeedsLoad' object has no attribute 'classes'"),
    "BindGivesNothing": ("bind", "bind returned null"),
    "TakesAnyConfig": ("mismatch", 'bind takes a label config with <Rating name="rating">'),
    "MismatchIsKeyError": ("mismatch", "instead of LabelMismatch raised KeyError: 'size'"),
    "LoadFails": ("load", "raised FileNotFoundError: [Errno 2] No such file or directory"),
    "EncodeFails": ("encode", "for task 0 (id 8) raised IndexError: list index out of range (broken_models.py, line "),
    "ForwardFails": ("forward", "raised ZeroDivisionError: division by zero (broken_models.py, line "),
    "LosesOne": ("forward", "forward returned 3 outputs for 4 inputs"),
    "ForwardIsGenerator": ("forward", "forward returned generator"),
    "DecodeFails": ("decode", "for task 1 (id 19) raised KeyError: 12"),
    "DecodeGivesDict": ("decode", "decode returned an object for task 0 (id 8); it has to return a Prediction"),
    "UnknownLabel": ("valid", "huge"),
    "EncodePops": ("untouched", "encode changed task 0 (id 8)"),
    "ForwardSorts": ("untouched", "forward changed the list of inputs"),
    "DecodeMarks": ("untouched", "decode changed task 0 (id 8)"),
    "VersionEmpty": ("version", "version is ''"),
    "VersionChanges": ("version", "version changes"),
    "OtherVersionInPredictions": ("version", "predictions carry 'my model' as model_version"),
    "EmptyFails": ("empty", "raised ValueError: max() arg is an empty sequence"),
    "EmptyGivesOne": ("empty", "forward returned 1 outputs for 0 inputs"),
    "NormalisesOverBatch": ("batches", "In batches of one, 3 of 4 predictions are others: task 0 (id 8) gets"),
    "SortsOutputs": ("order", "In a batch in reverse order"),
    "Chance": ("again", "The second time"),
    "InstanceMatters": ("again", "From another instance"),
    "EncodeShares": ("threads", "With 8 threads that encode"),
    "EncodeInOneThread": ("threads", "in 8 threads at once, raised RuntimeError: already encoding"),
    "HashedLabels": ("process", "In a process of its own"),
    "DiesElsewhere": ("process", "died: exit code 9"),
    "PredictionIsNotPicklable": ("process", "cannot be pickled (not me)"),
    "FitFails": ("fit", "with 5 examples held out, raised ZeroDivisionError"),
    "FitNeedsHoldout": ("fit", "with 0 examples held out, raised IndexError"),
    "FitShuffles": ("fit", "fit changed the annotated tasks"),
    "FitGivesNothing": ("fit", "fit returned null"),
    "StateIsNoJson": ("state", "not JSON at 'classes'"),
    "SavesNothing": ("reload", "raised FileNotFoundError"),
    "LearnsByChance": ("repeatable", "Trained a second time"),
    "RemembersPath": ("moved", "after its folder was moved, the model raised FileNotFoundError"),
    "WrongOnceTrained": ("valid", "once trained, the prediction for task 0 (id 8) would not be imported"),
}
ALSO_VIOLATED = {"SortsOutputs": {"batches"}}  # outputs in a wrong order are wrong in batches of one as well


def check_broken(name: str, **options: Any) -> ContractBroken:
    """Check a model of `broken_models` that breaks the contract; return the error."""
    with pytest.raises(ContractBroken) as caught:
        check(name, **options)
    return caught.value


def check(name: str, **options: Any) -> None:
    """Check a model of `broken_models`."""
    model_class = getattr(broken_models, name)
    training = {"annotated": ANNOTATED} if issubclass(model_class, broken_models.Learner) else {}
    check_model(model_class, **({"label_config": models.TEXT_CONFIG, "tasks": TASKS} | training | options))


@pytest.mark.parametrize("name", ["Lengths", "Learner"])
def test_model_that_keeps_the_contract_passes(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", BROKEN)
def test_report_names_the_violated_clause_only(name: str) -> None:
    clause, sentence = BROKEN[name]
    error = check_broken(name)
    violated = {violation.clause.name for violation in error.violations}
    assert clause in violated
    assert violated - {clause} <= ALSO_VIOLATED.get(name, set()), error
    assert sentence in str(error)


def test_every_clause_is_tested_and_has_a_requirement() -> None:
    clauses = [*CLAUSES, *TRAINING_CLAUSES]
    assert {clause for clause, _ in BROKEN.values()} == {clause.name for clause in clauses} - {"spec"}
    assert all(clause.requirement.endswith(".") and "\n" not in clause.requirement for clause in clauses)


def test_large_spec_is_a_violation() -> None:
    spec = find_model("tests.helpers.broken_models:Lengths", {"limit": 10})
    large = pickle.loads(pickle.dumps(spec))
    large.state["vocabulary"] = ["word" * 100 + str(n) for n in range(10_000)]
    with pytest.raises(ContractBroken, match=r"the pickled spec has 4,.* bytes"):
        check_model(large, label_config=models.TEXT_CONFIG, tasks=TASKS)


TEXTS = [{"text": "word " * n} for n in (1, 8, 3, 7, 2)]


@pytest.mark.parametrize(
    ("name", "config", "tasks"),
    [
        ("Words", models.TEXT_CONFIG, TEXTS),
        ("Script", models.TEXT_CONFIG, TEXTS),
        ("Fragile", models.TEXT_CONFIG, TEXTS),
        ("TwoStage", models.OCR_CONFIG, [{"image": text} for text in ("one 22 three", "", "4", "a 1 b 2")]),
    ],
)
def test_models_of_every_kind_pass(name: str, config: str, tasks: list[dict[str, Any]]) -> None:
    check_model(f"{models.__file__}:{name}", label_config=config, tasks=tasks)


def test_model_with_images_needs_a_media_root(tmp_path: Path) -> None:
    for level in (0, 80, 160, 240):
        (tmp_path / f"{level}.pgm").write_bytes(b"P5\n4 4\n255\n" + bytes([level]) * 16)
    tasks = [{"image": f"{level}.pgm"} for level in (0, 160, 80, 240)]
    config = LabelConfig.parse(models.IMAGE_CONFIG)
    check_model(f"{models.__file__}:Brightness", label_config=config, tasks=tasks, media_root=tmp_path)
    with pytest.raises(ContractBroken, match=r"task 0 points to 0\.pgm, and check_model was given no media_root"):
        check_model(f"{models.__file__}:Brightness", label_config=config, tasks=tasks)


def test_text_classifier_passes_untrained_and_trained(ticket_model: Path) -> None:
    config = EXAMPLE / "label_config.xml"
    tasks = list(islice(read_tasks(str(EXAMPLE / "annotated.json")), 40))
    check_model("text-classifier", label_config=config, tasks=tasks[:12], annotated=tasks)
    check_model(str(ticket_model), label_config=config, tasks=tasks[:12])


def test_report_lists_violations_and_requirements() -> None:
    error = check_broken("SortsOutputs")
    first, *rest = str(error).splitlines()
    assert first == "tests.helpers.broken_models:SortsOutputs breaks 2 clauses of the contract: batches, order."
    assert any(line.strip().startswith("The contract: Outputs are in the order") for line in rest)
    assert isinstance(error, AssertionError)
    assert isinstance(error, LsmlError)
    assert pickle.loads(pickle.dumps(error)).message == error.message


def test_report_shows_the_line_of_the_models_exception() -> None:
    error = check_broken("DecodeFails")
    assert isinstance(error.__cause__, KeyError)
    assert 'in decode: return self.make_prediction({1: "short"}[output], 0.5, task, binding))' in str(error)
    assert "There may be more" in str(error)


def test_pytest_shows_the_report_and_the_models_traceback(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "from lsml_cli import check_model\n"
        "def test_it():\n"
        f"    check_model('{broken_models.__file__}:DecodeFails', tasks=[{{'text': 'a'}}, {{'text': 'bb'}}],\n"
        f"                label_config={models.TEXT_CONFIG!r})\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_it.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 1
    assert "decode: for task 1 raised KeyError: 2" in run.stdout
    assert "broken_models.py:" in run.stdout
    assert "testing/__init__.py:" not in run.stdout


SHOUTING = """
from lsml_cli import Model, Prediction, load_model
from lsml_cli.testing import check_model

print("imported")

class Shouting(Model):
    def forward(self, inputs, binding):
        return [task.data["text"].isupper() for task in inputs]

    def decode(self, output, task, binding):
        control = binding.config.only("Choices")
        region = control.region(task, {"choices": ["long" if output else "short"]}, score=1.0)
        return Prediction.of((region,), self.version)
"""
CHECK = f"""
check_model(MODEL, label_config={models.TEXT_CONFIG!r}, tasks=[{{"text": "HELLO"}}, {{"text": "hello"}}])
print("kept")
"""
PREDICT = f"""
with load_model(MODEL, {models.TEXT_CONFIG!r}, workers=2) as model:
    print(len(list(model.predict([{{"text": "HELLO"}}, {{"text": "hello"}}]))))
"""


def run_script(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script as its author would: python my_check.py."""
    (folder / "my_check.py").write_text(script)
    command = [sys.executable, "my_check.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_script_checks_the_model_that_it_defines_without_a_guard(tmp_path: Path) -> None:
    run = run_script(tmp_path, SHOUTING + CHECK.replace("MODEL", "Shouting"))
    assert (run.stdout, run.stderr) == ("imported\nimported\nkept\n", "")  # once here, once in the model's process


def test_script_checks_the_model_of_another_file_without_a_guard(tmp_path: Path) -> None:
    (tmp_path / "shouting.py").write_text(SHOUTING)
    imports = "from lsml_cli.testing import check_model\nprint('script')\n"
    run = run_script(tmp_path, imports + CHECK.replace("MODEL", "'shouting.py:Shouting'"))
    assert run.stderr == ""
    assert run.stdout.count("kept") == run.stdout.count("script") == 1


def test_script_from_standard_input_is_told_to_use_a_file() -> None:
    script = SHOUTING + CHECK.replace("MODEL", "Shouting")
    run = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, timeout=60, check=False)
    assert "it is in no file. Write the class into a file." in run.stderr


def test_missing_guard_around_load_model_is_explained(tmp_path: Path) -> None:
    run = run_script(tmp_path, SHOUTING + PREDICT.replace("MODEL", "Shouting"))
    assert run.returncode == 1
    assert 'put what it runs below `if __name__ == "__main__":`, or keep the model in a file of its own' in run.stderr


def test_script_that_does_not_define_the_model_needs_no_guard(tmp_path: Path) -> None:
    (tmp_path / "shouting.py").write_text(SHOUTING)
    imports = "from lsml_cli import load_model\n"
    run = run_script(tmp_path, imports + PREDICT.replace("MODEL", "'shouting.py:Shouting'"))
    assert (run.stdout.splitlines()[-1], run.stderr) == ("2", "")


def test_media_of_a_class_of_the_script_reach_the_processes(tmp_path: Path) -> None:
    (tmp_path / "shouting.py").write_text(SHOUTING)
    script = (
        "from pathlib import Path\nfrom lsml_cli import load_model\nfrom lsml_cli.media.fetcher import Media\n\n\n"
        "class Own(Media):\n    pass\n\n\nif __name__ == '__main__':\n    "
    )
    predict = (
        PREDICT.strip().replace("MODEL", "'shouting.py:Shouting'").replace("workers=2", "workers=2, media=Own(Path())")
    )
    run = run_script(tmp_path, script + predict.replace("\n", "\n    "))
    assert (run.stdout.splitlines()[-1:], run.stderr) == (["2"], "")


def test_class_of_a_script_has_the_digest_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text("LABEL = 'short'\n")
    own = "import words\nfrom lsml_cli import find_model\nfrom lsml_cli.registry.resolve import class_spec\n"
    script = own + SHOUTING + "\nprint(class_spec(Shouting).digest)\n"
    run = run_script(tmp_path, script)
    assert run.stdout.splitlines()[-1] == find_model(f"{tmp_path / 'my_check.py'}:Shouting").digest


def test_unusable_arguments_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="at least two tasks"):
        check("Lengths", tasks=TASKS[:1])
    with pytest.raises(UsageError, match="needs annotated tasks"):
        check("Learner", annotated=None)
    with pytest.raises(UsageError, match="has to be trained"):
        check("Learner", annotated=())
    with pytest.raises(UsageError, match="None of the tasks in annotated"):
        check("Learner", annotated=TASKS)
    with pytest.raises(UsageError, match="does not override fit"):
        check("Lengths", annotated=ANNOTATED)
    with pytest.raises(UsageError, match=r"Task 1 cannot be read: not JSON.*Leave it out, or correct it"):
        check("Lengths", tasks=[{"text": "a"}, {"text": object()}])
    with pytest.raises(UsageError, match="has no parameter 'limits'"):
        check("Lengths", params={"limits": 3})
    with pytest.raises(ContractBroken, match="bind refuses the label config that it is checked with"):
        check("Lengths", label_config=models.OCR_CONFIG)


def test_class_that_no_other_process_can_import_is_refused() -> None:
    class Inner(broken_models.Lengths):
        pass

    with pytest.raises(ModelError, match="top level of a file"):
        check_model(Inner, label_config=models.TEXT_CONFIG, tasks=TASKS)


def test_annotated_tasks_are_trained_on() -> None:
    check("Learner", tasks=ANNOTATED, annotated=None)


def test_every_built_in_model_is_checked_somewhere() -> None:
    checked = (
        {"text-classifier"} | {"image-classifier"} | {"object-detector", "ocr"}
    )  # here, tests/models, tests/openmmlab
    assert set(BUILT_IN) == checked, "call check_model with it, then add its name"
