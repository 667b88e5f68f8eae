from __future__ import annotations

import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array  # type: ignore[import-untyped]
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from lsml_cli.errors import LabelMismatch, ModelError, UsageError
from lsml_cli.models.base import Binding, Model
from lsml_cli.models.choices.heads import ChoicesBinding, Head, bind_trained_heads
from lsml_cli.models.spec import ModelSpec
from lsml_cli.models.text_classifier import binding as binding_module
from lsml_cli.models.text_classifier import linear
from lsml_cli.models.text_classifier.texts import read_text, visible_text
from lsml_cli.models.text_classifier.tfidf import TOKEN, Tfidf, tokens
from lsml_cli.registry.resolve import find_model
from lsml_cli.schema.label_config import Label, LabelConfig, Object
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import AnnotatedTask, Annotation, Task

SPEC = ModelSpec("text-classifier", "lsml_cli.models.text_classifier.model:TextClassifier", "0" * 32)
ANIMALS = {
    "ant": ["an ant hill", "ants march in lines", "the ant carries a leaf", "red ants bite!"],
    "bee": ["a bee hive", "bees make honey", "the bee flies to a flower", "a bee sting hurts!"],
    "cat": ["the cat sleeps", "cats chase mice", "a cat purrs on the sofa", "black cat at night"],
}
TEXTS = [text for texts in ANIMALS.values() for text in texts]
UNSEEN = ["an ant on a flower", "honey!", "does the CAT sleep?", "zzz", "a bee and a cat", "the " * 50]


def config(*choices: str, extra: str = "", attrs: str = "", name: str = "animal") -> LabelConfig:
    inner = "".join(choice if choice.startswith("<") else f'<Choice value="{choice}"/>' for choice in choices)
    control = f'<Choices name="{name}" toName="text" {attrs}>{inner}</Choices>'
    return LabelConfig.parse(f'<View><Text name="text" value="$text"/>{control}{extra}</View>')


def task(text: Any, index: int = 0, **data: Any) -> Task:
    return Task(index, index + 100, {"text": text, **data}, {})


def example(text: str, choices: Mapping[str, Sequence[str]], **data: Any) -> AnnotatedTask:
    result = [
        {"from_name": name, "to_name": "text", "type": "choices", "value": {"choices": list(names)}}
        for name, names in choices.items()
    ]
    return AnnotatedTask(task(text, **data), Annotation(1, result))


def animals(name: str = "animal") -> list[AnnotatedTask]:
    return [example(text, {name: [animal]}) for animal, texts in ANIMALS.items() for text in texts]


def fitted(
    folder: Path,
    examples: Sequence[AnnotatedTask],
    labels: LabelConfig,
    messages: list[str] | None = None,
    **params: Any,
) -> ModelSpec:
    folder.mkdir(exist_ok=True)
    spec = replace(SPEC, params=params)
    model = spec.build()
    progress = messages.append if messages is not None else lambda sentence: None
    state = model.fit(examples, [], model.bind(labels, {}, None), folder, progress)
    return replace(spec, path=folder, state=json.loads(json.dumps(state)), version="1")


def opened(spec: ModelSpec, labels: LabelConfig, label_map: Mapping[str, str] | None = None) -> tuple[Model, Binding]:
    model = spec.open("cpu")
    return model, model.bind(labels, label_map or {}, None)


def predict(model: Model, binding: Binding, tasks: Sequence[Task]) -> list[Prediction]:
    outputs = model.forward([model.encode(task, binding, {}) for task in tasks], binding)
    predictions = [model.decode(output, task, binding) for output, task in zip(outputs, tasks, strict=True)]
    assert [binding.config.check(prediction) for prediction in predictions] == [None] * len(tasks)
    return predictions


def chosen(prediction: Prediction) -> dict[str, list[str]]:
    return {region.from_name: region.value["choices"] for region in prediction.result}


@pytest.fixture(scope="module")
def animal_spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return fitted(tmp_path_factory.mktemp("animals"), animals(), config(*ANIMALS))


# --- tokens and rows


@given(st.text(alphabet=st.characters(codec=None)))
def test_fast_and_full_pattern_find_the_same_tokens(text: str) -> None:
    assert list(tokens(text)) == re.findall(TOKEN, text.lower())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm 2 good, U?!", ["i", "'", "m", "2", "good", ",", "u", "?!"]),
        ("£100 :) 😀", ["£", "100", ":)", "😀"]),
        ("今天天气abc", ["今", "天", "天", "气", "abc"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("cafe\u0301 นก", ["cafe\u0301", "น", "ก"]),
    ],
)
def test_tokens_of_many_scripts(text: str, expected: list[str]) -> None:
    assert list(tokens(text)) == expected


def test_long_text_has_the_tokens_of_its_parts() -> None:
    part = "some words, 100 £ 今天 "
    assert list(tokens(part * 10_000)) == list(tokens(part)) * 10_000


def names_of(tfidf: Tfidf) -> list[str]:
    words = list(tfidf.tokens)
    names = list(words)
    for table in tfidf.tables:
        names += [f"{names[key // len(words)]} {words[key % len(words)]}" for key in table.tolist()]
    return names


@pytest.mark.parametrize("ngrams", [1, 2, 3])
@pytest.mark.parametrize("min_df", [1, 2])
def test_features_and_weights_equal_those_of_sklearn(ngrams: int, min_df: int) -> None:
    reference = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, ngrams), token_pattern=TOKEN, min_df=min_df)
    expected = reference.fit_transform(TEXTS)
    tfidf, rows = Tfidf.fit(TEXTS, ngrams=ngrams, min_df=min_df, max_features=None)
    names = names_of(tfidf)
    assert sorted(names) == sorted(reference.vocabulary_)
    order = [reference.vocabulary_[name] for name in names]
    for actual, desired in ((rows, expected), (tfidf.transform(["", *UNSEEN]), reference.transform(["", *UNSEEN]))):
        matrix = csr_array((actual.weight, (actual.row, actual.feature)), shape=(desired.shape[0], len(names)))
        np.testing.assert_allclose(matrix.toarray(), desired.toarray()[:, order], atol=1e-12)


def test_max_features_keeps_the_most_frequent_and_their_parts() -> None:
    texts = ["a b a b c", "a b d", "e f g h", "a c"]
    names = names_of(Tfidf.fit(texts, ngrams=2, min_df=1, max_features=4)[0])
    assert names == ["a", "b", "c", "a b"]  # 4, 3, 2 and 3 times


@settings(max_examples=30)
@given(texts=st.lists(st.text(alphabet="ab cat bee!今", max_size=30), max_size=8))
def test_scores_are_independent_of_the_batch(animal_spec: ModelSpec, texts: list[str]) -> None:
    model, binding = opened(animal_spec, config(*ANIMALS))
    inputs = [(text,) for text in texts]
    together = model.forward(inputs, binding)
    assert together == [output for text in inputs for output in model.forward([text], binding)]


# --- the linear part


def probabilities(spec: ModelSpec, labels: LabelConfig, texts: Sequence[str]) -> np.ndarray:
    """(n, K) in the order of the model's classes, whatever the control wants of them."""
    model, binding = opened(spec, labels)
    binding.threshold = 0.0
    return np.array([output for (output,) in model.forward([(text,) for text in texts], binding)])


def reference(pipeline_end: Any, answers: Any) -> np.ndarray:
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=TOKEN)
    pipeline = make_pipeline(vectorizer, pipeline_end).fit(TEXTS, answers)
    expected: np.ndarray = pipeline.predict_proba(TEXTS + UNSEEN)
    return expected


@pytest.mark.parametrize("count", [2, 3])
def test_probabilities_of_single_choices_equal_those_of_sklearn(tmp_path: Path, count: int) -> None:
    classes = list(ANIMALS)[:count]
    answers = [classes[i // 4 % count] for i in range(len(TEXTS))]
    labels = config(*classes)
    examples = [example(text, {"animal": [answer]}) for text, answer in zip(TEXTS, answers, strict=True)]
    spec = fitted(tmp_path, examples, labels)
    expected = reference(LogisticRegression(C=30, max_iter=1000), answers)
    actual = probabilities(spec, labels, TEXTS + UNSEEN)
    np.testing.assert_array_equal(actual[:, 0], expected.argmax(axis=1))
    np.testing.assert_allclose(actual[:, 1], expected.max(axis=1), atol=1e-6)


def test_probabilities_of_multiple_choices_equal_those_of_sklearn(tmp_path: Path) -> None:
    classes = list(ANIMALS)
    truth = np.array([[name in text for name in classes] for text in TEXTS], int)
    labels = config(*classes, attrs='choice="multiple"')
    examples = [
        example(text, {"animal": [name for name in classes if name in text]} if any(row) else {})
        for text, row in zip(TEXTS, truth, strict=True)
    ]
    spec = fitted(tmp_path, examples, labels)
    expected = reference(OneVsRestClassifier(LogisticRegression(C=30, max_iter=1000)), truth)
    np.testing.assert_allclose(probabilities(spec, labels, TEXTS + UNSEEN), expected, atol=1e-6)


def test_predicting_does_not_import_sklearn(animal_spec: ModelSpec) -> None:
    code = f"""
import pickle, sys
from lsml_cli.registry.resolve import find_model
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import Task
spec = pickle.loads({__import__("pickle").dumps(animal_spec)!r})
config = LabelConfig.parse({config(*ANIMALS).xml!r})
assert "numpy" not in sys.modules
model = spec.open("cpu")
binding = model.bind(config, {{}}, None)
task = Task(0, 1, {{"text": "an ant"}}, {{}})
[output] = model.forward([model.encode(task, binding, {{}})], binding)
print(model.decode(output, task, binding).result[0].value["choices"])
assert not {{"sklearn", "scipy"}} & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("['ant']\n", "")


# --- binding


def test_classes_map_to_labels_by_alias_predicted_values_and_label_map(animal_spec: ModelSpec) -> None:
    labels = config(
        '<Choice value="Die Ameise" alias="ant"/>',
        '<Choice value="Biene" predicted_values="bee, wasp"/>',
        "Katze",
        "Dog",
    )
    model, binding = opened(animal_spec, labels, {"cat": "Katze"})
    texts = ["ants march", "bees make honey", "the cat purrs"]
    predictions = predict(model, binding, [task(text) for text in texts])
    assert [chosen(prediction)["animal"] for prediction in predictions] == [
        ["ant"],
        ["Biene"],
        ["Katze"],
    ]
    assert binding.notes == ('Never predicted, because the model does not know them, of <Choices name="animal">: Dog.',)


@pytest.mark.parametrize("labels", [("ant", "bee"), ("bee", "ant", "dog"), ("ant",)])
def test_nothing_is_predicted_where_the_best_class_has_no_label(
    animal_spec: ModelSpec, labels: tuple[str, ...]
) -> None:
    whole = predict(*opened(animal_spec, config(*ANIMALS)), [task("ants march")])[0]
    model, binding = opened(animal_spec, config(*labels))
    known, dropped = predict(model, binding, [task("ants march"), task("the cat purrs")])
    assert chosen(known) == {"animal": ["ant"]}
    assert known.score == whole.score  # not renormalised
    assert (dropped.result, dropped.score) == ((), None)


def test_dropped_classes_are_named_with_the_consequence(animal_spec: ModelSpec) -> None:
    _, binding = opened(animal_spec, config("ant", "bee"))
    dropped = 'Dropped 1 of the model\'s 3 classes, for which <Choices name="animal"> has no label: cat.'
    assert binding.notes == (f"{dropped} Where one of them is the best, nothing is predicted.",)
    _, binding = opened(animal_spec, config("ant", "bee", attrs='choice="multiple"'))
    assert binding.notes == (dropped,)


def test_dropped_classes_keep_their_probability_in_multiple_choices(animal_spec: ModelSpec) -> None:
    model, binding = opened(animal_spec, config("ant", attrs='choice="multiple"'))
    ant, cat = predict(model, binding, [task("ants march"), task("the cat purrs")])
    assert chosen(ant) == {"animal": ["ant"]}
    assert cat.result == ()


def test_no_common_label_shows_both_lists(animal_spec: ModelSpec) -> None:
    with pytest.raises(LabelMismatch) as caught:
        opened(animal_spec, config("dog", "eel"))
    assert '"animal": ant, bee, cat' in caught.value.message
    assert '"animal": dog, eel' in caught.value.message
    assert "--label-map" in (caught.value.hint or "")


def test_single_control_of_another_name_matches(animal_spec: ModelSpec) -> None:
    model, binding = opened(animal_spec, config(*ANIMALS, name="beast"))
    assert chosen(predict(model, binding, [task("ants march")])[0]) == {"beast": ["ant"]}
    second = '<Choices name="other" toName="text"><Choice value="ant"/></Choices>'
    with pytest.raises(LabelMismatch, match="not clear which control"):
        opened(animal_spec, config(*ANIMALS, name="beast", extra=second))
    _, binding = opened(animal_spec, config(*ANIMALS, extra=second))
    assert binding.notes == ('The model was not trained for <Choices name="other">: no predictions there.',)


def test_config_without_text_choices_is_refused() -> None:
    for xml in (
        '<View><Image name="i" value="$i"/><Choices name="c" toName="i"><Choice value="a"/></Choices></View>',
        '<View><Text name="t" value="$t"/><Labels name="l" toName="t"><Label value="a"/></Labels>'
        '<Choices name="c" toName="t" perRegion="true"><Choice value="a"/></Choices></View>',
    ):
        with pytest.raises(LabelMismatch, match="fills <Choices> that are about <Text>") as caught:
            opened(SPEC, LabelConfig.parse(xml))
        assert '<Choices name="c"> about <' in caught.value.message
    urls = '<Text name="t" value="$t" valueType="url"/><Choices name="c" toName="t"><Choice value="a"/></Choices>'
    with pytest.raises(LabelMismatch, match="texts from addresses is not supported yet"):
        opened(SPEC, LabelConfig.parse(f"<View>{urls}</View>"))


# --- encode and decode


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (None, 'the task has null for "text"'),
        (5, '"text" is a number (5), but <Text name="text" value="$text"> wants text'),
        (True, '"text" is true, but'),
        (["a"], '"text" is a list, but'),
        ({}, '"text" is an object, but'),
    ],
)
def test_value_that_is_no_text_is_refused(animal_spec: ModelSpec, value: Any, sentence: str) -> None:
    model, binding = opened(animal_spec, config(*ANIMALS))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        model.encode(task(value), binding, {})


def test_missing_key_is_refused(animal_spec: ModelSpec) -> None:
    model, binding = opened(animal_spec, config(*ANIMALS))
    with pytest.raises(ValueError, match='the task has no "text"'):
        model.encode(Task(0, 1, {"txt": "x"}, {}), binding, {})


def test_no_tasks_are_predicted(animal_spec: ModelSpec) -> None:
    model, binding = opened(animal_spec, config(*ANIMALS))
    assert list(model.forward([], binding)) == []


@pytest.mark.parametrize("attrs", ["", 'choice="multiple"'])
@pytest.mark.parametrize("is_trained", [True, False])
def test_nothing_is_predicted_for_empty_text(animal_spec: ModelSpec, is_trained: bool, attrs: str) -> None:
    model, binding = opened(animal_spec if is_trained else SPEC, config(*ANIMALS, attrs=attrs))
    binding.threshold = 0.0
    empty = ["", " ", "\n\t \u3000\xa0"]
    predictions = predict(model, binding, [task(text) for text in [*empty, "an ant"]])
    assert [len(prediction.result) for prediction in predictions] == [0, 0, 0, 1]
    assert [prediction.score for prediction in predictions[:3]] == [None] * 3


def test_empty_text_does_not_affect_controls_over_another_text() -> None:
    moods = '<HyperText name="page" value="$page"/><Choices name="mood" toName="page"><Choice value="good"/>'
    model, binding = opened(SPEC, config("ant", "bee", extra=f'{moods}<Choice value="bad"/></Choices>'))
    first, second = predict(model, binding, [task("ant", page="<p>&nbsp;<br/></p>"), task(" ", page="<b>bad</b>")])
    assert chosen(first) == {"animal": ["ant"]}
    assert chosen(second) == {"mood": ["bad"]}


def test_single_choice_below_the_threshold_is_dropped(animal_spec: ModelSpec) -> None:
    model, binding = opened(animal_spec, config(*ANIMALS))
    binding.threshold = 0.6
    above, below = predict(model, binding, [task("ants march in lines"), task("zzz")])
    assert chosen(above) == {"animal": ["ant"]}
    assert (below.result, below.score) == ((), None)


def test_multiple_choices_are_one_region_in_config_order(tmp_path: Path) -> None:
    labels = config("cat", "bee", "ant", attrs='choice="multiple"')
    both = [example(f"{a} {b}", {"animal": ["ant", "bee"]}) for a, b in zip(*list(ANIMALS.values())[:2], strict=True)]
    spec = fitted(tmp_path, [*animals(), *both, example("stones", {})], labels)
    model, binding = opened(spec, labels)
    two, none = predict(model, binding, [task("ants and the bee, red ants and honey"), task("stones")])
    assert chosen(two) == {"animal": ["bee", "ant"]}
    assert two.score == two.result[0].score
    assert none.result == ()
    binding.threshold = 0.0
    everything = predict(model, binding, [task("stones")])[0]
    assert chosen(everything) == {"animal": ["cat", "bee", "ant"]}
    assert everything.score is not None
    assert everything.score < 0.5


def test_text_hypertext_and_paragraphs_are_read() -> None:
    page = Object("p", "HyperText", "$html")
    html = "<style>p {x}</style><p class='a'>Fish &amp; <b>chips</b><!-- no --><SCRIPT>if (a<b) {}</SCRIPT>!"
    assert read_text(page, {"html": html}).split() == ["Fish", "&", "chips", "!"]
    talk = Object("d", "Paragraphs", "$talk", {"nameKey": "who", "textKey": "said"})
    turns = [{"who": "Ann", "said": "hello"}, {"who": "Bob", "said": "bye"}]
    assert read_text(talk, {"talk": turns}) == "hello\nbye"
    for broken, sentence in ((["x"], 'without a text under "said"'), ("x", "is a string, but")):
        with pytest.raises(ValueError, match=sentence):
            read_text(talk, {"talk": broken})


@pytest.mark.parametrize(
    "text", ["<" * 200_000, "<a" * 100_000, "<script" * 50_000, "<!--" * 100_000, "<" + "a" * 1_000_000]
)
@pytest.mark.timeout(10)
def test_malformed_html_is_read_in_linear_time(text: str) -> None:
    visible_text(text)


# --- untrained


def test_untrained_model_predicts_from_label_names() -> None:
    moods = '<Choice value="VeryGood" alias="plus"/><Choice value="bad"/>'
    second = f'<Choices name="mood" toName="text" choice="multiple">{moods}</Choices>'
    model, binding = opened(SPEC, config("order_status", "Refund", extra=second))
    assert len(binding.notes) == 1
    assert "untrained" in binding.notes[0]
    texts = ["what is the status of my order", "REFUND, bad bad", "very good", "nothing"]
    predictions = predict(model, binding, [task(text) for text in texts])
    assert chosen(predictions[0]) == {"animal": ["order_status"]}
    assert chosen(predictions[1]) == {"animal": ["Refund"], "mood": ["bad"]}
    assert chosen(predictions[2])["mood"] == ["plus"]
    assert predictions[3].score == pytest.approx(0.5, abs=0.01)


def test_untrained_model_without_labels_predicts_nothing() -> None:
    model, binding = opened(SPEC, config(attrs='value="$options"'))
    assert "no predictions there" in binding.notes[1]
    assert predict(model, binding, [task("x")])[0].result == ()


@pytest.mark.parametrize(("attrs", "said"), [("", []), ('choice="multiple"', ["spam"])])
def test_untrained_model_does_not_choose_from_a_single_label(attrs: str, said: list[str]) -> None:
    model, binding = opened(SPEC, config("spam", attrs=attrs))
    assert ("has a single label, so there is nothing to choose from" in binding.notes[-1]) is not bool(said)
    assert binding.can_predict is bool(said)
    this, other = predict(model, binding, [task("this is spam"), task("hello")])
    assert chosen(this).get("animal", []) == said
    assert other.result == ()


def numbered_labels(count: int) -> list[str]:
    return [f"{'abcdefghij'[i % 10]}{i // 10} part {i}" for i in range(count)]


@pytest.mark.parametrize("attrs", ["", 'choice="multiple"'])
def test_untrained_model_of_5000_labels_finds_each_name_in_little_memory(attrs: str) -> None:
    names = numbered_labels(5000)
    model, binding = opened(SPEC, config(*names, attrs=attrs))
    wanted = names[::600]
    tracemalloc.start()
    predictions = predict(model, binding, [task(f"the {name}!") for name in wanted])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [chosen(prediction)["animal"] for prediction in predictions] == [[name] for name in wanted]
    assert peak < 50_000_000  # bytes; fitted weights took 10 GB


def test_untrained_model_of_50000_labels_needs_little_memory(tmp_path: Path) -> None:
    names = numbered_labels(50_000)
    (tmp_path / "config.xml").write_text(config(*names).xml)
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps({"text": name}) + "\n" for name in names[::5000]))
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from lsml_cli.cli import main; main()"
    )
    options = ["tasks.jsonl", "-m", "text-classifier", "-c", "config.xml", "-o", "out.jsonl", "--device", "cpu"]
    run = subprocess.run(
        [sys.executable, "-c", code, "predict", *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    found = [record["predictions"][0]["result"][0]["value"]["choices"] for record in records]
    assert found == [[name] for name in names[::5000]]


def test_too_many_labels_for_an_untrained_model_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding_module, "MAX_UNTRAINED_LABELS", 2)
    opened(SPEC, config("a", "b"))
    with pytest.raises(ModelError, match="at most 2 labels, and the label config has 3") as caught:
        opened(SPEC, config("a", "b", "c"))
    assert "lsml fit" in (caught.value.hint or "")


@pytest.mark.timeout(20)
def test_50000_classes_are_bound_in_linear_time() -> None:
    names = tuple(numbered_labels(50_000))
    head = Head("animal", "text", 0, 0, names, False)
    labels = tuple(Label(name.title(), name) for name in names)
    control = replace(config().only("Choices"), labels=labels)
    labels_only = LabelConfig("<View/>", {"animal": control}, config().objects)
    bound = bind_trained_heads(ChoicesBinding(labels_only), [(control, config().objects["text"])], [head])
    assert bound.head_bindings[0].labels == names
    assert not bound.notes


# --- fit


def test_fit_beyond_the_memory_of_the_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "physical_memory", lambda: 10_000)
    with pytest.raises(ModelError, match="Fitting 3 classes on") as caught:
        fitted(tmp_path, animals(), config(*ANIMALS))
    assert caught.value.hint == "Keep the most frequent features only: --with max_features=15."
    fitted(tmp_path, animals(), config(*ANIMALS), max_features=15)


def test_training_is_reproducible_to_the_byte(tmp_path: Path, animal_spec: ModelSpec) -> None:
    again = fitted(tmp_path, animals(), config(*ANIMALS))
    assert again.state == animal_spec.state
    assert animal_spec.path
    for file in ("weights.safetensors", "vocabulary.json"):
        assert (tmp_path / file).read_bytes() == (animal_spec.path / file).read_bytes()


def test_controls_over_one_text_share_its_vocabulary(tmp_path: Path) -> None:
    labels = LabelConfig.parse(
        '<View><Text name="text" value="$text"/><HyperText name="page" value="$page"/>'
        '<Choices name="animal" toName="text"><Choice value="ant"/><Choice value="bee"/><Choice value="cat"/></Choices>'
        '<Choices name="loud" toName="text" choice="multiple"><Choice value="yes"/></Choices>'
        '<Choices name="kind" toName="page"><Choice value="x"/><Choice value="y"/></Choices>'
        '<Choices name="empty" toName="page"><Choice value="x"/><Choice value="y"/></Choices></View>'
    )
    examples = [
        example(
            text,
            {"animal": [animal], "loud": ["yes"] if "!" in text else [], "kind": ["x" if i % 2 else "y"]},
            page=f"<b>{'odd' if i % 2 else 'even'}</b> page",
        )
        for animal, texts in ANIMALS.items()
        for i, text in enumerate(texts)
    ]
    messages: list[str] = []
    spec = fitted(tmp_path, examples, labels, messages)
    assert 'No annotation has a usable answer for <Choices name="empty">. It is left out.' in messages
    assert len(json.loads((tmp_path / "vocabulary.json").read_text())) == 2
    model, binding = opened(spec, labels)
    [prediction] = predict(model, binding, [task("ants bite!", page="<i>odd</i>")])
    assert chosen(prediction) == {"animal": ["ant"], "loud": ["yes"], "kind": ["x"]}
    assert prediction.score == pytest.approx(np.mean([region.score for region in prediction.result if region.score]))


def test_annotations_with_alias_or_value_count_and_old_labels_are_ignored(tmp_path: Path) -> None:
    labels = config('<Choice value="Ant" alias="a"/>', '<Choice value="Bee" alias="b"/>')
    texts = [("ants", "Ant"), ("an ant", "a"), ("bees", "b"), ("a bee", "Bee"), ("a cat", "Cat")]
    spec = fitted(tmp_path, [example(text, {"animal": [answer]}) for text, answer in texts], labels)
    assert spec.state["heads"][0]["classes"] == ["a", "b"]  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    ("examples", "sentence"),
    [
        ([example("x", {}), example("y", {})], 'No annotation has a usable answer for <Choices name="animal">.'),
        ([example("x", {"animal": ["ant"]})] * 3, 'All 3 answers for <Choices name="animal"> are "ant"; two different'),
        ([example("x", {"animal": ["ant"]})], 'The only answer for <Choices name="animal"> is "ant"; two different'),
        ([example("x", {"animal": ["old"]})], 'They choose "old", which it no longer has.'),
        ([], "No annotation has a usable answer"),
    ],
)
def test_nothing_to_learn_is_explained(tmp_path: Path, examples: list[AnnotatedTask], sentence: str) -> None:
    with pytest.raises(ModelError, match="There is nothing to learn") as caught:
        fitted(tmp_path, examples, config(*ANIMALS))
    assert sentence in caught.value.message


def test_texts_without_features_can_be_learned_from(tmp_path: Path) -> None:
    examples = [example(text, {"animal": [animal]}) for text, animal in [("a", "ant"), ("b", "bee"), ("c", "bee")]]
    spec = fitted(tmp_path, examples, config(*ANIMALS), min_df=2)
    assert chosen(predict(*opened(spec, config(*ANIMALS)), [task("x")])[0]) == {"animal": ["bee"]}


def test_empty_texts_are_not_learned_from(tmp_path: Path, animal_spec: ModelSpec) -> None:
    empty = [example(text, {"animal": ["cat"]}) for text in ["", " \n", "\u3000"]]
    messages: list[str] = []
    fitted(tmp_path, [*empty, *animals()], config(*ANIMALS), messages)
    assert messages == [
        'Not learned from 3 tasks, such as task 100: "text" is empty.',
        'Learning "animal" from 12 texts.',
    ]
    assert animal_spec.path
    weights = "weights.safetensors"
    assert (tmp_path / weights).read_bytes() == (animal_spec.path / weights).read_bytes()


def test_training_on_empty_texts_alone_is_refused_with_the_reason(tmp_path: Path) -> None:
    reason = 'nothing to learn. Not learned from 2 tasks, such as task 100: "text" is empty'
    with pytest.raises(ModelError, match=reason):
        fitted(tmp_path, [example("", {"animal": [name]}) for name in ("ant", "bee")], config(*ANIMALS))


@pytest.mark.parametrize(
    "params",
    [{"C": 0}, {"C": "x"}, {"C": True}, {"ngrams": 6}, {"ngrams": 1.5}, {"max_features": 0}, {"class_weight": "x"}],
)
def test_invalid_parameter_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(params))} must be"):
        find_model("text-classifier", params)


@pytest.mark.parametrize("file", ["weights.safetensors", "vocabulary.json"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"[[]]", b'[["a"]]'])
def test_damaged_weights_are_refused(tmp_path: Path, animal_spec: ModelSpec, file: str, content: bytes | None) -> None:
    fitted(tmp_path, animals(), config(*ANIMALS))
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelError, match="are damaged"):
        replace(animal_spec, path=tmp_path).open("cpu")


def test_unreadable_weights_are_not_called_damaged(tmp_path: Path, animal_spec: ModelSpec) -> None:
    fitted(tmp_path, animals(), config(*ANIMALS))
    for name in ("vocabulary.json", "weights.safetensors"):
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        with pytest.raises(ModelError, match=rf"{name} cannot be read: Is a directory\."):
            replace(animal_spec, path=tmp_path).open("cpu")


# --- real messages


def test_accuracy_on_unseen_sms_messages(tmp_path: Path, shared_data: Path) -> None:
    labels = LabelConfig.load(shared_data / "exports" / "sms-spam.xml")
    annotated = json.loads((shared_data / "exports" / "sms-spam-annotated.json").read_bytes())
    everything = json.loads((shared_data / "exports" / "sms-spam-all-tasks.json").read_bytes())
    lines = (shared_data / "sms-spam" / "messages.tsv").read_text(encoding="utf-8").rstrip("\n").split("\n")[1:]
    known = {item["id"] for item in annotated}
    examples = [
        AnnotatedTask(Task(i, item["id"], item["data"], {}), Annotation(1, item["annotations"][0]["result"]))
        for i, item in enumerate(annotated)
    ]
    spec = fitted(tmp_path, examples, labels)
    new = [(item, line) for item, line in zip(everything, lines, strict=True) if item["id"] not in known]
    assert len(new) == 1574
    truth = [line.split("\t")[0] for _, line in new]
    tasks = [Task(i, item["id"], item["data"], {}) for i, (item, _) in enumerate(new)]
    guess = [chosen(prediction)["kind"][0] for prediction in predict(*opened(spec, labels), tasks)]
    right = sum(a == b for a, b in zip(truth, guess, strict=True))
    spam = sum(a == b == "spam" for a, b in zip(truth, guess, strict=True))
    assert right / len(truth) >= 0.985
    assert 2 * spam / (truth.count("spam") + guess.count("spam")) >= 0.94
