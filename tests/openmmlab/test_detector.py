"""Test `object-detector` with the real MMDetection: prediction, training, and the promises of every model."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from lsml_cli import check_model, find_model
from lsml_cli.errors import LabelMismatch, ModelError, UsageError
from lsml_cli.media.fetcher import Media
from lsml_cli.models.object_detector.model import ObjectDetector
from lsml_cli.models.openmmlab import configs, toolkit
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import AnnotatedTask, Annotation, Task
from tests.openmmlab import shapes

pytestmark = [pytest.mark.openmmlab, pytest.mark.timeout(900)]

YOLOX = "yolox_tiny_8xb8-300e_coco"


def predict(lsml, folder, *options, tasks="shapes.json", model="models/shapes", output="out.json"):
    return lsml(
        *("predict", tasks, "--model", model, "--document-root", ".", "-o", output, "--with", "precision=fp32"),
        *options,
        cwd=folder,
        timeout=600,
    )


def make_task(image, index=0):
    raw = {"id": index + 1, "data": {"image": image}}
    return Task(index, raw["id"], raw["data"], raw)


def regions_of(task):
    return task["predictions"][0]["result"]


@pytest.fixture
def work(trained_detector, tmp_path):
    """Return a writable copy of the trained detector's folder."""
    return Path(shutil.copytree(trained_detector, tmp_path / "work"))


def test_detector_learns_from_export(trained_detector, detector_metrics):
    assert detector_metrics["label"]["map50"] >= 0.7, detector_metrics
    messages = (trained_detector / "messages.txt").read_text()
    assert "Learning 3 classes from" in messages
    assert "hold-out mAP" in messages
    assert all(line.startswith("lsml:") for line in messages.splitlines()), messages  # nothing from the toolkits
    (version,) = [path for path in (trained_detector / "models/shapes").iterdir() if path.is_dir()]
    assert sorted(path.name for path in version.iterdir()) == [
        "config.py",
        "held_out_tasks.npy",
        "model.json",
        "trained_tasks.npy",
        "weights.safetensors",
    ]


def test_moved_version_predicts_same_bytes_and_evaluates(lsml, work):
    assert predict(lsml, work).returncode == 0
    shutil.move(work / "models", work / "elsewhere")
    (work / "small.py").unlink()
    run = predict(lsml, work, model="elsewhere/shapes", output="again.json")
    assert run.returncode == 0, run.stderr
    assert (work / "out.json").read_bytes() == (work / "again.json").read_bytes()
    options = ("--predictions", "out.json", "-c", "shapes.xml", "--json", "measured.json")
    run = lsml("evaluate", "shapes.json", *options, cwd=work)
    assert run.returncode == 0, run.stderr
    assert json.loads((work / "measured.json").read_bytes())["controls"]["label"]["map50"] >= 0.7


def test_random_weights_give_valid_predictions_of_photographs(lsml, shared_data, tmp_path):
    exports = shared_data / "exports"
    run = lsml(
        *("predict", exports / "coco128-all-tasks.json", "--model", "object-detector", "-o", "out.json"),
        *("--with", f"config_file={YOLOX}", "--label-config", exports / "coco128.xml"),
        *("--document-root", shared_data, "--threshold", "0"),
        cwd=tmp_path,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    exported = json.loads((exports / "coco128-all-tasks.json").read_bytes())
    predicted = json.loads((tmp_path / "out.json").read_bytes())
    assert [task["id"] for task in predicted] == [task["id"] for task in exported]
    assert len(predicted) == 128
    assert len([task for task in predicted if regions_of(task)]) > 10  # random weights find something somewhere
    assert "Dropped 9 of the model's 80 classes" in run.stderr
    assert "The model has random weights" in run.stderr
    from label_studio_sdk.label_interface.interface import LabelInterface

    interface = LabelInterface((exports / "coco128.xml").read_text())
    for task in predicted:
        prediction = task["predictions"][0]
        assert not interface.validate_prediction(prediction, return_errors=True)
        scores = [region["score"] for region in prediction["result"]]
        assert prediction["score"] == (pytest.approx(np.mean(scores), abs=1e-4) if scores else None)
        for region in prediction["result"]:
            box = region["value"]
            assert 0 <= box["x"] < box["x"] + box["width"] <= 100.001
            assert 0 <= box["y"] < box["y"] + box["height"] <= 100.001


@pytest.mark.filterwarnings("ignore")  # of what the toolkit's own API imports
def test_boxes_equal_toolkit_inference(work):
    """The same weights through `inference_detector`, image by image."""
    from mmdet.apis import inference_detector
    from safetensors.torch import load_file

    from lsml_cli.models.openmmlab import configs, image_files, inference, toolkit

    (version,) = [path for path in (work / "models/shapes").iterdir() if path.is_dir()]
    model = find_model(str(work / "models/shapes"), {"precision": "fp32"}).open("cpu")
    binding = model.bind(LabelConfig.parse(shapes.CONFIG), {}, None)
    binding.threshold = 0.05
    contents = [(work / "shapes" / f"{n}.png").read_bytes() for n in range(1, 10)]
    tasks = [make_task("x", n) for n in range(9)]
    inputs = [model.encode(task, binding, {"x": content}) for task, content in zip(tasks, contents, strict=True)]
    ours = [seen[0] for seen in model.forward(inputs, binding)]

    from mmengine.config import Config

    net = inference.build_model(configs.load(version), "mmdet")
    net.load_state_dict(load_file(version / "weights.safetensors"))
    net.cfg = Config(
        configs.load(version)
        | {
            "test_dataloader": {
                "dataset": {
                    "pipeline": [{"type": "LoadImageFromFile"}, *configs.test_pipeline(configs.load(version))[1:]]
                }
            }
        }
    )
    net.eval()
    num_detections = 0
    with toolkit.default_scope("mmdet"):
        for content, image_detections in zip(contents, ours, strict=True):
            theirs = inference_detector(net, image_files.decode_image(content)).pred_instances
            theirs = theirs[theirs.scores >= 0.05]
            assert len(theirs) == len(image_detections.detections)
            boxes = [detection.box for detection in image_detections.detections]
            np.testing.assert_allclose(boxes, theirs.bboxes.numpy(), atol=0.05)
            np.testing.assert_allclose(
                [detection.score for detection in image_detections.detections], theirs.scores.numpy(), atol=1e-4
            )
            assert [detection.class_index for detection in image_detections.detections] == theirs.labels.tolist()
            num_detections += len(theirs)
    assert num_detections >= 9


def test_truncated_image_in_batch_costs_one_task(lsml, work):
    predict(lsml, work)
    whole = (work / "shapes/40.png").read_bytes()
    (work / "shapes/40.png").write_bytes(whole[: len(whole) // 2])
    run = predict(lsml, work, "--errors", "errors.jsonl", output="torn.json")
    assert run.returncode == 3
    (failed,) = map(json.loads, (work / "errors.jsonl").read_text().splitlines())
    assert (failed["id"], failed["stage"]) == (40, "encode"), failed
    before, after = (json.loads((work / name).read_bytes()) for name in ("out.json", "torn.json"))
    assert after[39]["predictions"] == []
    assert len(before) == len(after) == 120
    same = [first["predictions"] == second["predictions"] for first, second in zip(before, after, strict=True)]
    assert same.count(False) == 1


def test_killed_run_resumes_to_identical_output(lsml, work):
    assert predict(lsml, work, "--batch-size", "8").returncode == 0
    command = [sys.executable, "-m", "lsml_cli", "predict", "shapes.json", "--model", "models/shapes"]
    command += ["--document-root", ".", "-o", "killed.json", "--with", "precision=fp32", "--batch-size", "8"]
    run = subprocess.Popen(command, cwd=work, stderr=subprocess.DEVNULL)
    journal = work / "killed.json.part.journal"
    while run.poll() is None and not (journal.exists() and len(journal.read_bytes().splitlines()) > 3):
        time.sleep(0.001)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, "it was too quick to be killed"
    resumed = predict(lsml, work, "--batch-size", "8", "--resume", output="killed.json")
    assert resumed.returncode == 0, resumed.stderr
    assert (work / "killed.json").read_bytes() == (work / "out.json").read_bytes()


def test_classes_map_by_name_predicted_values_and_label_map(lsml, work):
    xml = shapes.CONFIG.replace('value="bar"', 'value="Beam" predicted_values="bar"').replace("block", "Cube")
    (work / "other.xml").write_text(xml)
    (work / "map.json").write_text('{"block": "Cube"}')
    run = predict(lsml, work, "-c", "other.xml", "--label-map", "map.json")
    assert run.returncode == 0, run.stderr
    labels = {
        region["value"]["rectanglelabels"][0]
        for task in json.loads((work / "out.json").read_bytes())
        for region in regions_of(task)
    }
    assert labels == {"Beam", "Cube", "tower"}
    run = predict(lsml, work, "-c", "other.xml", "--check")
    assert run.returncode == 0, run.stderr
    assert "2 of the model's 3 classes have a label" in run.stdout
    assert "Dropped 1 of the model's 3 classes" in run.stdout


def test_label_thresholds_override_threshold(lsml, work):
    assert predict(lsml, work, "--threshold", "0.05", output="all.json").returncode == 0
    options = ("--threshold", "0.99", "--with", 'thresholds={"bar": 0.05}')
    assert predict(lsml, work, *options, output="bars.json").returncode == 0
    all_regions, bar_regions = (
        [region for task in json.loads((work / name).read_bytes()) for region in regions_of(task)]
        for name in ("all.json", "bars.json")
    )
    expected = [
        region for region in all_regions if region["value"]["rectanglelabels"] == ["bar"] or region["score"] >= 0.99
    ]
    assert [region["value"] for region in bar_regions] == [region["value"] for region in expected]
    run = predict(lsml, work, "--with", 'thresholds={"bra": 0.5}')
    assert run.returncode == 2
    assert "thresholds names 'bra'" in run.stderr


def test_exif_orientation_is_applied(work):
    from lsml_cli import load_model

    upright = Image.open(work / "shapes/3.png").convert("RGB").resize((160, 128))
    plain, turned = io.BytesIO(), io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(turned, "JPEG", quality=95, exif=_orientation(6))
    turned.seek(0)
    ImageOps.exif_transpose(Image.open(turned)).save(plain, "PNG")
    (work / "turned.jpg").write_bytes(turned.getvalue())
    (work / "plain.png").write_bytes(plain.getvalue())
    with load_model(str(work / "models/shapes"), media=Media(root=work), params={"precision": "fp32"}) as model:
        tasks = [{"id": 1, "data": {"image": name}} for name in ("turned.jpg", "plain.png")]
        first, second = (outcome for _, outcome in model.predict(tasks))
    assert isinstance(first, Prediction)
    assert isinstance(second, Prediction)
    assert first.result
    assert [region.value for region in first.result] == [region.value for region in second.result]
    assert {(region.extra["original_width"], region.extra["original_height"]) for region in first.result} == {
        (160, 128)
    }


def _orientation(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def test_masks_fill_polygons_and_brush_strokes(lsml, tmp_path):
    xml = """<View><Image name="image" value="$image"/>
    <PolygonLabels name="outline" toName="image"><Label value="person"/><Label value="car"/></PolygonLabels>
    <BrushLabels name="brush" toName="image"><Label value="dog"/><Label value="person"/></BrushLabels></View>"""
    (tmp_path / "masks.xml").write_text(xml)
    Image.effect_noise((96, 64), 60).convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "tasks.json").write_text(json.dumps([{"id": 1, "data": {"image": "a.png"}}]))
    options = ("--model", "object-detector", "-c", "masks.xml", "--threshold", "0", "-o", "out.json")
    run = lsml(
        *("predict", "tasks.json", "--document-root", ".", *options),
        *("--with", "config_file=mask-rcnn_r50_fpn_1x_coco", "--with", "precision=fp32"),
        cwd=tmp_path,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    (task,) = json.loads((tmp_path / "out.json").read_bytes())
    from label_studio_sdk.label_interface.interface import LabelInterface

    assert not LabelInterface(xml).validate_prediction(task["predictions"][0], return_errors=True)
    kinds = {region["type"] for region in regions_of(task)}
    assert kinds <= {"polygonlabels", "brushlabels"}
    refused = lsml(
        *("predict", "tasks.json", "--document-root", ".", *options, "--with", f"config_file={YOLOX}"), cwd=tmp_path
    )
    assert refused.returncode == 1
    assert "finds boxes, no masks" in refused.stderr


def test_mask_geometry_of_polygon_and_brush():
    from label_studio_sdk.converter.brush import decode_rle

    from lsml_cli.models.object_detector.binding import ControlBinding
    from lsml_cli.models.object_detector.postprocess import Detection, ImageDetections, Mask

    mask = np.zeros((60, 100), bool)
    mask[10:30, 20:70] = True
    mask[50:52, 90:92] = True  # a speck that belongs to it
    seen = ImageDetections((100, 60), [Detection((20, 10, 70, 30), 0, 0.9, Mask.from_array(mask))])
    task = make_task("a.png")
    config = LabelConfig.parse(
        '<View><Image name="i" value="$image"/><PolygonLabels name="p" toName="i"><Label value="a"/></PolygonLabels>'
        '<BrushLabels name="b" toName="i"><Label value="a"/></BrushLabels></View>'
    )
    polygon, brush = (
        ControlBinding(control, config.objects["i"], {"a": "a"}, {}).regions(task, seen, ["a"], None)[0]
        for control in config.controls.values()
    )
    assert polygon.value["points"] == [[20.5, 17.5], [20.5, 49.1667], [69.5, 49.1667], [69.5, 17.5]]
    drawn = np.array(decode_rle(brush.value["rle"])).reshape(60, 100, 4)[:, :, 3] > 0
    assert (drawn == mask).all()


def test_masks_are_packed_to_their_bounding_box():
    import torch
    from mmengine.structures import InstanceData

    from lsml_cli.models.object_detector.postprocess import extract_detections

    masks = torch.zeros(3, 1000, 1500, dtype=torch.bool)
    masks[:, 200:301, 400:903] = True
    masks[0, 250, 500:600] = False
    boxes, scores = torch.tensor([[400.0, 200, 903, 301]] * 3), torch.tensor([0.9, 0.4, 0.6])
    instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 0, 1]), scores=scores, masks=masks)
    detections = extract_detections(
        SimpleNamespace(ori_shape=(1000, 1500), pred_instances=instances), [0.5, float("inf")]
    )
    (only,) = detections.detections  # of the others one scores too low, one has no label
    assert (only.class_index, only.box) == (0, (400, 200, 903, 301))
    assert only.mask is not None
    assert only.mask.bits.nbytes < 7_000
    assert (only.mask.to_array(detections.size) == masks[0].numpy()).all()


def test_empty_box_is_replaced_by_box_of_mask():
    import torch
    from mmengine.structures import InstanceData

    from lsml_cli.models.object_detector.postprocess import extract_detections

    masks = torch.zeros(3, 60, 100, dtype=torch.bool)
    masks[:2, 10:30, 20:70] = True
    boxes = torch.tensor([[0.0, 0, 0, 0], [21, 11, 69, 29], [0, 0, 0, 0]])  # as SOLO gives them; one that has one
    labels, scores = torch.zeros(3, dtype=torch.long), torch.full((3,), 0.9)
    instances = InstanceData(bboxes=boxes, labels=labels, scores=scores, masks=masks)
    detections = extract_detections(SimpleNamespace(ori_shape=(60, 100), pred_instances=instances), [0.5])
    assert [detection.box for detection in detections.detections] == [(20, 10, 70, 30), (21, 11, 69, 29), (0, 0, 0, 0)]


def test_num_classes_ignores_rpn_head():
    from lsml_cli.models.object_detector import config as recipe
    from lsml_cli.models.openmmlab import configs

    name = "faster-rcnn_r50_fpn_fcos-rpn_1x_coco"
    model = find_model("object-detector", {"config_file": name}).build()
    assert isinstance(model, ObjectDetector)
    assert len(model.classes) == recipe.num_classes(model.config) == 80
    trained = recipe.build_model_config(configs.read(name, "mmdet", "config_file"), ["a", "b"], None)["model"]
    assert (trained["rpn_head"]["num_classes"], trained["roi_head"]["bbox_head"]["num_classes"]) == (1, 2)
    masks = configs.read("mask-rcnn_r50_fpn_1x_coco", "mmdet", "config_file")
    head = recipe.build_model_config(masks, ["a", "b"], None)["model"]["roi_head"]
    assert head["bbox_head"]["num_classes"] == head["mask_head"]["num_classes"] == 2


def test_classes_with_shared_label_keep_own_thresholds():
    from lsml_cli.models.object_detector.postprocess import Detection, ImageDetections

    xml = """<View><Image name="i" value="$image"/><RectangleLabels name="r" toName="i">
    <Label value="Vehicle" predicted_values="car,truck,bus"/></RectangleLabels></View>"""
    detections = [Detection((0, 0, 10, 10), kind, 0.5) for kind in (2, 7, 5)]  # a car, a truck and a bus of COCO's
    cases: tuple[tuple[dict[str, Any], list[int]], ...] = (
        ({"car": 0.9, "truck": 0.1}, [7, 5]),
        ({"truck": 0.1, "car": 0.9}, [7, 5]),
        ({"Vehicle": 0.6, "car": 0.4}, [2]),
    )
    for thresholds, kept_classes in cases:
        model = find_model("object-detector", {"config_file": YOLOX, "thresholds": thresholds}).build()
        binding = model.bind(LabelConfig.parse(xml), {}, None)
        binding.threshold = 0.45
        for detection in detections:
            output = (ImageDetections((10, 10), [detection]),)
            regions = model.decode(output, make_task("a.png"), binding).result
            assert len(regions) == (detection.class_index in kept_classes), (thresholds, detection)
            assert (detection.score >= binding.min_class_scores()[detection.class_index]) == (
                detection.class_index in kept_classes
            )


def test_image_size_is_rounded_to_stride():
    from lsml_cli.models.object_detector import config as recipe
    from lsml_cli.models.openmmlab import configs

    rtmdet = configs.read("rtmdet_tiny_8xb32-300e_coco", "mmdet", "config_file")
    steps = {step["type"]: step for step in configs.test_pipeline(recipe.build_model_config(rtmdet, ["a"], 100))}
    assert steps["Resize"]["scale"] == steps["Pad"]["size"] == (96, 96)
    centernet = configs.read("centernet_r18_8xb16-crop512-140e_coco", "mmdet", "config_file")
    with pytest.raises(UsageError, match="no step Resize that image_size could change"):
        recipe.build_model_config(centernet, ["a"], 128)


@pytest.mark.parametrize(("num_images", "sizes"), [(9, [4, 4]), (10, [4, 4, 2]), (8, [4, 4]), (1, [1])])
def test_last_batch_of_one_image_is_dropped(num_images, sizes):
    from lsml_cli.models.object_detector import config as recipe
    from lsml_cli.models.openmmlab import configs, toolkit
    from lsml_cli.models.openmmlab.image_files import register_modules

    toolkit.import_mmdet()
    register_modules()
    from mmengine.dataset import DefaultSampler
    from mmengine.registry import DATA_SAMPLERS

    class ImageSizes(list):
        def get_data_info(self, number):
            return {"width": self[number], "height": 50}

    config = configs.read(YOLOX, "mmdet", "config_file")
    options: dict[str, Any] = {"batch_size": 4, "lr": None, "augment": True, "warm_start": False}
    options |= {"has_validation": False, "on_gpu": False, "num_workers": 0}
    model_config = recipe.build_model_config(config, ["a"], None)
    training = recipe.build_training_config(model_config, config, run_dir="", **options)["train_dataloader"]
    sampler = DefaultSampler(ImageSizes(([90, 40] * 9)[:num_images]))
    batches = DATA_SAMPLERS.build(training["batch_sampler"] | {"sampler": sampler, "batch_size": 4})
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == len(sizes)


class Evil:
    """Run code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_checkpoint_with_code_needs_trust(lsml, work):
    import torch

    good = {"state_dict": {"a": torch.ones(1)}, "meta": {"dataset_meta": {"classes": ("x",)}}}
    torch.save(good | {"meta": {"evil": Evil()}}, work / "evil.pth")
    options = ("--with", "config_file=small.py", "--with", "checkpoint_file=evil.pth", "-c", "shapes.xml")
    run = predict(lsml, work, *options, model="object-detector")
    assert run.returncode == 1
    assert "evil.pth holds more than weights (posix.mkdir, for one): reading it would run code" in run.stderr
    assert "--with trust_checkpoint=true" in run.stderr
    assert not (work / "ran").exists()
    predict(lsml, work, *options, "--with", "trust_checkpoint=true", model="object-detector")
    assert (work / "ran").exists()  # trust lets it run code


def test_settings_file_cannot_trust_checkpoint(lsml, work):
    (work / "lsml.toml").write_text("[predict.with]\ntrust_checkpoint = true\n")
    run = predict(lsml, work, model="models/shapes")
    assert run.returncode == 2
    assert "may not set that" in run.stderr


def test_mmengine_checkpoint_is_read_without_trust(trained_detector, tmp_path):
    """mmengine stores its curves beside the weights, which needs no trust."""
    import torch
    from mmengine.logging import HistoryBuffer
    from safetensors.torch import load_file

    from lsml_cli.models.openmmlab import checkpoints

    (version,) = [path for path in (trained_detector / "models/shapes").iterdir() if path.is_dir()]
    weights = load_file(version / "weights.safetensors")
    curve = HistoryBuffer([0.5, 0.4], [1, 1])
    messages = {"log_scalars": {"train/loss": curve}, "runtime_info": {"epoch": 3, "lr": np.float64(0.1)}}
    meta = {"dataset_meta": {"classes": shapes.LABELS, "palette": [(1, 2, 3)]}, "epoch": 3, "seed": np.int64(1)}
    torch.save({"state_dict": weights, "meta": meta, "message_hub": messages}, tmp_path / "epoch_3.pth")
    checkpoint = checkpoints.read(str(tmp_path / "epoch_3.pth"))
    assert checkpoint.classes == shapes.LABELS
    assert checkpoint.weights.keys() == weights.keys()
    spec = find_model(
        "object-detector",
        {"config_file": str(trained_detector / "small.py"), "checkpoint_file": str(tmp_path / "epoch_3.pth")},
    )
    with pytest.raises(ModelError, match="tells 80 classes apart, but there are 3 names"):
        spec.build().bind(LabelConfig.parse(shapes.CONFIG), {}, None)


def test_toolkit_warnings_are_silenced():
    script = (
        "import torch; from lsml_cli.models.openmmlab import toolkit; toolkit.import_mmdet()\n"
        "x, look = torch.ones(2, 1, 4), torch.nn.MultiheadAttention(4, 1)\n"  # as ABINet does
        "look(x, x, x, key_padding_mask=torch.zeros(1, 2).bool(), attn_mask=torch.zeros(2, 2))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stderr == ""


def test_unusable_checkpoint_is_described(tmp_path):
    from safetensors.numpy import save

    from lsml_cli.models.openmmlab import checkpoints

    contents = {
        "torn.pth": (b"PK\x03\x04 and then nothing", "damaged, or no checkpoint at all"),
        "list.pth": (pickle.dumps([1, 2]), "damaged, or no checkpoint at all"),
        "page.pth": (b"\n<!DOCTYPE html><html>404</html>", "no checkpoint but an HTML page"),
        "page.safetensors": (b"<html>404</html>", "no checkpoint but an HTML page"),
        "torn.safetensors": (save({"a": np.ones(9)})[:-9], "damaged, or no checkpoint at all"),
        "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "a Git LFS pointer"),
        "renamed.pth": (save({"a": np.ones(9)}), "no checkpoint but safetensors"),
        "noise.pth": (b"%PDF-1.7 of another kind", r"begins with b'%PDF-1.7 of ano"),
        "empty.pth": (b"", "no checkpoint but an empty file"),
    }
    for name, (content, sentence) in contents.items():
        (tmp_path / name).write_bytes(content)
        for trusted in (False, True) if name != "list.pth" else (False,):  # trusting it makes it none
            with pytest.raises(ModelError, match=sentence):
                checkpoints.read(str(tmp_path / name), trust_pickle=trusted)
    with pytest.raises(ModelError, match="does not exist"):
        checkpoints.read(str(tmp_path / "none.pth"))


def test_weights_of_other_config_are_rejected(lsml, trained_detector):
    (version,) = [path for path in (trained_detector / "models/shapes").iterdir() if path.is_dir()]
    weights = f"checkpoint_file={version / 'weights.safetensors'}"
    run = predict(
        lsml,
        trained_detector,
        "--with",
        weights,
        "--with",
        f"config_file={YOLOX}",
        "-c",
        "shapes.xml",
        model="object-detector",
        output="never.json",
    )
    assert run.returncode == 1
    assert "no label in common" in run.stderr  # COCO's classes; nothing of the file is looked at before


def test_config_of_version_runs_no_code(work):
    from lsml_cli.models.openmmlab import configs

    (version,) = [path for path in (work / "models/shapes").iterdir() if path.is_dir()]
    text = (version / "config.py").read_text()
    for evil in (
        text.replace("'type': 'RTMDet'", "'type': 'os.system'"),
        text + "\nimport os\nos.mkdir('ran')\n",
        text + "\nx = __import__('os').mkdir('ran')\n",
        text + "\ncustom_imports = {'imports': ['antigravity']}\n",
    ):
        assert evil != text
        (version / "config.py").write_text(evil)
        with pytest.raises(ModelError):
            configs.load(version)
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["config_file", "checkpoint_file"])
def test_version_rejects_parameters_of_another_model(tmp_path, name):
    from lsml_cli.models.object_detector import config as recipe
    from lsml_cli.models.openmmlab import configs
    from lsml_cli.registry import resolve, version_writer

    model_config = recipe.build_model_config(configs.read(YOLOX, "mmdet", "config_file"), shapes.LABELS, None)
    defaults = {name: parameter.default for name, parameter in (ObjectDetector.declared_params() or {}).items()}
    params = defaults | {"config_file": "gone.py", "checkpoint_file": "gone.pth"}
    with version_writer.open_version_writer(tmp_path / "shapes") as draft:
        configs.save(model_config, draft.folder)
        state = {"classes": list(shapes.LABELS)}
        version = draft.commit(family="object-detector", label_config=shapes.CONFIG, state=state, params=params)
    config = LabelConfig.parse(shapes.CONFIG)
    for overrides in ({}, {name: params[name]}, {"precision": "fp32"}):
        assert resolve.version_spec(version.folder, overrides).build().bind(config, {}, None).can_predict
    other = resolve.version_spec(version.folder, {name: "other"})
    with pytest.raises(UsageError, match=f"holds its own model: {name} changes nothing"):
        other.build().bind(config, {}, None)


def test_config_is_found_by_path_or_packaged_name():
    from lsml_cli.models.openmmlab import configs

    assert configs.find(YOLOX, "mmdet", "config_file").is_file()
    with pytest.raises(UsageError, match="neither a file nor a config that comes with mmdet") as raised:
        configs.find("yolox-tiny", "mmdet", "config_file")
    assert f"Near are: {YOLOX}" in (raised.value.hint or "")
    with pytest.raises(UsageError) as raised:
        configs.find("rtmdet_tt", "mmdet", "config_file")
    assert "Near are: rtmdet_" in (raised.value.hint or "")
    assert "rtmdet_tta" not in (raised.value.hint or "")  # which describes no model
    with pytest.raises(UsageError, match="there is no such file") as raised:
        configs.find("configs/rtmdet_tiny.py", "mmdet", "config_file")
    assert "Near are" not in (raised.value.hint or "")


def test_nothing_to_learn_is_reported_before_training(tmp_path):
    spec = find_model("object-detector", {"config_file": YOLOX, "pretrained": False})
    model = spec.build()
    binding = model.bind(LabelConfig.parse(shapes.CONFIG), {}, None)
    assert not binding.can_predict  # COCO's classes have no label here
    assert "no label in common" in binding.notes[0]
    binding.media = Media(root=tmp_path)
    empty = AnnotatedTask(make_task("a.png"), Annotation(1, []))
    with pytest.raises(ModelError, match="no annotation has a region"):
        model.fit([empty], [], binding, tmp_path, print)
    with pytest.raises(LabelMismatch, match="<RectangleLabels>, <PolygonLabels> and <BrushLabels>"):
        model.bind(
            LabelConfig.parse('<View><Text name="t" value="$t"/><TextArea name="a" toName="t"/></View>'), {}, None
        )


@pytest.mark.parametrize("tag", ["PolygonLabels", "BrushLabels"])
def test_unsupported_control_is_rejected_before_training(lsml, tmp_path, tag):
    shapes.write_dataset(tmp_path, 2)
    (tmp_path / "shapes.xml").write_text(shapes.CONFIG.replace("RectangleLabels", tag))
    run = shapes.fit_detector(lsml, tmp_path, "--dry-run")
    assert run.returncode == 1, run.stderr
    assert "small finds boxes, no masks" in run.stderr


@pytest.mark.parametrize(("scope", "step"), [("mmdet", 20), ("mmocr", 3)])
def test_packaged_configs_fit_into_a_version(scope: toolkit.Scope, step: int) -> None:
    """A sample, since reading all 850 takes minutes. Those of mmpretrain are for tracking, which is no detection."""
    checked = 0
    for path in list(configs.packaged_configs(scope).values())[::step]:
        try:
            model = configs.read(str(path), scope, "config_file")["model"]
        except ModelError:  # part of other configs
            continue
        if "mmpretrain" not in str(model):
            configs.require_known_types({"model": model}, path.stem, toolkit.registered_names())
            checked += 1
    assert checked > 10


def test_training_continues_without_original_config(tmp_path, monkeypatch):
    from lsml_cli.models.object_detector import config as recipe
    from lsml_cli.models.openmmlab import checkpoints, configs, inference, train

    version, images_dir = tmp_path / "version", tmp_path / "images"
    version.mkdir()
    (task,) = shapes.draw_tasks(images_dir, 1)
    (tmp_path / "small.py").write_text(shapes.SMALL_DETECTOR_CONFIG)
    small = configs.read(str(tmp_path / "small.py"), "mmdet", "config_file")
    model_config = recipe.build_model_config(small, shapes.LABELS, 128)
    configs.save(model_config, version)
    checkpoints.save(inference.build_model(model_config, "mmdet").state_dict(), version)
    spec = find_model("object-detector", {"config_file": str(tmp_path / "gone.py")})
    init_from = dataclasses.replace(spec, path=version, state={"classes": list(shapes.LABELS)})
    model = dataclasses.replace(spec, init_from=init_from).build()
    assert isinstance(model, ObjectDetector)
    binding = model.bind(LabelConfig.parse(shapes.CONFIG), {}, None)
    assert (model.classes, binding.notes) == (shapes.LABELS, ())
    binding.media = Media(root=tmp_path)

    class NotTrained(Exception):
        pass

    def instead(folder, config, *_, **__):
        raise NotTrained(config["optim_wrapper"]["optimizer"]["type"])

    monkeypatch.setattr(train, "train", instead)
    example = AnnotatedTask(make_task(task["data"]["image"]), Annotation(1, task["annotations"][0]["result"]))
    messages: list[str] = []
    with pytest.raises(NotTrained, match="AdamW"):
        model.fit([example], [], binding, tmp_path / "out", messages.append)
    assert any("gone.py is not here, or names no optimizer" in message for message in messages)


def test_annotations_convert_to_coco_pixels(tmp_path):
    """Boxes, polygons and brush strokes of an image of 200 x 100 pixels."""
    from lsml_cli.models.object_detector import dataset
    from lsml_cli.models.openmmlab.image_files import TrainingImage
    from lsml_cli.schema import brush_rle

    config = LabelConfig.parse(
        '<View><Image name="i" value="$image"/>'
        '<RectangleLabels name="r" toName="i"><Label value="a"/></RectangleLabels>'
        '<PolygonLabels name="p" toName="i"><Label value="b"/></PolygonLabels>'
        '<BrushLabels name="b" toName="i"><Label value="c"/></BrushLabels></View>'
    )
    mask = np.zeros((100, 200), np.uint8)
    mask[20:40, 50:90] = 255
    boxes = [(10, 10, 20, 30), (90, 90, 20, 30), (1, 1, 0, 9)]  # one of them half outside, one empty
    values = [
        *(
            ("r", {**dict(zip(("x", "y", "width", "height"), box, strict=True)), "rectanglelabels": ["a"]})
            for box in boxes
        ),
        ("p", {"points": [[10, 10], [20, 10], [20, 50]], "polygonlabels": ["b"]}),
        ("b", {"rle": list(brush_rle.encode_rle(mask, 4)), "brushlabels": ["c"]}),
    ]
    size = {"to_name": "i", "original_width": 200, "original_height": 100}
    result = [size | {"from_name": name, "value": value} for name, value in values]
    example = AnnotatedTask(make_task("a"), Annotation(1, result))
    pairs = [
        pair
        for tag in ("RectangleLabels", "PolygonLabels", "BrushLabels")
        for pair in config.find_pairs(tag, ("Image",))
    ]
    classes = dataset.collect_classes([example], pairs, print)
    coco = dataset.build_coco([(TrainingImage(tmp_path / "0", (200, 100), example), pairs)], classes)
    assert classes == ("a", "b", "c")
    assert [(annotation["category_id"], annotation["bbox"]) for annotation in coco["annotations"]] == [
        (0, [20, 10, 40, 30]),
        (0, [180, 90, 20, 10]),  # clipped to the image
        (1, [20, 10, 20, 40]),
        (2, [50, 20, 40, 20]),
    ]
    assert coco["annotations"][3]["area"] == 800


def test_regions_belong_to_their_own_image(tmp_path, monkeypatch):
    from lsml_cli.models.openmmlab import train

    xml = """<View><Image name="one" value="$one"/><Image name="two" value="$two"/>
    <RectangleLabels name="a" toName="one"><Label value="x"/></RectangleLabels>
    <RectangleLabels name="b" toName="two"><Label value="y"/></RectangleLabels></View>"""
    sizes = {"one": (80, 60), "two": (40, 100)}
    for name, size in sizes.items():
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    box = {"x": 25, "y": 50, "width": 50, "height": 50}
    result = [
        {"from_name": control, "to_name": image_name, "value": box | {"rectanglelabels": [label]}}
        for control, image_name, label in (("a", "one", "x"), ("b", "two", "y"))
    ]
    data = {name: f"{name}.png" for name in sizes}
    example = AnnotatedTask(Task(0, 1, data, {"id": 1, "data": data}), Annotation(1, result))
    model = find_model("object-detector", {"config_file": YOLOX, "pretrained": False}).build()
    binding = model.bind(LabelConfig.parse(xml), {}, None)
    binding.media = Media(root=tmp_path)

    class NotTrained(Exception):
        pass

    def instead(folder, *_, **__):
        raise NotTrained((folder / "train.json").read_text())

    monkeypatch.setattr(train, "train", instead)
    with pytest.raises(NotTrained) as raised:
        model.fit([example], [], binding, tmp_path / "out", print)
    coco = json.loads(str(raised.value))
    assert [(item["width"], item["height"]) for item in coco["images"]] == list(sizes.values())
    geometries = [(item["image_id"], item["category_id"], item["bbox"]) for item in coco["annotations"]]
    assert geometries == [(0, 0, [20, 30, 40, 30]), (1, 1, [10, 50, 20, 50])]


def test_broken_training_image_is_skipped_and_wrong_batch_size_rejected(lsml, work):
    (work / "shapes/7.png").write_bytes(b"no image")
    run = shapes.fit_detector(lsml, work, epochs=1, output="models/broken")
    assert run.returncode == 0, run.stderr
    assert "Not learned from task 7: " in run.stderr
    run = shapes.fit_detector(lsml, work, "--with", "batch_size=1", output="models/never")
    assert run.returncode == 2
    assert "batch_size must be a whole number from 2, not 1" in run.stderr


def test_training_continues_from_version_also_with_more_classes(lsml, work):
    run = shapes.fit_detector(lsml, work, "--init-from", "models/shapes", epochs=1, output="models/second")
    assert run.returncode == 0, run.stderr
    first = float(run.stderr.partition("hold-out mAP ")[2].split()[0])
    assert first > 0.3  # after one epoch, which finds nothing from random weights
    text = (work / "shapes.json").read_text().replace('["tower"]', '["mast"]', 20)
    (work / "shapes.json").write_text(text)
    (work / "shapes.xml").write_text(shapes.CONFIG.replace("</Rect", '<Label value="mast"/></Rect'))
    run = shapes.fit_detector(lsml, work, "--init-from", "models/shapes", epochs=1, output="models/third")
    assert run.returncode == 0, run.stderr
    assert "are reinitialized, since they belong to other classes" in run.stderr


def test_launch_trains_in_several_processes(lsml, work):
    run = shapes.fit_detector(lsml, work, "--with", "launch=--nproc-per-node 2", epochs=2, output="models/two")
    assert run.returncode == 0, run.stderr
    assert "Epoch 2 of 2: loss" in run.stderr
    assert run.stderr.count("Epoch 1 of 2") == 1  # only one of them reports


def keep_best(folder, *qualities, patience=15):
    """Return (kept epoch, its mAP) of a training with these validations, one per epoch."""
    import torch

    from lsml_cli.models.openmmlab import toolkit
    from lsml_cli.models.openmmlab.schedule import TrainingSchedule
    from lsml_cli.models.openmmlab.train_worker import MessageWriter, TrainingMonitor

    toolkit.import_mmdet()
    schedule = TrainingSchedule(len(qualities), patience, "coco/bbox_mAP", "hold-out mAP")
    monitor = TrainingMonitor(folder, schedule, MessageWriter(io.StringIO(), True))
    model = torch.nn.Linear(1, 1)
    for epoch, quality in enumerate(qualities, 1):
        if monitor.end_validation(epoch, {"coco/bbox_mAP": quality}, model):
            break
    return monitor.epoch, monitor.metrics.get("coco/bbox_mAP")


def test_best_epoch_is_kept(tmp_path):
    assert keep_best(tmp_path, 0.0, 0.5, 0.6, 0.0, 0.1) == (3, 0.6)
    assert keep_best(tmp_path, 0.6, float("nan"), 0.1) == (1, 0.6)
    assert keep_best(tmp_path, 0.0, 0.0, 0.0) == (
        3,
        0.0,
    )  # nothing is found, the latest weights have learned most
    assert keep_best(tmp_path, 0.0, 0.2, 0.0, 0.0, 0.3, patience=2) == (2, 0.2)


@pytest.mark.parametrize(("kind", "own", "rate"), [("SGD", False, 0.08), ("AdamW", False, 0.04), ("SGD", True, 0.02)])
def test_schedule_is_divided_among_processes(kind, own, rate):
    from lsml_cli.models.openmmlab.schedule import TrainingSchedule, apply_schedule, distribute_schedule

    schedule = TrainingSchedule(10, 15, "", "hold-out mAP", own)
    config: dict[str, Any] = {"optim_wrapper": {"optimizer": {"type": kind, "lr": 0.02}}}
    apply_schedule(config, schedule, 800, 8)
    distribute_schedule(config, schedule, 4)
    warming, falling = config["param_scheduler"]
    assert (warming["begin"], warming["end"]) == (0, 25)
    assert (falling["begin"], falling["end"], falling["T_max"]) == (25, 250, 225)  # of 800 / 8 / 4 steps in ten epochs
    assert config["optim_wrapper"]["optimizer"]["lr"] == pytest.approx(rate)
    assert falling["eta_min"] == pytest.approx(rate * 0.02)
    apply_schedule(config, TrainingSchedule(1, 1, "", ""), 2, 2)
    distribute_schedule(config, schedule, 4)
    warming, falling = config["param_scheduler"]
    assert (warming["end"], falling["begin"], falling["end"], falling["T_max"]) == (1, 1, 2, 1)


def test_ctrl_c_ends_training_and_removes_files(work):
    command = [
        sys.executable,
        "-m",
        "lsml_cli",
        "fit",
        "shapes.json",
        "--model",
        "object-detector",
        *shapes.FIT_OPTIONS,
    ]
    command += ["--with", "config_file=small.py", "--with", "epochs=50", "-c", "shapes.xml", "--document-root", "."]
    run = subprocess.Popen([*command, "-o", "models/ended"], cwd=work, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    for line in run.stderr:
        if "Epoch 1 " in line:
            break
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    run.stderr.close()
    assert not [path for path in (work / "models/ended").rglob("*") if path.is_file()]
    psutil = pytest.importorskip("psutil")
    remaining = [
        child for child in psutil.process_iter(["cmdline"]) if str(work) in " ".join(child.info["cmdline"] or ())
    ]
    assert not remaining


def test_check_model_passes(trained_detector):
    spec = find_model(str(trained_detector / "models/shapes"), {"precision": "fp32"})
    tasks = [{"id": number, "data": {"image": f"shapes/{number}.png"}} for number in range(1, 7)]
    check_model(spec, label_config=shapes.CONFIG, tasks=tasks, annotated=(), media_root=trained_detector)


def test_detector_trains_on_coco_data_set(lsml, shared_data, tmp_path):
    """COCO's own photographs and boxes, without a file of tasks; the version stores the label config that was made."""
    (tmp_path / "small.py").write_text(shapes.SMALL_DETECTOR_CONFIG)
    model = ("--model", "object-detector", "--with", "config_file=small.py", "--with", "epochs=1")
    fit = ("fit", shared_data / "coco128", "--from", "coco", *model, *shapes.FIT_OPTIONS, "-o", "model")
    run = lsml(*fit, "--summary", "fit.json", cwd=tmp_path, timeout=600)
    assert run.returncode == 0, run.stderr
    counts = json.loads((tmp_path / "fit.json").read_bytes())["counts"]
    assert counts["train"] + counts["holdout"] == 128
    run = lsml(
        "predict", shared_data / "coco128", "--from", "coco", "-m", "model", "--limit", "4", cwd=tmp_path, timeout=600
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 4
