"""The config of a trained version of OpenMMLab's models is data: without the toolkits, which are not needed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lsml_cli.errors import ModelError
from lsml_cli.models.openmmlab import configs, toolkit

NAMES = {
    "mmengine": frozenset({"ConvModule", "Resize"}),
    "mmdet": frozenset({"RTMDet", "Detector", "CocoDataset", "PackDetInputs"}),
    "mmocr": frozenset({"Dictionary", "DBNet"}),
}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    names = NAMES | {"ops": frozenset({"nms", "RoIAlign"}), "": frozenset().union(*NAMES.values())}
    monkeypatch.setattr(toolkit, "registered_names", lambda: names)


def save(folder: Path, **model: Any) -> None:
    pipeline = [{"type": "Resize", "scale": (64, 64)}, {"type": "PackDetInputs", "meta_keys": ("img_path", "a.b")}]
    metainfo = {"classes": ("x/y", "cfg.py", "dictionary.txt")}
    dataset = {"type": "CocoDataset", "metainfo": metainfo, "pipeline": pipeline}
    config = {"default_scope": "mmdet", "model": {"type": "RTMDet"} | model, "test_dataloader": {"dataset": dataset}}
    configs.save(config, folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with files that a version could name."""
    monkeypatch.chdir(tmp_path)
    for name in ("cfg.py", "evil", "dictionary.txt", "x"):
        Path(name).mkdir() if name == "x" else Path(name).touch()
    Path("x/y").touch()
    return tmp_path


def test_config_with_registered_parts_is_read(folder: Path) -> None:
    save(
        folder,
        backbone={"type": "mmdet.Detector", "dictionary": {"type": "mmocr.Dictionary", "dict_file": "dictionary.txt"}},
        test_cfg={"nms": {"type": "nms"}, "roi_layer": {"type": "RoIAlign"}},  # which are registered nowhere
        neck={"type": "mmcv.ConvModule", "mode": "nearest", "_scope_": "mmengine", "symbols": [".", "/", "a.b/c"]},
    )
    assert configs.load(folder)["model"]["type"] == "RTMDet"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "mmengine.load", "file": "x.pkl"},
        {"type": "mmengine.load"},
        {"type": "mmdet.load"},
        {"type": "antigravity"},
        {"type": "__main__"},
        {"type": "os.system"},
        {"type": "nms", "nms": {"type": "exit"}},  # which mmcv would evaluate
        {"type": "RTMDet", "constructor": "antigravity"},
        {"type": "RTMDet", "_scope_": "antigravity"},
        {"type": "mmocr.RTMDet"},
    ],
)
def test_config_that_names_what_is_not_registered_is_refused(folder: Path, part: dict[str, Any]) -> None:
    """mmengine would import such a name, or take an attribute of a package: mmengine.load unpickles a file."""
    for model in ({"backbone": part}, {"necks": [[part]]}, part):
        save(folder, **model)
        with pytest.raises(ModelError, match=r"config\.py would run .*, which is no registered part of a model"):
            configs.load(folder)


@pytest.mark.parametrize(
    "part",
    [
        {"teacher_config": "cfg.py"},
        {"teacher_ckpt": "evil"},
        {"anything": "cfg.py"},
        {"anything": ["cfg.py"]},
        {"anything": ("./evil",)},
        {"checkpoint": "https://example.com/evil.pth"},
        {"name": "https://example.com/evil.pth"},
        {"zs_weight_path": "evil"},
    ],
)
def test_config_that_names_a_file_is_refused(folder: Path, part: dict[str, Any]) -> None:
    """Some models read a config, which is Python, or a checkpoint, which mmengine unpickles, when they are built."""
    save(folder, head={"type": "Detector"} | part)
    with pytest.raises(ModelError, match="a version may not name files"):
        configs.load(folder)


@pytest.mark.parametrize("kind", ["Pretrained", "mmengine.Pretrained", "PretrainedInit", "Detector", None])
def test_weights_to_start_from_are_left_out_of_a_version(folder: Path, kind: str | None) -> None:
    """It has weights of its own; training from it would unpickle these."""
    start = ({"type": kind} if kind else {}) | {"checkpoint": "https://example.com/start.pth"}
    save(folder, init_cfg=[start], backbone={"type": "Detector", "init_cfg": start, "pretrained": "evil"})
    model = configs.load(folder)["model"]
    assert model == {
        "type": "RTMDet",
        "init_cfg": [],
        "backbone": {"type": "Detector", "init_cfg": None, "pretrained": None},
    }


def test_config_of_a_run_names_its_files(folder: Path) -> None:
    """`train_worker` reads what lsml has just written, with the folder of the run in it."""
    save(folder, work_dir=str(folder))
    assert configs.load_literals(folder)["model"]["work_dir"] == str(folder)


@pytest.mark.parametrize(
    "loader", [None, 5, "x", [], {}, {"dataset": "x"}, {"dataset": {"pipeline": ["x"]}}, {"dataset": {"datasets": [3]}}]
)
def test_config_without_a_pipeline_is_one_sentence(loader: Any) -> None:
    with pytest.raises(ModelError, match="nothing says how images are prepared"):
        configs.test_pipeline({"model": {"type": "RTMDet"}, "test_dataloader": loader})
