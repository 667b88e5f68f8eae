"""The image classifier on handwritten digits and on photographs of ants and bees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from label_studio_sdk.label_interface.interface import LabelInterface
from PIL import Image

if TYPE_CHECKING:
    from tests.helpers.cli import Lsml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DIGITS = """<View><Image name="digit" value="$image"/><Choices name="number" toName="digit">
{}</Choices></View>""".format("".join(f'<Choice value="{number}"/>' for number in range(10)))


def test_full_training_learns_handwritten_digits(lsml: Lsml, tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    tasks: list[dict[str, Any]] = []
    for number, (pixels, target) in enumerate(zip(digits.images, digits.target, strict=True)):
        image = Image.fromarray((pixels * (255 / 16)).astype("uint8")).resize((32, 32))
        image.save(tmp_path / f"{number}.png")
        value = {"choices": [str(target)]}
        result = [{"from_name": "number", "to_name": "digit", "type": "choices", "value": value}]
        tasks.append(
            {"id": number, "data": {"image": f"{number}.png"}, "annotations": [{"id": number, "result": result}]}
        )
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    (tmp_path / "config.xml").write_text(DIGITS)
    options = (
        "strategy=full",
        "weights=none",
        "image_size=32",
        "augment=false",
        "epochs=8",
        "lr=0.02",
        "batch_size=64",
    )
    run = lsml(
        *("fit", tmp_path / "export.json", "--model", "image-classifier", "-c", tmp_path / "config.xml"),
        *("-o", tmp_path / "digits", "--fail-under", "accuracy=0.97"),
        *(argument for option in options for argument in ("--with", option)),
        timeout=580,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_trained_version_predicts_ants_and_bees(lsml: Lsml, shared_data: Path, tmp_path: Path) -> None:
    exports = shared_data / "exports"
    fit = lsml(
        *("fit", exports / "ants-bees-annotated.json", "--model", "image-classifier", "--with", "weights=none"),
        *(
            "--document-root",
            shared_data,
            "--label-config",
            exports / "ants-bees.xml",
            "--output",
            tmp_path / "insects",
        ),
        timeout=300,
    )
    assert fit.returncode == 0, fit.stderr
    out = tmp_path / "out.json"
    run = lsml(
        *("predict", exports / "ants-bees-all-tasks.json", "--model", tmp_path / "insects"),
        *("--document-root", shared_data, "-o", out),
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    written = json.loads(out.read_text())
    tasks = json.loads((exports / "ants-bees-all-tasks.json").read_text())
    assert [task["id"] for task in written] == [task["id"] for task in tasks]
    assert len(written) == 243
    interface = LabelInterface((exports / "ants-bees.xml").read_text())
    for task in written:
        (prediction,) = task["predictions"]
        assert prediction["result"]
        assert interface.validate_prediction(prediction, return_errors=True) == []


@pytest.mark.timeout(1800)
def test_every_architecture_is_saved_and_loaded_or_rejected(tmp_path: Path) -> None:
    """With the usual image size of each architecture, except those of more than 2 GB."""
    import torch

    from lsml_cli.errors import UsageError
    from lsml_cli.models.image_classifier import backbones

    huge = {"regnet_y_128gf", "vit_h_14"}
    rejected = []
    for arch in sorted(set(backbones.architectures()) - huge):
        usual = backbones.preprocessing_of(arch).crop
        torch.manual_seed(0)
        try:
            backbones.require_size(arch, usual)
            net = backbones.build(arch, 3, usual).eval()
        except UsageError as error:
            rejected.append(arch)
            assert "does not end in a linear layer" in error.message  # noqa: PT017 - the end of the test asserts which ones
            continue
        backbones.save(tmp_path, [net])
        (loaded,) = backbones.load(tmp_path, arch, usual, [3])
        with torch.inference_mode():
            pixels = torch.rand(1, 3, usual, usual)
            output = net(pixels)
            assert torch.equal(output, loaded.eval()(pixels)), arch
        headless = backbones.remove_last_layer(net, arch)
        name, last = backbones._last_linear(net, arch)
        with torch.inference_mode():  # the last layer gets the output of all others
            torch.testing.assert_close(last(headless(pixels)), output, msg=f"{arch}: {name}")
    assert rejected == ["squeezenet1_0", "squeezenet1_1"]


def test_folders_of_ants_and_bees_are_learnt(lsml: Lsml, shared_data: Path, tmp_path: Path) -> None:
    """The images that it was trained on are not measured again."""
    folder = shared_data / "ants-bees"
    small = ("--with", "arch=shufflenet_v2_x0_5", "--with", "weights=none", "--with", "image_size=32")
    fit = lsml(
        *("fit", folder, "--from", "folders", "--model", "image-classifier", *small, "--output", tmp_path / "insects"),
        timeout=300,
    )
    assert fit.returncode == 0, fit.stderr
    measured = tmp_path / "all.json"
    run = lsml(
        "evaluate", folder, "--from", "folders", "--model", tmp_path / "insects", "--json", measured, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert f"held out {json.loads(measured.read_text())['tasks']}." in fit.stderr
