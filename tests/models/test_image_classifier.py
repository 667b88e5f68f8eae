"""Test `image-classifier`: preprocessing, training, and its use through `lsml fit` and `lsml predict`."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from lsml_cli import check_model, find_model
from lsml_cli.errors import LabelMismatch, ModelError, TransientError, UsageError
from lsml_cli.inference.plan import PredictOptions, PredictPlan
from lsml_cli.inference.predict import predict_file
from lsml_cli.inference.predict_summary import PredictSummary
from lsml_cli.media.fetcher import Media
from lsml_cli.models.choices.heads import ChoicesBinding
from lsml_cli.models.choices.logistic import HeadTargets
from lsml_cli.models.image_classifier import backbones, inference
from lsml_cli.models.image_classifier.dataset import ImageDataset, ImageRef
from lsml_cli.models.image_classifier.inference import HeadColumns, Predictor, agreement
from lsml_cli.models.image_classifier.loss import MultiHeadLoss, balanced_weights
from lsml_cli.models.image_classifier.model import ImageClassifier
from lsml_cli.models.image_classifier.preprocessing import Preprocessing
from lsml_cli.models.media_reader import MediaReader
from lsml_cli.models.spec import ModelSpec
from lsml_cli.progress import ReportedTraining
from lsml_cli.registry import versions
from lsml_cli.registry.resolve import version_spec
from lsml_cli.runtime import DEFAULT_FETCH_THREADS, OUTAGE_THRESHOLD
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import AnnotatedTask, Annotation, Task
from lsml_cli.training.fit import FitResult, fit_version
from tests.helpers.cli import Lsml
from tests.helpers.processes import count_journaled, wait_for
from tests.helpers.progress import RecordingReporter

CONFIG = """<View><Image name="picture" value="$image"/>
  <Choices name="shape" toName="picture"><Choice value="Disc" alias="disc"/><Choice value="bars"/></Choices></View>"""
SMALL: dict[str, Any] = {"arch": "shufflenet_v2_x0_5", "weights": "none", "image_size": 32}  # 1 ms per image
WITH: list[str] = [part for name, value in SMALL.items() for part in ("--with", f"{name}={value}")]
COUNT = 80
SHAPES = ["disc", "bars"] * (COUNT // 2)
OFFLINE = {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}  # a closed port


def draw_shape(path: Path, shape: str, random: Random) -> None:
    image = Image.new("RGB", (48, 40), tuple(random.randrange(0, 90) for _ in range(3)))
    canvas = ImageDraw.Draw(image)
    color = tuple(random.randrange(150, 256) for _ in range(3))
    x, y = random.randrange(6, 16), random.randrange(4, 12)
    if shape == "disc":
        canvas.ellipse((x, y, x + 24, y + 24), fill=color)
    else:
        for offset in range(0, 24, 6):
            canvas.rectangle((x + offset, y, x + offset + 2, y + 24), fill=color)
    image.save(path)


def encode_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def annotated_task(number: int, **answers: str | list[str]) -> dict[str, Any]:
    result = [
        {
            "from_name": name,
            "to_name": "picture",
            "type": "choices",
            "value": {"choices": [labels] if isinstance(labels, str) else labels},
        }
        for name, labels in answers.items()
    ]
    return {"id": number, "data": {"image": f"{number}.png"}, "annotations": [{"id": number, "result": result}]}


def examples(tasks: Sequence[Mapping[str, Any]]) -> list[AnnotatedTask]:
    return [
        AnnotatedTask(Task(i, task["id"], task["data"], task), Annotation(i, task["annotations"][0]["result"]))
        for i, task in enumerate(tasks)
    ]


ANNOTATED = [annotated_task(number, shape=shape) for number, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return config.xml, annotated.json (80 images) and tasks.json (the same without annotations); read only."""
    folder = tmp_path_factory.mktemp("shapes")
    random = Random(0)
    for number, shape in enumerate(SHAPES):
        draw_shape(folder / f"{number}.png", shape, random)
    (folder / "config.xml").write_text(CONFIG)
    (folder / "annotated.json").write_text(json.dumps(ANNOTATED))
    (folder / "tasks.json").write_text(json.dumps([{"id": task["id"], "data": task["data"]} for task in ANNOTATED]))
    return folder


def fit_spec(
    folder: Path,
    media: Path,
    train: Sequence[Mapping[str, Any]] = ANNOTATED,
    holdout: Sequence[Mapping[str, Any]] = (),
    config: str = CONFIG,
    messages: list[str] | None = None,
    init_from: ModelSpec | None = None,
    **params: Any,
) -> ModelSpec:
    """Call `fit` of the model, and return the spec of the version in `folder`."""
    folder.mkdir(exist_ok=True)
    spec = replace(find_model("image-classifier", SMALL | params), init_from=init_from)
    model = spec.build()
    binding = model.bind(LabelConfig.parse(config), {}, None)
    binding.media = Media(media)
    progress: list[str] = [] if messages is None else messages
    state = model.fit(examples(train), examples(holdout), binding, folder, progress.append)
    return replace(spec, path=folder, state=json.loads(json.dumps(state)), version="1", init_from=None)


def predict_tasks(
    spec: ModelSpec, media: Path, tasks: Sequence[Mapping[str, Any]], config: str = CONFIG, **label_map: str
) -> list[Prediction]:
    model = spec.open("cpu")
    binding = model.bind(LabelConfig.parse(config), label_map, None)
    parsed = [Task(i, task["id"], task["data"], {}) for i, task in enumerate(tasks)]
    fetch = Media(media).fetch
    inputs = [model.encode(task, binding, {v: fetch(v) for v in model.media_refs(task, binding)}) for task in parsed]
    outputs = model.forward(inputs, binding)
    predictions = [model.decode(output, task, binding) for output, task in zip(outputs, parsed, strict=True)]
    assert [binding.config.check(task) for task in predictions] == [None] * len(tasks)
    return predictions


def chosen_labels(prediction: Prediction) -> dict[str, list[str]]:
    return {region.from_name: region.value["choices"] for region in prediction.result}


def accuracy(predictions: Sequence[Prediction]) -> float:
    return float(
        np.mean(
            [
                chosen_labels(prediction) == {"shape": [shape]}
                for prediction, shape in zip(predictions, SHAPES, strict=True)
            ]
        )
    )


@pytest.fixture(scope="module")
def spec(work: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """Return a head on frozen features, trained on all images."""
    return fit_spec(tmp_path_factory.mktemp("head"), work)


@pytest.fixture(scope="module")
def model(lsml: Lsml, work: Path) -> Path:
    """Return the same as a version written by `lsml fit`."""
    run = lsml(
        *("fit", work / "annotated.json", "--model", "image-classifier", "-c", work / "config.xml"),
        "-o",
        work / "head",
        *WITH,
    )
    assert run.returncode == 0, run.stderr
    return work / "head"


# --- preprocessing


@given(st.integers(1, 500), st.integers(1, 500), st.sampled_from(["resnet18", "efficientnet_b2", "swin_v2_t"]))
@settings(max_examples=60, deadline=None)
def test_pixels_equal_torchvision_preset_bit_for_bit(width: int, height: int, arch: str) -> None:
    preset = torchvision.models.get_model_weights(arch).DEFAULT.transforms()
    preprocessing = Preprocessing.from_preset(preset)
    image = noise_image(width, height)
    predictor = Predictor(torch.nn.Identity(), "cpu", preprocessing, "fp32")
    assert torch.equal(predictor.to_tensor([preprocessing.pixels(encode_png(image))])[0], preset(image))


def test_image_size_keeps_resize_to_crop_ratio() -> None:
    preprocessing = backbones.preprocessing_of("resnet18", 64)
    assert (preprocessing.resize, preprocessing.crop) == (73, 64)
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing
    assert all(
        backbones.preprocessing_of(arch).crop <= backbones.preprocessing_of(arch).resize
        for arch in backbones.architectures()
    )


def test_extreme_aspect_ratio_is_rejected_before_resizing() -> None:
    with pytest.raises(ValueError, match=r"too long and narrow: 1 x 4,000 pixels would be scaled to 256 x 1,024,000"):
        backbones.preprocessing_of("resnet18").pixels(encode_png(noise_image(1, 4_000)))


@given(st.integers(1, 300), st.integers(1, 300), st.integers())
@settings(max_examples=40, deadline=None)
def test_augmentation_of_any_image_size_is_deterministic(width: int, height: int, seed: int) -> None:
    preprocessing = backbones.preprocessing_of("resnet18", 32)
    content = encode_png(noise_image(width, height))
    once, again = (preprocessing.augmented_pixels(content, Random(seed)) for _ in range(2))
    assert once.shape == (32, 32, 3)
    assert np.array_equal(once, again)


def test_augmentation_depends_on_seed_not_on_thread() -> None:
    preprocessing = backbones.preprocessing_of("resnet18", 32)
    content = encode_png(noise_image(90, 120))
    here = [preprocessing.augmented_pixels(content, Random(seed)).tobytes() for seed in range(32)]
    assert len(set(here)) == 32
    with ThreadPoolExecutor(8) as pool:
        assert (
            list(pool.map(lambda seed: preprocessing.augmented_pixels(content, Random(seed)).tobytes(), range(32)))
            == here
        )


def test_scores_do_not_depend_on_batch_split() -> None:
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 4))
    preprocessing = backbones.preprocessing_of("resnet18", 32)
    pixels = [preprocessing.pixels(encode_png(noise_image(40, 40, seed))) for seed in range(21)]
    predictor = Predictor(net, "cpu", preprocessing, "fp32")
    whole = predictor.scores(pixels)
    assert whole.shape == (21, 4)
    np.testing.assert_allclose(
        np.concatenate([predictor.scores(pixels[:1]), predictor.scores(pixels[1:])]), whole, atol=1e-6
    )
    assert predictor.with_precision("bf16").scores(pixels).dtype == np.float32


def test_agreement_is_lowest_over_heads() -> None:
    first = np.array([[5, 1, 0.3, -1], [0, 1, 0.3, 1]], dtype=np.float32)
    second = np.array([[9, 1, 0.2, -2], [0, 1, -0.3, 1]], dtype=np.float32)
    single, multi = HeadColumns(0, 2, is_multi_label=False), HeadColumns(2, 2, is_multi_label=True)
    assert agreement(first, second, [single]) == 1.0
    assert agreement(first, second, [single, multi]) == 0.5
    assert agreement(first[:0], second[:0], [single]) == 1.0


# --- architectures and weights


@pytest.fixture
def shallow_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give torchvision's transformers two layers instead of twelve or more, which are all alike."""
    original = torchvision.models.vision_transformer.VisionTransformer

    def build_shallow(**arguments: Any) -> torch.nn.Module:
        return original(**arguments | {"num_layers": 2})

    monkeypatch.setattr(torchvision.models.vision_transformer, "VisionTransformer", build_shallow)


@pytest.mark.parametrize("arch", ["shufflenet_v2_x0_5", "mnasnet0_5", "googlenet", "vit_b_32", "regnet_y_400mf"])
@pytest.mark.usefixtures("shallow_vit")
def test_saved_weights_give_equal_scores_and_equal_bytes(tmp_path: Path, arch: str) -> None:
    torch.manual_seed(1)
    net = backbones.build(arch, 5, 64).eval()
    backbones.save(tmp_path, [net])
    first = (tmp_path / backbones.WEIGHTS).read_bytes()
    [again] = backbones.load(tmp_path, arch, 64, [5])
    with torch.inference_mode():
        pixels = torch.rand(2, 3, 64, 64)
        assert torch.equal(net(pixels), again.eval()(pixels))
    backbones.save(tmp_path, [again])
    assert (tmp_path / backbones.WEIGHTS).read_bytes() == first


@pytest.mark.parametrize("arch", ["convnext_tiny", "densenet121", "maxvit_t", "mnasnet1_3", "swin_v2_t", "vit_l_32"])
def test_require_size_accepts_default_size(arch: str) -> None:
    """tests/slow/test_image_training.py walks over all architectures."""
    backbones.require_size(arch, backbones.preprocessing_of(arch).crop)


def test_architecture_without_final_linear_layer_is_rejected(tmp_path: Path, work: Path) -> None:
    with pytest.raises(UsageError, match="squeezenet1_0 does not end in a linear layer, which is what lsml trains"):
        fit_spec(tmp_path, work, arch="squeezenet1_0", image_size=None)


def test_unknown_architecture_lists_similar_names() -> None:
    with pytest.raises(UsageError, match="no classification architecture 'resnet19'") as caught:
        backbones.require_architecture("resnet19")
    assert "resnet18" in (caught.value.hint or "")


@pytest.mark.parametrize(("arch", "size"), [("alexnet", 32), ("inception_v3", 64), ("vit_b_16", 50)])
def test_unsupported_image_size_is_rejected(tmp_path: Path, work: Path, arch: str, size: int) -> None:
    with pytest.raises(UsageError, match=f"{arch} does not take squares of {size} pixels") as caught:
        fit_spec(tmp_path, work, arch=arch, image_size=size)
    assert "Leave out image_size: it takes " in (caught.value.hint or "")


def random_weights(arch: str = "shufflenet_v2_x0_5") -> dict[str, Any]:
    torch.manual_seed(7)
    return dict(torchvision.models.get_model(arch, weights=None).state_dict())


@pytest.mark.parametrize("form", ["pth", "parallel", "training script", "safetensors"])
def test_initial_weights_from_file(tmp_path: Path, work: Path, form: str) -> None:
    weights = random_weights()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(weights, path)
    elif form == "training script":
        torch.save({"model": weights, "epoch": 3}, path)
    else:
        torch.save({f"module.{key}" if form == "parallel" else key: value for key, value in weights.items()}, path)
    spec = fit_spec(tmp_path / "out", work, weights=str(path))
    arrays = load_file(tmp_path / "out" / backbones.WEIGHTS)
    assert all(torch.equal(arrays[f"0.{key}"], value) for key, value in weights.items() if not key.startswith("fc."))
    assert accuracy(predict_tasks(spec, work, ANNOTATED)) > 0.9


class Bomb:
    def __reduce__(self) -> Any:
        return (open, ("exploded", "w"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is damaged, or no file of weights at all"),
        (b"hello world" * 10, "is damaged, or no file of weights at all"),
        ("half", "is damaged, or no file of weights at all"),
        ("bomb", "holds more than weights"),
        ("plain pickle", "holds more than weights"),
        ("whole net", r"holds more than weights \(torchvision"),
        ("list", "holds no weights by their names"),
        ("another", "do not belong to shufflenet_v2_x0_5"),
    ],
)
def test_unusable_weights_file_is_rejected_and_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Path, content: Any, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("w.pth")
    objects = {
        "half": random_weights(),
        "bomb": {"conv1.0.weight": Bomb()},
        "whole net": torchvision.models.get_model("shufflenet_v2_x0_5"),
        "list": [1, 2],
        "another": random_weights("mobilenet_v3_small"),
    }
    if content in objects:
        torch.save(objects[content], path)
        if content == "half":
            path.write_bytes(path.read_bytes()[:5_000])
    elif content == "plain pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=sentence) as caught:
        fit_spec(tmp_path / "out", work, weights="w.pth")
    assert caught.value.hint
    assert not Path("exploded").exists()


def test_default_weights_offline_report_url_and_alternatives(
    lsml: Lsml, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib.request._opener", None)  # keeps the proxies of the first request of a process
    offline = OFFLINE | {"TORCH_HOME": str(tmp_path)}
    fit = lsml(
        *("fit", work / "annotated.json", "--model", "image-classifier", "-c", work / "config.xml"),
        *("-o", tmp_path / "out", "--with", "arch=shufflenet_v2_x0_5"),
        env=offline,
        timeout=60,
    )
    config = tmp_path / "ants.xml"
    config.write_text(CONFIG.replace('value="Disc" alias="disc"', 'value="ant"'))  # which is a class of ImageNet
    predict = lsml("predict", work / "tasks.json", "--model", "image-classifier", "-c", config, env=offline, timeout=60)
    for run in (fit, predict):
        assert (run.returncode, run.stdout) == (1, "")
        last = " ".join(line.strip() for line in run.stderr.splitlines()[-2:])
        assert "have to be fetched once from download.pytorch.org, which failed: " in last
        assert "Fetch https://download.pytorch.org/models/" in last
        assert "--with weights=none" in last
    assert not (tmp_path / "out").exists()


def test_default_weights_come_from_cache_and_run_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    weights = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT
    url = weights.url
    torch.save(random_weights(), tmp_path / "checkpoints" / url.rpartition("/")[2])
    spec = find_model("image-classifier", {"arch": "shufflenet_v2_x0_5"})
    tasks = [{"id": n, "data": {"image": f"{n}.png"}} for n in range(3)]
    config = CONFIG.replace('value="bars"', 'value="balloon"')
    label_map = {name: "disc" for name in weights.meta["categories"] if name != "balloon"}
    predictions = predict_tasks(spec, work, tasks, config, **label_map)
    assert {name for prediction in predictions for name in chosen_labels(prediction)["shape"]} <= {"disc", "balloon"}
    notes = spec.build().bind(LabelConfig.parse(config), label_map, None).notes
    assert notes[0] == "The model is untrained and goes by the classes of its weights."
    (tmp_path / "checkpoints" / url.rpartition("/")[2]).write_bytes(pickle.dumps(Bomb()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="holds more than weights"):
        spec.open("cpu")
    assert not Path("exploded").exists()


# --- training


def test_head_learns_and_keeps_its_own_class_order(spec: ModelSpec, work: Path) -> None:
    predictions = predict_tasks(spec, work, ANNOTATED)
    assert accuracy(predictions) > 0.95
    assert all(0.5 <= (prediction.score or 0) <= 1 for prediction in predictions)
    state: Any = spec.state
    [head] = state["heads"]
    assert head["classes"] == ["bars", "disc"]
    assert state["agreement"]["bf16"] > 0.9
    reordered = '<View><Image name="p" value="$image"/><Choices name="s" toName="p">{}</Choices></View>'.format(
        '<Choice value="disc"/><Choice value="bars"/>'
    )
    assert [chosen_labels(prediction)["s"] for prediction in predict_tasks(spec, work, ANNOTATED, reordered)] == [
        chosen_labels(prediction)["shape"] for prediction in predictions
    ]


def test_folded_head_equals_scikit_learn_on_standardized_features(tmp_path: Path, spec: ModelSpec, work: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    assert spec.path
    preprocessing = backbones.preprocessing_of("shufflenet_v2_x0_5", 32)
    [net] = backbones.load(spec.path, "shufflenet_v2_x0_5", 32, [2])
    pixels = [preprocessing.pixels((work / f"{n}.png").read_bytes()) for n in range(COUNT)]
    features = (
        Predictor(backbones.remove_last_layer(net, "shufflenet_v2_x0_5"), "cpu", preprocessing, "fp32")
        .scores(pixels)
        .astype(np.float64)
    )
    varies = features.std(axis=0) > 1e-4 * np.abs(features.mean(axis=0))
    reference = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features[:, varies], SHAPES)
    scores = Predictor(net, "cpu", preprocessing, "fp32").scores(pixels)
    expected = reference.predict_proba(features[:, varies])[:, 1]
    np.testing.assert_allclose(1 / (1 + np.exp(scores[:, 0] - scores[:, 1])), expected, atol=1e-3)


@pytest.mark.parametrize("strategy", ["head", "full"])
def test_training_bytes_depend_on_seed(tmp_path: Path, work: Path, strategy: str) -> None:
    options: dict[str, Any] = {"strategy": strategy, "epochs": 2, "batch_size": 16}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        fit_spec(tmp_path / name, work, ANNOTATED[:40], ANNOTATED[40:60], seed=seed, **options)
    first, second, third = ((tmp_path / name / backbones.WEIGHTS).read_bytes() for name in "abc")
    assert first == second
    assert first != third


# ResNet-18 from random weights learns these shapes within ten epochs; smaller architectures diverge or do not learn.
FULL: dict[str, Any] = {
    **{"arch": "resnet18", "strategy": "full", "lr": 0.01, "batch_size": 16, "augment": False},
    **{"patience": 8, "epochs": 16},
}


@pytest.fixture(scope="module")
def messages() -> list[str]:
    return []


@pytest.fixture(scope="module")
def trained(work: Path, tmp_path_factory: pytest.TempPathFactory, messages: list[str]) -> ModelSpec:
    """Return a full training on 50 images with 30 for early stopping; its messages are in `messages`."""
    return fit_spec(tmp_path_factory.mktemp("full"), work, ANNOTATED[:50], ANNOTATED[50:], messages=messages, **FULL)


def test_full_training_keeps_best_epoch(trained: ModelSpec, messages: list[str], work: Path) -> None:
    accuracies = [
        float(line.split("accuracy ")[1].split()[0])
        for line in messages
        if line.startswith("Epoch ") and " of " in line
    ]
    best_epoch = accuracies.index(max(accuracies)) + 1
    assert messages[-1] == f"Epoch {best_epoch} is kept."
    if len(accuracies) < FULL["epochs"]:
        assert messages[-2] == "No better for 8 epochs."
        assert len(accuracies) == best_epoch + 8
    predictions = predict_tasks(trained, work, ANNOTATED[50:])
    share = np.mean(
        [
            chosen_labels(prediction)["shape"] == [shape]
            for prediction, shape in zip(predictions, SHAPES[50:], strict=True)
        ]
    )
    assert share == pytest.approx(max(accuracies), abs=1e-4)  # of the best epoch, not of the last one
    assert share > 0.8


def test_full_training_without_validation_uses_loss(tmp_path: Path, work: Path) -> None:
    messages: list[str] = []
    fit_spec(tmp_path / "full", work, ANNOTATED[:20], messages=messages, strategy="full", epochs=2, batch_size=8)
    assert messages[1].startswith("Epoch 1 of 2: loss ")
    assert "hold-out" not in " ".join(messages)


def test_divergence_is_reported(tmp_path: Path, work: Path) -> None:
    with pytest.raises(ModelError, match=r"Training has diverged in epoch \d") as caught:
        fit_spec(tmp_path / "full", work, ANNOTATED[:40], strategy="full", lr=1e20, epochs=5, batch_size=8)
    assert caught.value.hint == "A smaller step helps: --with lr=1e+19"


@pytest.mark.parametrize("strategy", ["head", "full"])
def test_unusable_image_costs_one_example_and_is_named(tmp_path: Path, work: Path, strategy: str) -> None:
    tasks = [
        *ANNOTATED[:30],
        annotated_task(900, shape="disc"),
        annotated_task(901, shape="bars"),
        annotated_task(902, shape="disc"),
    ]
    tasks[-1]["data"] = {"image": None}
    for number in range(30):
        shutil.copy(work / f"{number}.png", tmp_path)
    (tmp_path / "901.png").write_bytes((work / "1.png").read_bytes()[:60])
    messages: list[str] = []
    spec = fit_spec(tmp_path / "out", tmp_path, tasks, messages=messages, strategy=strategy, epochs=1, batch_size=8)
    assert 'Not learned from task 902: the task has null for "image", which <Image name="picture"' in messages[0]
    assert [line.split(":")[0] for line in messages[1:] if line.startswith("Not learned")] == [
        "Not learned from task 900",
        "Not learned from task 901",
    ]
    assert any("task 901: the PNG image is truncated" in line for line in messages)
    assert len(predict_tasks(spec, work, ANNOTATED[:2])) == 2


@pytest.mark.parametrize("strategy", ["head", "full"])
def test_class_of_only_unusable_images_is_dropped(tmp_path: Path, work: Path, strategy: str) -> None:
    config = CONFIG.replace("</Choices>", '<Choice value="a third"/></Choices>')
    tasks = [annotated_task(999, shape="a third"), *ANNOTATED[:20]]
    held_out = [annotated_task(5, shape="a third"), *ANNOTATED[20:30]]
    spec = fit_spec(
        tmp_path / "out", work, tasks, held_out, config, strategy=strategy, epochs=1, batch_size=8, augment=False
    )
    state: Any = spec.state
    [head] = state["heads"]
    assert head["classes"] == ["bars", "disc"]
    assert len(predict_tasks(spec, work, ANNOTATED[:2])) == 2


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        ([annotated_task(0, shape="disc"), annotated_task(2, shape="disc")], "two different ones are needed"),
        ([annotated_task(0)], "No annotation has a usable answer"),
        ([annotated_task(0, shape="disc"), annotated_task(999, shape="bars")], "Too few images can be used"),
        ([annotated_task(998, shape="disc"), annotated_task(999, shape="bars")], "No image can be used"),
    ],
)
@pytest.mark.parametrize("strategy", ["head", "full"])
def test_too_little_training_data_is_reported(
    tmp_path: Path, work: Path, tasks: list[dict[str, Any]], sentence: str, strategy: str
) -> None:
    with pytest.raises(ModelError, match=sentence) as caught:
        fit_spec(tmp_path / "out", work, tasks, strategy=strategy)
    assert caught.value.hint


SEVERAL = """<View><Image name="picture" value="$image"/><Image name="second" value="$other"/>
  <Choices name="shape" toName="picture"><Choice value="disc"/><Choice value="bars"/></Choices>
  <Choices name="says" toName="picture" choice="multiple"><Choice value="round"/><Choice value="striped"/></Choices>
  <Choices name="beside" toName="second"><Choice value="disc"/><Choice value="bars"/></Choices></View>"""


@pytest.mark.parametrize("strategy", ["head", "full"])
def test_several_controls_several_images_and_multiple_choice(tmp_path: Path, work: Path, strategy: str) -> None:
    tasks = []
    for number, shape in enumerate(SHAPES):
        says = {"disc": ["round"], "bars": []}[shape] + (["striped"] if shape == "bars" else [])
        task = annotated_task(number, shape=shape, says=says, beside=SHAPES[(number + 1) % COUNT])
        task["annotations"][0]["result"][-1]["to_name"] = "second"
        task["data"]["other"] = f"{(number + 1) % COUNT}.png"
        tasks.append(task)
    params: dict[str, Any] = {
        "strategy": strategy,
        "epochs": 1,
        "lr": 0.05,
        "batch_size": 16,
        "class_weight": "balanced",
    }
    messages: list[str] = []
    spec = fit_spec(tmp_path / "out", work, tasks, tasks[:20], SEVERAL, messages, **params)
    assert [line for line in messages if line.startswith("Learning")] == [
        f'Learning "shape" and "says" from 80 images (shufflenet_v2_x0_5, {strategy}).',
        f'Learning "beside" from 80 images (shufflenet_v2_x0_5, {strategy}).',
    ]
    state: Any = spec.state
    assert [(head["control"], head["scorer"], head["first"], head["multi"]) for head in state["heads"]] == [
        ("shape", 0, 0, False),
        ("says", 0, 2, True),
        ("beside", 1, 0, False),
    ]
    answers = [chosen_labels(labels) for labels in predict_tasks(spec, work, tasks, SEVERAL)]
    assert all({"shape", "beside"} <= set(labels) for labels in answers)
    if strategy == "head":
        assert np.mean([labels["shape"] == [shape] for labels, shape in zip(answers, SHAPES, strict=True)]) > 0.9
        assert np.mean([labels["beside"] != [shape] for labels, shape in zip(answers, SHAPES, strict=True)]) > 0.9
        expected = [{"disc": ["round"], "bars": ["striped"]}[shape] for shape in SHAPES]
        assert np.mean([labels.get("says") == says for labels, says in zip(answers, expected, strict=True)]) > 0.9
    model = spec.open("cpu")
    binding = model.bind(LabelConfig.parse(SEVERAL), {}, None)
    fetch = Media(work).fetch
    inputs = []
    for labels in examples(tasks[:8]):
        media = {value: fetch(value) for value in model.media_refs(labels.task, binding)}
        inputs.append(model.encode(labels.task, binding, media))
    tuning = model.autotune(binding, inputs, None)
    assert tuning is not None
    assert tuning.params["precision"] in ("fp32", "bf16")
    assert tuning.batch_size in (1, 2, 4, 8, 16, 32, 64, 128, 256)


def test_balanced_loss_weights_rare_classes() -> None:
    head = HeadTargets([0, 1, 2, 3], [("a",), ("a",), ("a",), ("b",)], ["a", "b"], is_multi_label=False)
    np.testing.assert_allclose(balanced_weights(head), [4 / 6, 2.0])
    multi_label = replace(head, is_multi_label=True)
    np.testing.assert_allclose(balanced_weights(multi_label), [[2.0, 4 / 6], [4 / 6, 2.0]])
    device = torch.device("cpu")
    outputs = torch.tensor([[0.3, -0.2], [1.0, 0.5], [0.1, 0.9], [2.0, 0.0]])
    for targets in (head, multi_label):
        plain, balanced = (MultiHeadLoss([targets], device, weighting) for weighting in (None, "balanced"))
        assert plain.loss(outputs, [0, 1, 2, 3]) != balanced.loss(outputs, [0, 1, 2, 3])
        assert plain.loss(outputs, [7, 8]) is None


def test_training_continues_from_earlier_version(tmp_path: Path, work: Path) -> None:
    params: dict[str, Any] = {"strategy": "full", "lr": 1e-9, "epochs": 1, "batch_size": 8}
    first = fit_spec(tmp_path / "first", work, ANNOTATED[:20], **params)
    messages: list[str] = []
    fit_spec(tmp_path / "same", work, ANNOTATED[:20], messages=messages, init_from=first, **params)
    assert not any("reinitialized" in line for line in messages)
    before, after = (load_file(tmp_path / name / backbones.WEIGHTS) for name in ("first", "same"))
    torch.testing.assert_close(before["0.fc.weight"], after["0.fc.weight"], atol=1e-3, rtol=0)
    other_config = CONFIG.replace('value="bars"', 'value="lines"')
    tasks = [annotated_task(n, shape=("disc", "lines")[n % 2]) for n in range(20)]
    second = fit_spec(
        tmp_path / "others", work, tasks, config=other_config, messages=messages, init_from=first, **params
    )
    assert "The classes are not those of the earlier version: its last layer is reinitialized." in messages
    after = load_file(tmp_path / "others" / backbones.WEIGHTS)
    torch.testing.assert_close(before["0.conv1.0.weight"], after["0.conv1.0.weight"], atol=1e-3, rtol=0)
    assert predict_tasks(second, work, ANNOTATED[:2], other_config)
    with pytest.raises(UsageError, match="is a shufflenet_v2_x0_5, not a resnet18"):
        fit_spec(tmp_path / "arch", work, init_from=first, arch="resnet18")


class Flaky:
    """A media server that fails at every first try, or always."""

    def __init__(self, root: Path, for_good: bool = False) -> None:
        self.media = Media(root)
        self.for_good = for_good
        self.requested: list[str] = []

    def fetch(self, value: str, task: int | None) -> bytes:
        self.requested.append(value)
        if self.for_good or self.requested.count(value) == 1:
            raise TransientError("not now")
        return self.media.fetch(value)


def test_transient_fetch_failure_is_retried_but_not_an_outage(work: Path) -> None:
    images = [ImageRef(f"{n}.png", n, n) for n in range(60)]
    preprocessing = backbones.preprocessing_of("resnet18", 32)
    flaky = Flaky(work)
    dataset = ImageDataset(images, preprocessing, MediaReader(flaky.fetch, (0.001, 0.001)))
    results = [pair for batch in dataset.batches(range(60), 8) for pair in batch]
    assert [position for position, _ in results] == list(range(60))
    assert not any(isinstance(pixels, str) for _, pixels in results)
    down = Flaky(work, for_good=True)
    dataset = ImageDataset(images, preprocessing, MediaReader(down.fetch, (0.001, 0.001)))
    assert {pixels for batch in dataset.batches(range(60), 8) for _, pixels in batch if isinstance(pixels, str)} == {
        "not now"
    }
    assert len(down.requested) < 60 + 2 * (OUTAGE_THRESHOLD + DEFAULT_FETCH_THREADS)


def test_closing_batches_stops_prefetch(work: Path) -> None:
    import threading

    images = [ImageRef(f"{n % COUNT}.png", n, n) for n in range(10_000)]
    flaky = Flaky(work)
    dataset = ImageDataset(images, backbones.preprocessing_of("resnet18", 32), MediaReader(flaky.fetch, (0.0,)))
    batches = dataset.batches(range(10_000), 8)
    next(batches)
    batches.close()
    pool_threads = [thread for thread in threading.enumerate() if thread.name.startswith(("fetch_", "read_"))]
    for thread in pool_threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in pool_threads)
    assert len(flaky.requested) < 500


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"image_size": 16}, "image_size must be at least 32 pixels, not 16"),
        ({"image_size": "64"}, "image_size must be at least 32 pixels, not '64'"),
        ({"precision": "int4"}, "precision must be auto, fp32, bf16 or fp16"),
        ({"compile": 1}, "compile must be true or false"),
        ({"fast_decode": "yes"}, "fast_decode must be true or false"),
        ({"augment": None}, "augment must be true or false"),
        ({"strategy": "both"}, "strategy must be head or full"),
        ({"C": 0}, "C must be a number above 0"),
        ({"class_weight": "x"}, 'class_weight must be "balanced" or null'),
        ({"epochs": 0}, "epochs must be a whole number from 1"),
        ({"lr": float("inf")}, "lr must be a number above 0"),
        ({"batch_size": 1}, "batch_size must be a whole number from 2"),
        ({"patience": 0}, "patience must be a whole number from 1"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"weights": ""}, 'weights must be "default", "none", or a file'),
        ({"arch": 18}, "arch must be the name of a torchvision architecture"),
    ],
)
def test_invalid_parameter_is_rejected(params: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        find_model("image-classifier", params)


# --- versions


def test_version_is_listed_and_predicts_after_move(lsml: Lsml, model: Path, work: Path, tmp_path: Path) -> None:
    listed = json.loads(lsml("versions", model, "--json").stdout)
    assert listed[0]["metrics"]["shape"]["accuracy"] > 0.3
    assert "accuracy" in lsml("versions", model).stdout
    shutil.copytree(model, tmp_path / "elsewhere")
    for folder in (model, tmp_path / "elsewhere"):
        exact = find_model(str(folder), {"precision": "fp32"})
        run_predict(exact, work / "tasks.json", tmp_path / f"{folder.name}.json")
    here, there = ((tmp_path / f"{name}.json").read_text() for name in ("head", "elsewhere"))
    assert here.count('"result":[{') == COUNT
    assert here == there


def run_fit_version(output: Path, work: Path, **options: Any) -> FitResult:
    params = SMALL | options.pop("params", {})
    start = options.pop("spec", None) or find_model("image-classifier", params)
    tasks = [Task(i, task["id"], task["data"], task) for i, task in enumerate(ANNOTATED)]
    return fit_version(start, tasks, LabelConfig.parse(CONFIG), output, media=Media(work), **options)


def test_fit_version_measures_gates_refits_and_continues(tmp_path: Path, work: Path) -> None:
    first = run_fit_version(tmp_path / "m", work, fail_under=["accuracy=0.5"], refit=True)
    assert first.promoted
    assert first.version.refit
    assert first.metrics["shape"].to_json()["accuracy"] > 0.5
    again = run_fit_version(
        tmp_path / "m", work, spec=version_spec(versions.resolve(str(tmp_path / "m"))), warm_start=True
    )
    assert again.version.parent == first.version.version
    assert again.version.params["arch"] == "shufflenet_v2_x0_5"


@pytest.mark.parametrize("content", [None, b"", b"{}", "half", "another"])
def test_damaged_weights_are_reported(tmp_path: Path, spec: ModelSpec, content: Any) -> None:
    assert spec.path
    shutil.copytree(spec.path, tmp_path / "copy")
    path = tmp_path / "copy" / backbones.WEIGHTS
    whole = path.read_bytes()
    path.unlink()
    if content == "another":
        save_file({f"0.{key}": value for key, value in random_weights("mobilenet_v3_small").items()}, path)
    elif content is not None:
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    sentence = "cannot be read: No such file" if content is None else "are damaged"
    with pytest.raises(ModelError, match=sentence):
        replace(spec, path=tmp_path / "copy").open("cpu")


def test_version_rejects_another_architecture(spec: ModelSpec) -> None:
    with pytest.raises(UsageError, match=r"is a shufflenet_v2_x0_5, not a resnet50\. Leave out arch\."):
        replace(spec, params=dict(spec.params) | {"arch": "resnet50"}).build()
    with pytest.raises(ModelError, match="is not that of an image classifier"):
        replace(spec, state={"heads": []}).build()


def test_nothing_is_predicted_where_the_best_class_has_no_label(spec: ModelSpec, work: Path) -> None:
    whole = predict_tasks(spec, work, ANNOTATED)
    predictions = predict_tasks(spec, work, ANNOTATED, CONFIG.replace("bars", "stripes"))
    for prediction, before in zip(predictions, whole, strict=True):
        is_disc = chosen_labels(before) == {"shape": ["disc"]}
        assert (prediction.result, prediction.score) == ((before.result, before.score) if is_disc else ((), None))
    assert 0 < sum(bool(prediction.result) for prediction in predictions) < COUNT


def test_label_mismatch_shows_both_lists(spec: ModelSpec) -> None:
    config = CONFIG.replace('value="Disc" alias="disc"', 'value="cat"').replace("bars", "dog")
    with pytest.raises(LabelMismatch) as caught:
        spec.build().bind(LabelConfig.parse(config), {}, None)
    assert '"shape": bars, disc' in caught.value.message
    assert '"shape": cat, dog' in caught.value.message


# --- the contract


def test_check_model_passes_untrained_and_trained(work: Path) -> None:
    tasks = [{"id": task["id"], "data": task["data"]} for task in ANNOTATED[:6]]
    check_model(
        "image-classifier",
        label_config=CONFIG,
        tasks=tasks,
        annotated=ANNOTATED[:24],
        params=SMALL | {"strategy": "head"},
        media_root=work,
    )


def test_untrained_model_predicts_nothing_and_is_refused_for_files(lsml: Lsml, work: Path) -> None:
    """Only `lsml serve` may start with it: there the model learns from the first annotations."""
    untrained = find_model("image-classifier", SMALL)
    assert [prediction.result for prediction in predict_tasks(untrained, work, ANNOTATED[:3])] == [(), (), ()]
    run = lsml("predict", work / "tasks.json", "--model", "image-classifier", "-c", work / "config.xml", *WITH)
    assert (run.returncode, run.stdout) == (1, "")
    assert "image-classifier would predict nothing at all. The model is untrained" in run.stderr
    assert "Train it first: lsml fit EXPORT.json --model image-classifier --output DIR" in run.stderr
    for params in ({"precision": "fp32"}, {"weights": "default"}):  # neither disc nor bars is a class of ImageNet
        with pytest.raises(ModelError, match="would predict nothing at all"):
            run_predict(find_model("image-classifier", SMALL | params), work / "tasks.json", work / "nothing.json")


@pytest.mark.parametrize("strategy", ["head", "full"])
def test_training_reports_how_far_it_is(work: Path, tmp_path: Path, strategy: str) -> None:
    reporter = RecordingReporter()
    spec = find_model("image-classifier", SMALL | {"strategy": strategy, "epochs": 1, "batch_size": 8})
    model = spec.build()
    binding = model.bind(LabelConfig.parse(CONFIG), {}, None)
    binding.media = Media(work)
    model.fit(examples(ANNOTATED[:32]), examples(ANNOTATED[32:48]), binding, tmp_path, ReportedTraining(reporter))
    by_phase: dict[str, list[int]] = {}
    for update in reporter.updates:
        by_phase.setdefault(update.phase, []).append(update.done)
    if strategy == "head":
        assert by_phase == {"extracting features": [8, 16, 24, 32]}
        assert reporter.phases == [("extracting features", "images", 0), ("training", "tasks", 0)]
    else:
        assert by_phase == {
            "reading images": [8, 16, 24, 32],
            "epoch 1 of 1": [0, 1, 2, 3],
            "measuring epoch 1": [8, 16],
        }
    assert all(update.share is not None and update.share <= 1 for update in reporter.updates)


# --- bulk prediction


def run_predict(
    spec: ModelSpec, tasks: Path, output: Path, notes: list[str] | None = None, **options: Any
) -> PredictSummary:
    report = RecordingReporter()
    predict_options = PredictOptions(input_path=str(tasks), output=str(output), media=Media(tasks.parent), **options)
    summary = predict_file(PredictPlan.from_options(spec, LabelConfig.parse(CONFIG), predict_options), report)
    if notes is not None:
        notes += report.notes
    return summary


@pytest.fixture(scope="module")
def plain(spec: ModelSpec, work: Path) -> bytes:
    """Return the predictions of tasks.json in fp32, in batches of 16."""
    exact = replace(spec, params=dict(spec.params) | {"precision": "fp32"})
    run_predict(exact, work / "tasks.json", work / "plain.json", batch_size=16)
    return (work / "plain.json").read_bytes()


@pytest.mark.parametrize(
    "options",
    [{"workers": 2}, {"workers": 4}, {"fetch_threads": 1}, {"fetch_threads": 40, "workers": 3}, {"device": "cpu,cpu"}],
    ids=str,
)
def test_threads_and_replicas_do_not_change_output(
    spec: ModelSpec, work: Path, tmp_path: Path, plain: bytes, options: dict[str, Any]
) -> None:
    exact = replace(spec, params=dict(spec.params) | {"precision": "fp32"})
    run_predict(exact, work / "tasks.json", tmp_path / "out.json", batch_size=16, **options)
    assert (tmp_path / "out.json").read_bytes() == plain


class LittleMemory(ImageClassifier):
    """Run out of memory with more than five images."""

    def forward(self, inputs: Sequence[Any], binding: ChoicesBinding) -> Sequence[Any]:
        if len(inputs) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return super().forward(inputs, binding)


def test_out_of_memory_is_recovered_with_smaller_batches(
    spec: ModelSpec, work: Path, tmp_path: Path, plain: bytes
) -> None:
    spec_with_little_memory = replace(
        spec, target=f"{__name__}:LittleMemory", params=dict(spec.params) | {"precision": "fp32"}
    )
    summary = run_predict(spec_with_little_memory, work / "tasks.json", tmp_path / "out.json", batch_size=16)
    assert (summary.predicted, summary.failed) == (COUNT, 0)
    for record, expected in zip(json.loads((tmp_path / "out.json").read_bytes()), json.loads(plain), strict=True):
        [prediction], [expected_prediction] = record["predictions"], expected["predictions"]
        assert prediction["result"][0]["value"] == expected_prediction["result"][0]["value"]
        assert prediction["score"] == pytest.approx(expected_prediction["score"], abs=2e-3)


def test_every_precision_works_on_cpu(trained: ModelSpec, work: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16", "fp16"):
        spec = replace(trained, params=dict(trained.params) | {"precision": precision})
        assert run_predict(spec, work / "tasks.json", tmp_path / f"{precision}.json", limit=8).predicted == 8


def test_autotune_is_reported_once(spec: ModelSpec, work: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    run_predict(spec, work / "tasks.json", tmp_path / "out.json", notes, batch_size="auto")
    [tuning_note] = [note for note in notes if note.startswith("Precision ")]
    assert "times as quick with " in tuning_note
    assert tuning_note.endswith("images at a time.")
    few: list[str] = []
    run_predict(spec, work / "tasks.json", tmp_path / "few.json", few, batch_size="auto", limit=10)
    assert not any("Precision" in note for note in few)


def test_precision_with_different_answers_is_not_chosen(spec: ModelSpec, work: Path, tmp_path: Path) -> None:
    disagreeing = replace(spec, state=dict(spec.state) | {"agreement": {"bf16": 0.9899}})
    notes: list[str] = []
    run_predict(disagreeing, work / "tasks.json", tmp_path / "out.json", notes)
    [tuning_note] = [note for note in notes if note.startswith("Precision ")]
    assert tuning_note.startswith("Precision fp32: bf16 is ")
    assert tuning_note.endswith("with 99.0% equal answers.")


BROKEN = {
    "zero": b"",
    "head": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "cut": None,
    "half": None,
    "page": b"<!DOCTYPE html><html><body>Please log in</body></html>",
    "pdf": b"%PDF-1.4",
    "json": b'{"error": "not found"}',
    "zip": b"PK\x03\x04 zipped",
    "bomb": None,
    "zeros": bytes(200),
}
ODD = {"cmyk.jpg": "CMYK", "sixteen.png": "I;16", "palette.gif": "P", "alpha.png": "RGBA", "grey.jpg": "L"}


@pytest.fixture
def photos(work: Path, tmp_path: Path) -> Path:
    """Return a folder with ten broken images among whole ones, some of unusual modes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    good = (work / "0.png").read_bytes()
    size = b"IHDR" + b"\0\1\0\0\0\1\0\0" + good[24:29]
    bomb = good[:12] + size + zlib.crc32(size).to_bytes(4, "big") + good[33:]
    made = {"cut": good[:100], "half": good[: len(good) // 2], "bomb": bomb}
    for number, (name, content) in enumerate(BROKEN.items()):
        (folder / f"{number:02}-a-{name}.png").write_bytes(made[name] if content is None else content)
        (folder / f"{number:02}-b-whole.png").write_bytes((work / f"{number}.png").read_bytes())
    for name, mode in ODD.items():
        image = (
            noise_image(50, 40).convert("L").convert(mode) if mode != "RGBA" else noise_image(50, 40).convert("RGBA")
        )
        image.save(folder / f"zz-{name}")
    return folder


def test_broken_images_fail_alone_and_are_retried(
    lsml: Lsml, model: Path, work: Path, photos: Path, tmp_path: Path
) -> None:
    errors, out = tmp_path / "errors.jsonl", tmp_path / "out.json"
    predict = ("predict", photos, "--model", model, "-o", out, "--errors", errors, "--workers", "2")
    first = lsml(*predict)
    assert first.returncode == 3, first.stderr
    assert "25 tasks: 15 predicted, 10 failed" in first.stderr
    names = sorted(path.name for path in photos.iterdir())
    records = json.loads(out.read_text())
    assert [Path(record["data"]["image"]).name for record in records] == names
    assert [bool(record["predictions"]) for record in records] == ["-a-" not in name for name in names]
    failures = [json.loads(line) for line in errors.read_text().splitlines()]
    assert [names[failure["index"]].split("-a-")[1] for failure in failures] == [f"{name}.png" for name in BROKEN]
    reasons = {names[failure["index"]].split("-a-")[1][:-4]: failure["reason"] for failure in failures}
    assert reasons["zero"] == "an empty file"
    assert "an HTML page" in reasons["page"]
    assert "truncated" in reasons["half"]
    assert "65,536 x 65,536 pixels" in reasons["bomb"]
    assert len(set(reasons.values())) == len(BROKEN)
    for number, name in enumerate(BROKEN):
        shutil.copy(work / f"{number}.png", photos / f"{number:02}-a-{name}.png")
    retried = lsml(*predict, "--retry-failed", errors)
    assert retried.returncode == 0, retried.stderr
    again = json.loads(out.read_text())
    assert all(record["predictions"] for record in again)
    for number in range(10):  # the same image, once repaired and once from the start
        [repaired], [whole] = (again[2 * number + i]["predictions"] for i in range(2))
        assert repaired["result"][0]["value"] == whole["result"][0]["value"]
    assert [record for record, name in zip(again, names, strict=True) if "-a-" not in name] == [
        record for record in records if record["predictions"]
    ]


def test_check_reports_missing_media_without_loading_model(lsml: Lsml, model: Path, work: Path, tmp_path: Path) -> None:
    tasks = [
        {"id": 1, "data": {"image": "0.png"}},
        {"id": 2, "data": {"image": "nowhere.png"}},
        {"id": 3, "data": {"image": 5}},
    ]
    export = work / "odd.json"
    export.write_text(json.dumps(tasks))
    check = lsml("predict", export, "--model", model, "--check", "-o", tmp_path / "out.json")
    assert check.returncode == 3
    assert "3 tasks checked, 2 problems" in check.stdout
    assert "nowhere.png" in check.stdout
    assert "task 3" in check.stdout
    assert not (tmp_path / "out.json").exists()


def test_killed_run_resumes_to_identical_output(
    lsml: Lsml, model: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image in thirty is broken, and the precision is chosen automatically."""
    monkeypatch.chdir(tmp_path)
    broken = {n for n in range(600) if n % 30 == 7}
    tasks = [{"id": n, "data": {"image": "config.xml" if n in broken else f"{n % COUNT}.png"}} for n in range(600)]
    (work / "many.json").write_text(json.dumps(tasks))
    options = ["predict", str(work / "many.json"), "-m", str(model), "-o", "out.json", "--errors", "errors.jsonl"]
    options += ["--batch-size", "8", "--workers", "2", "--quiet"]
    with subprocess.Popen([sys.executable, "-m", "lsml_cli", *options], start_new_session=True) as process:
        wait_for(lambda: count_journaled("out.json") > 100, seconds=60)
        process.kill()
    assert process.returncode == -9, "it ended before it was killed"
    tuned = json.loads(Path("out.json.part.journal").read_text().splitlines()[0])["started_with"]["tuned"]
    assert tuned.keys() == {"precision", "batch_size"}
    resumed = lsml(*options, "--resume")
    assert resumed.returncode == 3, resumed.stderr
    outputs = Path("out.json").read_bytes(), Path("errors.jsonl").read_bytes()
    Path("errors.jsonl").unlink()
    # The fastest precision may differ in another run, so the uninterrupted run gets the same.
    options[options.index("out.json")] = "clean.json"
    clean = lsml(*options, "--precision", tuned["precision"])
    assert clean.returncode == 3, clean.stderr
    assert (Path("clean.json").read_bytes(), Path("errors.jsonl").read_bytes()) == outputs
    assert [json.loads(line)["id"] for line in outputs[1].splitlines()] == sorted(broken)


# --- compiling


def test_missing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: Any) -> Any:
        def run(*args: Any) -> Any:
            raise RuntimeError("No working C++ compiler found")

        return run

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(ModelError, match=r"needs a compiler .*: No working C\+\+ compiler found") as caught:
        inference.require_compiler("cpu")
    assert "leave compile out" in (caught.value.hint or "")


def test_compiled_net_is_not_padded_to_a_batch_that_did_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ragged batch is padded to the size of the others, so that nothing is compiled twice."""
    sizes: list[int] = []

    def compiled(net: Any) -> Any:
        def run(pixels: torch.Tensor) -> torch.Tensor:
            sizes.append(len(pixels))
            if len(pixels) > 8:
                raise torch.OutOfMemoryError("out of memory")
            scores: torch.Tensor = pixels.mean(dim=(2, 3))
            return scores

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    preprocessing = backbones.preprocessing_of("resnet18", 32)
    pixels = [preprocessing.pixels(encode_png(noise_image(40, 40, seed))) for seed in range(16)]
    predictor = Predictor(torch.nn.Identity(), "cpu", preprocessing, "fp32", is_compiled=True)
    with pytest.raises(torch.OutOfMemoryError):
        predictor.scores(pixels)
    assert predictor.scores(pixels[:8]).shape == (8, 3)
    last = predictor.scores(pixels[8:11])
    assert sizes == [16, 8, 8]
    np.testing.assert_array_equal(last, predictor.scores(pixels[8:16])[:3])
