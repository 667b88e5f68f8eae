"""Test that an image under two names does not leak from the hold-out into the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lsml_cli.media.fetcher import Media
from lsml_cli.registry import versions
from lsml_cli.registry.resolve import find_model
from lsml_cli.registry.seen_tasks import read_seen_tasks, write_hashes
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import Task
from lsml_cli.training.fit import fit_version
from lsml_cli.training.splits import split_tasks
from tests.helpers.models import IMAGE_CONFIG

ALWAYS_DARK = """
from lsml_cli import Model, Prediction

class Dark(Model):
    def forward(self, inputs, binding):
        return list(inputs)

    def decode(self, output, task, binding):
        return Prediction.of((binding.config.controls["light"].region(task, {"choices": ["dark"]}),), self.version)

    def fit(self, train, validation, binding, out_dir, progress):
        return {}
"""
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


def test_hold_out_is_kept_while_images_are_unreadable_or_elsewhere(tmp_path: Path) -> None:
    """What is held out once stays it, with other files behind the names too; without history sides would change."""
    folder, empty, output = tmp_path / "images", tmp_path / "empty", tmp_path / "m"
    for each in (folder, empty):
        each.mkdir()
    (tmp_path / "dark.py").write_text(ALWAYS_DARK)
    spec = find_model(f"{tmp_path / 'dark.py'}:Dark")
    tasks = [annotated(number, f"{number}.png") for number in range(60)]
    for number in range(60):
        (folder / f"{number}.png").write_bytes(b"image %d" % number)

    def fit(media: Media) -> tuple[set[int], set[int]]:
        result = fit_version(spec, tasks, CONFIG, output, holdout=0.3, media=media)
        split = result.split
        return {each.task.index for each in split.train}, {each.task.index for each in split.held_out}

    first = fit(Media(folder))
    assert fit(Media(empty)) == first
    assert fit(Media(folder)) == first
    assert sides(tasks, Media(folder)) != sides(tasks, Media(empty))

    seen = read_seen_tasks(versions.resolve(str(output)))
    for media in (Media(folder), Media(empty), None):
        held_out = {task.index for task in tasks if not seen.was_trained_on(task, media)}
        assert held_out == first[1]
    (folder / "copy.png").write_bytes((folder / f"{min(first[0])}.png").read_bytes())
    assert seen.was_trained_on(annotated(99, "copy.png"), Media(folder))
    assert not seen.was_trained_on(annotated(99, "new.png"), Media(folder))


def test_hashes_take_eight_bytes_for_each_task(tmp_path: Path) -> None:
    write_hashes(tmp_path / "hashes.npy", (number * 2**40 for number in range(10_000)))
    assert (tmp_path / "hashes.npy").stat().st_size < 10_000 * 8 + 200
