"""Test `ocr` with the real MMOCR: prediction, existing shapes, and training."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("mmcv", reason="needs scripts/install-openmmlab")

from lsml_cli import load_model
from lsml_cli.errors import LabelMismatch, ModelError, UsageError
from lsml_cli.io.task_reader import read_tasks
from lsml_cli.media.fetcher import Media
from lsml_cli.models.ocr import config as configuration
from lsml_cli.models.ocr import crops
from lsml_cli.models.ocr.binding import OcrBinding, bind
from lsml_cli.models.ocr.components import OcrComponent, config_filename
from lsml_cli.models.ocr.existing_shapes import transcribed_shapes
from lsml_cli.models.ocr.postprocess import sort_in_reading_order
from lsml_cli.models.ocr.text_lines import TextLine
from lsml_cli.models.openmmlab import configs, inference, toolkit, train
from lsml_cli.registry.resolve import find_model
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Failure, Prediction
from lsml_cli.training.fit import fit_version
from tests.helpers.cli import ROOT, Lsml
from tests.helpers.processes import count_journaled, wait_for
from tests.openmmlab.writing import (
    BLOB_DETECTOR_CONFIG,
    BOX_CONFIG,
    MERGED_CONFIG,
    OCR_CONFIG,
    SMALL_DETECTOR_CONFIG,
    WHOLE_IMAGE_CONFIG,
    Word,
    draw_page,
    make_ocr_regions,
    write_pages,
)

pytestmark = pytest.mark.openmmlab

CRNN = "crnn_mini-vgg_5e_mj"
SIZE = (480, 360)
WORDS = [Word("Invoice", (110, 60)), Word("4711", (330, 62)), Word("Total 25", (240, 200), 30, 100)]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return blobs.py (config of a detector), reads.pth (weights of a recognizer) and template.xml; read only."""
    folder = tmp_path_factory.mktemp("ocr")
    (folder / "blobs.py").write_text(BLOB_DETECTOR_CONFIG)
    (folder / "template.xml").write_text(OCR_CONFIG)
    draw_page(WORDS).save(folder / "page.png")
    _write_weights(folder / "reads.pth")
    return folder


def _write_weights(path: Path) -> None:
    """Write weights of an untrained CRNN, scaled so that it reads something else from each crop."""
    import torch

    net = inference.build_model(configs.read(CRNN, "mmocr", "recog_config"), "mmocr")
    weights = {name: array * 8 if "decoder" in name else array for name, array in net.state_dict().items()}
    torch.save({"state_dict": weights}, path)


def params(work: Path, **others: Any) -> dict[str, Any]:
    return {"det_config": str(work / "blobs.py"), "recog_ckpt": str(work / "reads.pth")} | others


def predict(
    work: Path, tasks: Sequence[dict[str, Any]], config: str, *, threshold: float | None = None, **model_params: Any
) -> list[Prediction]:
    """Return the predictions of the tasks, in one batch; each is checked with Label Studio's own validation."""
    spec = find_model("ocr", params(work, **model_params))
    with load_model(spec, config, media=Media(work), threshold=threshold) as model:
        outcomes = [outcome for _, outcome in model.predict(tasks, batch_size=len(tasks))]
    assert not [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    from label_studio_sdk.label_interface.interface import LabelInterface

    for outcome in outcomes:
        assert isinstance(outcome, Prediction)
        assert LabelInterface(config).validate_prediction(outcome.to_json(), return_errors=True) == []
    return outcomes  # type: ignore[return-value]


def types(prediction: Prediction) -> list[list[str]]:
    """Return the types of the regions that share an id, id by id."""
    by_id: dict[str, list[str]] = {}
    for region in prediction.result:
        by_id.setdefault(region.id, []).append(region.type)
    return list(by_id.values())


def texts(prediction: Prediction) -> list[str]:
    return [region.value["text"][0] for region in prediction.result if region.type == "textarea"]


def stored(task: dict[str, Any], key: str) -> list[str]:
    """Return the texts in the first item of a task's "annotations" or "predictions"."""
    return [region["value"]["text"][0] for region in task[key][0]["result"] if region["type"] == "textarea"]


# ---- shapes and labels


def test_template_gets_shape_label_and_text_with_one_id(work: Path) -> None:
    (prediction,) = predict(work, [{"id": 5, "data": {"ocr": "page.png"}}], OCR_CONFIG)
    assert types(prediction) == [
        ["rectangle", "labels", "textarea"],
        ["rectangle", "labels", "textarea"],
        ["polygon", "labels", "textarea"],
    ]
    for shape, label, text in zip(
        prediction.result[::3], prediction.result[1::3], prediction.result[2::3], strict=True
    ):
        geometry = dict(shape.value)
        assert label.value == geometry | {"labels": ["Text"]}
        assert text.value == geometry | {"text": text.value["text"]}
        assert shape.score == label.score != text.score
        assert shape.extra == {"original_width": 480, "original_height": 360, "image_rotation": 0}


def test_shapes_lie_on_the_words(work: Path) -> None:
    (prediction,) = predict(work, [{"data": {"ocr": "page.png"}}], OCR_CONFIG)
    shapes = [region.value for region in prediction.result if region.type in ("rectangle", "polygon")]
    for word, value in zip(WORDS, shapes, strict=True):
        points = value.get("points") or [
            [value["x"] + x * value["width"], value["y"] + y * value["height"]] for x in (0, 1) for y in (0, 1)
        ]
        middle = np.mean(points, axis=0) * SIZE / 100
        assert np.abs(middle - word.center).max() < 6, word.text


def test_turned_text_without_polygon_gets_rotated_box(work: Path) -> None:
    (prediction,) = predict(work, [{"data": {"ocr": "page.png"}}], BOX_CONFIG)
    boxes = [region.value for region in prediction.result if region.type == "rectangle"]
    assert [box["rotation"] for box in boxes[:2]] == [0, 0]
    assert boxes[2]["rotation"] == pytest.approx(30, abs=3)
    assert boxes[2]["width"] * SIZE[0] > 3 * boxes[2]["height"] * SIZE[1]


def test_rectangle_labels_get_two_regions_per_text(work: Path) -> None:
    (prediction,) = predict(work, [{"data": {"ocr": "page.png"}}], MERGED_CONFIG)
    assert types(prediction) == [["rectanglelabels", "textarea"]] * 3
    assert all(region.value["rectanglelabels"] == ["printed"] for region in prediction.result[::2])
    assert all("rectanglelabels" not in region.value for region in prediction.result[1::2])


def test_image_without_shape_controls_is_one_line(work: Path) -> None:
    draw_page([Word("Invoice", (80, 30))], (160, 60)).save(work / "line.png")
    task = {"data": {"ocr": "line.png"}}
    (prediction,) = predict(work, [task], WHOLE_IMAGE_CONFIG)
    assert [(region.type, set(region.value)) for region in prediction.result] == [("textarea", {"text"})]
    assert predict(work, [task], WHOLE_IMAGE_CONFIG, text_threshold=1.0)[0].result == ()
    assert predict(work, [task], WHOLE_IMAGE_CONFIG, threshold=1.0)[0].result == ()


@pytest.mark.parametrize(
    ("labels", "expected", "is_guess"),
    [
        (["Stamp", "Text"], "Text", False),
        (["Stamp"], "Stamp", False),
        (["Stamp", "Print"], "Stamp", True),
        (['Stamp" predicted_values="text', "Text"], "Stamp", False),
    ],
)
def test_label_for_text(work: Path, labels: list[str], expected: str, is_guess: bool) -> None:
    tags = "".join(f'<Label value="{label}"/>' for label in labels)
    config = LabelConfig.parse(MERGED_CONFIG.replace('<Label value="printed"/>', tags))
    binding = find_model("ocr", params(work)).build().bind(config, {}, None)
    assert dict(binding.label_mappings[0].label_of) == {"text": expected}
    assert any("every text is labelled" in note for note in binding.notes) is is_guess
    mapped = find_model("ocr", params(work)).build().bind(config, {"text": "Print"}, None)
    assert mapped.label_mappings[0].label_of["text"] == ("Print" if is_guess else expected)


@pytest.mark.parametrize(
    "config",
    [
        '<View><Text name="t" value="$t"/><TextArea name="words" toName="t"/></View>',
        '<View><Image name="i" value="$i"/><Rectangle name="box" toName="i"/></View>',
        '<View><Image name="i" value="$i"/><TextArea name="words" toName="i" perRegion="true"/></View>',
    ],
)
def test_label_config_without_text_area_is_rejected(work: Path, config: str) -> None:
    with pytest.raises(LabelMismatch, match=r"ocr fills a <TextArea> about an <Image>"):
        find_model("ocr", params(work)).build().bind(LabelConfig.parse(config), {}, None)


def test_shapes_are_clipped_to_image(work: Path) -> None:
    words = [Word("Corner", (30, 20), 35), Word("Edge", (470, 200), 90), Word("Below", (240, 355), 4)]
    draw_page(words).save(work / "edges.png")
    for config in (OCR_CONFIG, BOX_CONFIG, MERGED_CONFIG):
        (prediction,) = predict(work, [{"data": {"ocr": "edges.png"}}], config)
        assert len(types(prediction)) >= 3


# ---- recognition


def test_texts_and_scores_equal_mmocr_inferencer(work: Path) -> None:
    """With the same weights, on upright text."""
    upright = [Word("Invoice", (110, 60)), Word("4711", (330, 62)), Word("Total", (240, 200), 0, 100)]
    draw_page(upright).save(work / "upright.png")
    (prediction,) = predict(work, [{"data": {"ocr": "upright.png"}}], OCR_CONFIG)
    toolkit.import_mmocr()
    with warnings.catch_warnings(action="ignore"), toolkit.suppress_output():
        from mmocr.apis import MMOCRInferencer

        recognizer = str(configs.packaged_configs("mmocr")[CRNN])
        both = MMOCRInferencer(
            det=str(work / "blobs.py"), rec=recognizer, rec_weights=str(work / "reads.pth"), device="cpu"
        )
        (theirs,) = both(str(work / "upright.png"), out_dir="")["predictions"]
    ours = [region for region in prediction.result if region.type == "textarea"]
    assert sorted(zip(texts(prediction), [round(region.score or 0, 3) for region in ours], strict=True)) == sorted(
        zip(theirs["rec_texts"], [round(score, 3) for score in theirs["rec_scores"]], strict=True)
    )
    assert len(set(texts(prediction))) == 3, "all texts are equal, so the test shows nothing"


def test_text_does_not_depend_on_batch(work: Path) -> None:
    for number in range(6):
        draw_page([Word("Sum" * (1 + number % 3), (200, 80)), Word(str(number), (100, 200))]).save(
            work / f"p{number}.png"
        )
    tasks = [{"id": number, "data": {"ocr": f"p{number}.png"}} for number in range(6)]
    together = predict(work, tasks, OCR_CONFIG)
    alone = [predict(work, [task], OCR_CONFIG)[0] for task in tasks]
    assert [prediction.to_json() for prediction in together] == [prediction.to_json() for prediction in alone]


def test_stateful_pipeline_steps_are_not_shared_by_threads() -> None:
    """mmocr's RescaleToHeight and PadToWidth store sizes on themselves while images are prepared in threads."""
    import torch
    from mmengine.registry import TRANSFORMS

    barrier = threading.Barrier(2)

    @TRANSFORMS.register_module(force=True)
    class StatefulStep:
        def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
            self.width = results["img"].shape[1]
            barrier.wait(timeout=30)
            return {"width": self.width}

    net = inference.Predictor(torch.nn.Identity(), "mmocr", [{"type": "mmengine.StatefulStep"}], "cpu")
    with ThreadPoolExecutor(2) as threads:
        prepared = threads.map(net.prepare, [np.zeros((8, width, 3), np.uint8) for width in (10, 20)])
        assert [result["width"] for result in prepared] == [10, 20]


@pytest.mark.parametrize("angle", [-92, -90, -88, -80, -74, -60, -30, -5, 10, 30, 60, 74, 80, 86])
def test_turned_text_is_rectified(angle: float) -> None:
    """From its corners in any order."""
    plain, turned = Word("Invoice 4711", (240, 180)), Word("Invoice 4711", (240, 180), angle)
    upright = crops.rectify(np.asarray(draw_page([plain])), plain.corners(), has_reading_order=True)
    corners = turned.corners()
    for mixed in (corners, corners[2:] + corners[:2], corners[::-1]):
        crop = crops.rectify(np.asarray(draw_page([turned])), mixed)
        assert crop is not None
        assert upright is not None
        assert crop.shape == pytest.approx(upright.shape, abs=1)
        crop = cv2.resize(crop, upright.shape[1::-1])
        assert np.corrcoef(upright.ravel(), crop.ravel())[0, 1] > 0.95


def test_single_narrow_digit_stays_upright() -> None:
    page = np.asarray(draw_page([Word("1", (240, 180))]))
    for points in ([(236, 168), (244, 168), (244, 190), (236, 190)], [(236, 169), (244, 168), (245, 190), (237, 191)]):
        crop = crops.rectify(page, points)
        assert crop is not None
        assert crop.shape[0] > crop.shape[1]


def test_rotated_box_is_read_from_its_own_corner() -> None:
    upside_down = Word("Invoice", (240, 180), 180)
    plain = Word("Invoice", (240, 180))
    upright = crops.rectify(np.asarray(draw_page([plain])), plain.corners(), has_reading_order=True)
    crop = crops.rectify(np.asarray(draw_page([upside_down])), upside_down.corners(), has_reading_order=True)
    assert crop is not None
    assert upright is not None
    assert np.corrcoef(upright.ravel(), crop.ravel())[0, 1] > 0.95


@pytest.mark.parametrize(
    ("points", "shape"),
    [
        ([(10, 10), (10.4, 10), (10.4, 10.4), (10, 10.4)], None),  # less than a pixel
        ([(-50, -50), (-10, -50), (-10, -10), (-50, -10)], None),  # outside
        ([(10, 10), (40, 10), (20, 10)], None),  # a line
        ([(0, 0), (480, 0), (480, 2), (0, 2)], (2, 200)),  # wider than any text is
        ([(-1e9, 0), (1e9, 0), (1e9, 40), (-1e9, 40)], (48, 480)),  # all across
        ([(10, 10), (110, 10), (110, 30), (60, 32), (10, 30)], (30, 117)),  # five corners
    ],
)
def test_degenerate_shapes_are_cropped_or_skipped(
    points: list[tuple[float, float]], shape: tuple[int, int] | None
) -> None:
    crop = crops.rectify(np.asarray(draw_page([])), points)
    assert (None if crop is None else crop.shape[:2]) == (None if shape is None else pytest.approx(shape, abs=1))


def test_lines_are_sorted_in_reading_order() -> None:
    def line(left: float, top: float) -> TextLine:
        return TextLine(((left, top), (left + 50, top), (left + 50, top + 20), (left, top + 20)))

    rows = [[line(10, 12), line(90, 10), line(200, 15)], [line(5, 40), line(120, 44)]]
    mixed = [rows[1][1], rows[0][2], rows[0][0], rows[1][0], rows[0][1]]
    assert sort_in_reading_order(mixed) == [*rows[0], *rows[1]]
    assert sort_in_reading_order([]) == []


@pytest.mark.parametrize("angle", [-90, -30, -10, -2, 0, 2, 10, 30])
def test_reading_order_follows_page_rotation(angle: float) -> None:
    """Two columns are sorted row by row, and a text in the margin by its center."""
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))

    def line(left: float, top: float, width: float, height: float) -> TextLine:
        right, low = left + width, top + height
        corners = (left, top), (right, top), (right, low), (left, low)
        return TextLine(tuple((x * cosine - y * sine, x * sine + y * cosine) for x, y in corners))

    heading = line(40, 0, 300, 50)
    columns = [line(left, 60 + 30 * row, 140 - row, 20) for row in range(6) for left in (40, 200)]
    margin = line(0, 62, 16, 165)
    expected = [heading, *columns[:6], margin, *columns[6:]]
    for seed in range(5):
        assert sort_in_reading_order(random.Random(seed).sample(expected, len(expected))) == expected


def test_reading_order_of_large_text_beside_small_lines() -> None:
    def line(left: float, top: float, width: float, height: float) -> TextLine:
        return TextLine(((left, top), (left + width, top), (left + width, top + height), (left, top + height)))

    large = line(0, 0, 200, 100)
    small = [line(360 - 50 * row, 35 * row + 52, 100, 20) for row in range(4)]
    assert sort_in_reading_order([*small[::-1], large]) == [large, *small]


# ---- thresholds


def test_threshold_applies_to_shapes_and_text_threshold_to_texts(work: Path) -> None:
    """The third word is gray, so its score is lower. All texts have a low confidence."""
    task = {"data": {"ocr": "page.png"}}
    (unfiltered,) = predict(work, [task], OCR_CONFIG, threshold=0)
    scores = [region.score for region in unfiltered.result if region.type in ("rectangle", "polygon")]
    assert [score > 0.8 for score in scores if score is not None] == [True, True, False]
    (confident,) = predict(work, [task], OCR_CONFIG, threshold=0.8)
    assert len(types(confident)) == 2
    assert all(len(group) == 3 for group in types(confident)), "the threshold of shapes was applied to texts"
    (without_texts,) = predict(work, [task], OCR_CONFIG, text_threshold=1.0)
    assert types(without_texts) == [["rectangle", "labels"], ["rectangle", "labels"], ["polygon", "labels"]]


# ---- existing shapes


def test_existing_shapes_are_kept_and_read(work: Path) -> None:
    """With ids, geometry and labels, from an annotation, a draft or a prediction."""
    regions = [region for i, word in enumerate(WORDS) for region in make_ocr_regions(word, SIZE, f"region{i}")]
    shapes = [region for region in regions if region["type"] != "textarea"]
    annotated: list[dict[str, Any]] = [
        {"annotations": [{"id": 1, "result": shapes}]},
        {"drafts": [{"result": shapes}]},
        {"predictions": [{"result": shapes, "model_version": "old"}]},
    ]
    predictions = predict(
        work, [{"data": {"ocr": "page.png"}} | fields for fields in annotated], OCR_CONFIG, det="none"
    )
    for prediction in predictions:
        assert [(region.id, region.type, region.score is None) for region in prediction.result] == [
            (f"region{i}", type, type != "textarea") for i in range(3) for type in ("rectangle", "labels", "textarea")
        ]
        assert [region.value for region in prediction.result[::3]] == [region["value"] for region in regions[::3]]
        assert all(region.value["labels"] == ["Handwriting"] for region in prediction.result[1::3])
        assert texts(prediction) == texts(predictions[0])


def test_existing_shapes_are_read_with_rectangle_labels(work: Path) -> None:
    regions = make_ocr_regions(WORDS[0], SIZE, "drawn")
    task = {"data": {"ocr": "page.png"}, "annotations": [{"id": 1, "result": regions}]}
    (prediction,) = predict(work, [task], MERGED_CONFIG, det="none")
    assert types(prediction) == [["rectanglelabels", "textarea"]]
    assert prediction.result[0].id == "drawn"
    assert prediction.result[0].value["rectanglelabels"] == ["printed"]


def test_shapes_with_shared_id_keep_their_labels_and_texts(work: Path) -> None:
    """The second of two shapes with the same id gets a new one."""
    result = [*make_ocr_regions(WORDS[0], SIZE, "same"), *make_ocr_regions(WORDS[1], SIZE, "same", text="other")]
    result[1]["value"]["labels"] = ["Handwriting", "Text", "gone"]
    for regions in (result, result[::-1]):
        task = {"data": {"ocr": "page.png"}, "annotations": [{"id": 1, "result": regions}]}
        (prediction,) = predict(work, [task], OCR_CONFIG, det="none")
        assert types(prediction) == [["rectangle", "labels", "textarea"]] * 2
        labels = {region.value["x"]: region.value["labels"] for region in prediction.result if region.type == "labels"}
        assert labels == {
            result[0]["value"]["x"]: ["Handwriting", "Text"],
            result[3]["value"]["x"]: ["Handwriting"],
        }
        control_binding = bind(OcrBinding(LabelConfig.parse(OCR_CONFIG)), "ocr").control_bindings[0]
        texts_at = {
            shape.existing_shape.value["x"]: shape.text for shape in transcribed_shapes(regions, control_binding, SIZE)
        }
        assert texts_at == {result[0]["value"]["x"]: "Invoice", result[3]["value"]["x"]: "other"}


def test_export_without_ids_is_grouped_by_geometry(work: Path, shared_data: Path) -> None:
    (row,) = json.loads((shared_data / "exports" / "image-ocr-json_min.json").read_bytes())
    row["ocr"] = "page.png"
    (prediction,) = predict(work, [row], OCR_CONFIG, det="none")
    assert types(prediction) == [["rectangle", "labels", "textarea"], ["polygon", "labels", "textarea"]]
    assert [region.value["labels"] for region in prediction.result[1::3]] == [["Text"], ["Handwriting"]]


def test_task_without_shapes_gets_empty_prediction(work: Path) -> None:
    (prediction,) = predict(work, [{"data": {"ocr": "page.png"}}], OCR_CONFIG, det="none")
    assert (prediction.result, prediction.score) == ((), None)


# ---- commands


def command(work: Path, *options: str, config: str = "template.xml") -> list[str]:
    with_params = [part for name, value in params(work).items() for part in ("--with", f"{name}={value}")]
    return ["--model", "ocr", "--label-config", str(work / config), *with_params, "--with", "precision=fp32", *options]


def test_receipts_get_valid_predictions(lsml: Lsml, shared_data: Path, tmp_path: Path) -> None:
    from label_studio_sdk.label_interface.interface import LabelInterface

    exports = shared_data / "exports"
    run = lsml(
        "predict",
        exports / "receipts-annotated.json",
        "--model",
        "ocr",
        "-c",
        exports / "receipts.xml",
        "--document-root",
        shared_data,
        "--threshold",
        "0",
        "-o",
        tmp_path / "out.json",
    )
    assert run.returncode == 0, run.stderr
    assert all(line.startswith("lsml: ") for line in run.stderr.splitlines()), "the toolkits printed something"
    assert run.stdout == ""
    predicted = json.loads((tmp_path / "out.json").read_bytes())
    exported = json.loads((exports / "receipts-annotated.json").read_bytes())
    assert [task["id"] for task in predicted] == [task["id"] for task in exported]
    interface = LabelInterface((exports / "receipts.xml").read_text())
    for task in predicted:
        (prediction,) = task["predictions"]
        assert prediction["result"]
        assert interface.validate_prediction(prediction, return_errors=True) == []


def test_broken_image_costs_one_task(lsml: Lsml, work: Path, tmp_path: Path) -> None:
    (work / "broken.png").write_bytes((work / "page.png").read_bytes()[:300])
    names = ["page.png", "page.png", "broken.png", "page.png", "nowhere.png", "page.png"]
    tasks = [{"id": number, "data": {"ocr": name}} for number, name in enumerate(names)]
    (work / "some.json").write_text(json.dumps(tasks))
    out, errors = tmp_path / "out.json", tmp_path / "errors.jsonl"
    run = lsml("predict", work / "some.json", *command(work), "-o", out, "--errors", errors, cwd=ROOT)
    assert run.returncode == 3, run.stderr
    predicted = json.loads(out.read_bytes())
    assert [task["id"] for task in predicted] == list(range(6))
    assert [len(task["predictions"]) for task in predicted] == [1, 1, 0, 1, 0, 1]
    assert len({json.dumps(task["predictions"][0]["score"]) for task in predicted if task["predictions"]}) == 1
    assert [(line["id"], line["stage"]) for line in map(json.loads, errors.read_text().splitlines())] == [
        (2, "encode"),
        (4, "fetch"),
    ]


def test_killed_run_resumes_to_identical_output(
    lsml: Lsml, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    tasks = [{"id": n, "data": {"ocr": "template.xml" if n % 30 == 7 else "page.png"}} for n in range(300)]
    (work / "many.json").write_text(json.dumps(tasks))
    options = ["predict", str(work / "many.json"), *command(work, "--batch-size", "4", "--quiet")]
    with subprocess.Popen(
        [sys.executable, "-m", "lsml_cli", *options, "-o", "out.json"], start_new_session=True
    ) as process:
        wait_for(lambda: count_journaled("out.json") > 20, seconds=60)
        process.kill()
    assert process.returncode == -9, "it ended before it was killed"
    assert lsml(*options, "-o", "out.json", "--resume").returncode == 3
    assert lsml(*options, "-o", "clean.json").returncode == 3
    assert Path("out.json").read_bytes() == Path("clean.json").read_bytes()


def test_check_shows_labels_without_loading_model(lsml: Lsml, work: Path) -> None:
    (work / "one.json").write_text(json.dumps([{"id": 1, "data": {"ocr": "page.png"}}]))
    run = lsml("predict", work / "one.json", *command(work), "--check", cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert "renamed: text -> Text" in run.stdout + run.stderr
    missing = lsml(
        "predict",
        work / "one.json",
        "--model",
        "ocr",
        "-c",
        work / "template.xml",
        "--check",
        "--with",
        "recog_config=crnn_mini_vgg_mj",
    )
    assert missing.returncode == 2
    assert f"Near are: {CRNN}" in missing.stderr


@pytest.mark.parametrize(
    ("model_params", "sentence"),
    [
        ({"det": "some"}, "det must be auto, or none"),
        ({"train": "all"}, "train must be recognition, detection or both"),
        ({"text_threshold": 2}, "text_threshold must be a score in 0..1"),
    ],
)
def test_invalid_parameter_is_rejected(model_params: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        find_model("ocr", model_params)


def test_random_weights_are_reported(work: Path) -> None:
    config = LabelConfig.parse(OCR_CONFIG)
    notes = find_model("ocr", {}).build().bind(config, {}, None).notes
    assert ["random weights" in note for note in notes] == [True, True]
    (note,) = find_model("ocr", {"det": "none"}).build().bind(config, {}, None).notes
    assert note.startswith("The recognizer has random weights")


def test_checkpoint_of_other_model_is_rejected(work: Path) -> None:
    with pytest.raises(ModelError, match=r"reads\.pth does not belong to satrn"):
        find_model("ocr", params(work, det="none", recog_config="satrn_shallow-small_5e_st_mj")).open("cpu")


# ---- training


@pytest.mark.parametrize(
    ("model_params", "transcribed", "sentence"),
    [
        ({"train": "detection", "recog_ckpt": "nope.pth"}, True, r"The checkpoint nope\.pth does not exist"),
        (
            {"train": "detection", "recog_config": "satrn_shallow-small_5e_st_mj"},
            True,
            r"reads\.pth does not belong to satrn",
        ),
        (
            {"train": "both", "recog_config": "satrn_shallow-small_5e_st_mj"},
            True,
            r"reads\.pth does not belong to satrn",
        ),
        ({"train": "both"}, False, "There is nothing to learn to read"),
    ],
)
def test_unusable_input_is_reported_before_training(
    work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_params: dict[str, Any],
    transcribed: bool,
    sentence: str,
) -> None:
    (tmp_path / "small.py").write_text(SMALL_DETECTOR_CONFIG)
    monkeypatch.setattr(train, "train", lambda *args, **others: pytest.fail("it was trained"))
    rows = write_pages(tmp_path / "pages", 2)
    for annotation in (row["annotations"][0] for row in rows):
        annotation["result"] = [
            region for region in annotation["result"] if transcribed or region["type"] != "textarea"
        ]
    spec = find_model("ocr", params(work) | {"det_config": str(tmp_path / "small.py")} | model_params)
    (tmp_path / "pages.json").write_text(json.dumps(rows))
    config, tasks = LabelConfig.parse(OCR_CONFIG), read_tasks(str(tmp_path / "pages.json"))
    with pytest.raises(ModelError, match=sentence):
        fit_version(spec, tasks, config, tmp_path / "models", holdout=0, media=Media(tmp_path))


def test_version_stores_training_pipeline_of_detector(tmp_path: Path) -> None:
    """Also where the original config is gone."""
    (tmp_path / "small.py").write_text(SMALL_DETECTOR_CONFIG)
    component = OcrComponent("det", None, str(tmp_path / "small.py"), None, False)
    stored_component = replace(component, folder=tmp_path)

    def steps(source: OcrComponent) -> Any:
        settings: dict[str, Any] = {
            "batch_size": 2,
            "lr": None,
            "warm_start": True,
            "has_validation": False,
            "num_workers": 0,
        }
        files: dict[str, Any] = {"folder": tmp_path, "dictionary": tmp_path / "dictionary.txt"}
        config = configuration.build_training_config(
            configuration.build_model_config(source, own_characters=False), source, **files, **settings
        )
        return config["train_dataloader"]["dataset"]["pipeline"]

    model_config, expected = configuration.build_model_config(component, own_characters=False), steps(component)
    configs.save(model_config, tmp_path, config_filename("det"))
    (tmp_path / "small.py").unlink()
    assert [step["type"] for step in expected[1:3]] == ["LoadOCRAnnotations", "RandomCrop"]
    assert steps(replace(stored_component)) == expected
    configs.save(
        {key: model_config[key] for key in model_config if key != "train_dataloader"}, tmp_path, config_filename("det")
    )
    with pytest.raises(ModelError, match=r"config small has no train_dataloader .* or is no longer there"):
        steps(replace(stored_component))


@pytest.mark.timeout(900)
def test_recognizer_learns_to_read_numbers(trained_recognizer: Path) -> None:
    (folder,) = [path for path in trained_recognizer.iterdir() if path.is_dir()]
    version = json.loads((folder / "model.json").read_bytes())
    state = version["state"]
    assert (state["parts"], state["trained"]) == (["recog"], ["recog"])
    assert state["recognition"]["characters"] == "0123456789"
    assert version["metrics"]["transcription"]["exact"] >= 0.95
    assert sorted(version["files"]) == [
        "dictionary.txt",
        "held_out_tasks.npy",
        "recog.safetensors",
        "recog_config.py",
        "trained_tasks.npy",
    ]
    for name in ("recog_config.py", "model.json"):
        assert str(trained_recognizer) not in (folder / name).read_text(), f"{name} holds a path of this machine"


@pytest.mark.timeout(900)
def test_moved_version_reads_turned_numbers(trained_recognizer: Path, work: Path, tmp_path: Path, lsml: Lsml) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(trained_recognizer, moved)
    tasks = write_pages(tmp_path / "pages", 8, seed=5)
    expected = [text for task in tasks for text in stored(task, "annotations")]
    for annotation in (task["annotations"][0] for task in tasks):
        annotation["result"] = [region for region in annotation["result"] if region["type"] != "textarea"]
    (tmp_path / "pages.json").write_text(json.dumps(tasks))
    run = lsml("predict", "pages.json", "--model", moved, "-o", "out.json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    texts_read = [
        text for task in json.loads((tmp_path / "out.json").read_bytes()) for text in stored(task, "predictions")
    ]
    assert len(texts_read) == len(expected)
    assert np.mean([text == expected_text for text, expected_text in zip(texts_read, expected, strict=True)]) >= 0.8


@pytest.mark.timeout(900)
def test_detector_is_trained_after_recognizer(
    trained_recognizer: Path, digits: Path, tmp_path: Path, lsml: Lsml
) -> None:
    """The version holds both components then, and reads as before."""
    (tmp_path / "small.py").write_text(SMALL_DETECTOR_CONFIG)
    (tmp_path / "pages.json").write_text(json.dumps(write_pages(tmp_path / "pages", 10)))
    output = tmp_path / "both"
    params = [f"det_config={tmp_path / 'small.py'}", "det=auto", "train=detection", "pretrained=false", "epochs=1"]
    fit = ("fit", tmp_path / "pages.json", "--init-from", trained_recognizer, "-o", output)
    options = [part for param in params for part in ("--with", param)]
    # A version may not decide that the config of its recognizer, which is Python, is run again.
    confirmation = f"--with recog_config={digits / 'small.py'}"
    refused = lsml(*fit, *options)
    assert (refused.returncode, confirmation in refused.stderr) == (2, True), refused.stderr
    run = lsml(*fit, *options, *confirmation.split(), timeout=600)
    assert run.returncode == 0, run.stderr
    (tmp_path / "small.py").unlink()
    (folder,) = [path for path in output.iterdir() if path.is_dir()]
    state = json.loads((folder / "model.json").read_bytes())["state"]
    assert (state["parts"], state["trained"]) == (["det", "recog"], ["det"])
    with load_model(str(output), media=Media(tmp_path)) as model:
        ((_, prediction),) = model.predict([{"data": {"ocr": "pages/1.png"}}])
    assert isinstance(prediction, Prediction)
    with load_model(find_model(str(output), {"det": "none"}), media=Media(tmp_path)) as model:
        outcomes = list(model.predict(json.loads((tmp_path / "pages.json").read_bytes())))
    texts_read = [
        text for _, prediction in outcomes if isinstance(prediction, Prediction) for text in texts(prediction)
    ]
    expected = [text for task, _ in outcomes for text in stored(dict(task.raw), "annotations")]
    assert len(texts_read) == len(expected)
    assert np.mean([text == expected_text for text, expected_text in zip(texts_read, expected, strict=True)]) >= 0.9
