"""Test that an image under two names does not leak from the hold-out into the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lsml_cli.media.fetcher import Media
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import Task
from lsml_cli.training.splits import split_tasks
from tests.helpers.models import IMAGE_CONFIG

CONFIG = LabelConfig.parse(IMAGE_CONFIG)


def annotated(index: int, value: str) -> Task:
    label = {"from_name": "light", "to_name": "image", "type": "choices", "value": {"choices": ["dark"]}}
    raw: dict[str, Any] = {"id": index, "data": {"image": value}, "annotations": [{"id": index, "result": [label]}]}
    return Task(index, index, raw["data"], raw)


def sides(tasks: list[Task], media: Media | None) -> tuple[set[str], set[str]]:
    split = split_tasks(tasks, CONFIG, holdout=0.5, media=media)
    names = [
        {Path(each.task.data["image"]).stem.split("-")[0] for each in side} for side in (split.train, split.held_out)
    ]
    return names[0], names[1]


def test_files_with_equal_bytes_are_on_one_side(tmp_path: Path) -> None:
    tasks: list[Task] = []
    for number in range(40):
        for copy in range(2):
            (tmp_path / f"{number}-{copy}.png").write_bytes(b"image %d" % number)
            tasks.append(annotated(len(tasks), f"{number}-{copy}.png"))
    train, held_out = sides(tasks, Media(tmp_path))
    assert train
    assert held_out
    assert not train & held_out
    train, held_out = sides(tasks, None)
    assert train & held_out  # without media only names are compared


def test_remote_images_are_compared_by_address(tmp_path: Path) -> None:
    tasks = [annotated(number, f"https://example.com/{number}.png") for number in range(40)]
    assert sides(tasks, Media(tmp_path)) == sides(tasks, None)
