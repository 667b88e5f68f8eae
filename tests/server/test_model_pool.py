"""Which model answers for which project: how many are in memory, and what becomes of one that cannot be loaded."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from lsml_cli.errors import LsmlError
from lsml_cli.io import task_reader
from lsml_cli.registry import resolve
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.server import model_pool
from lsml_cli.server.model_pool import ModelLoader, ModelPool, ServedModel
from lsml_cli.training import fit as training
from tests.helpers import trainable_models
from tests.helpers.cli import EXAMPLE

COUNTING = f"{trainable_models.__file__}:Counting"
SOON = 30.0  # seconds that anything here may take


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one version of a small model. Do not write into it."""
    home = tmp_path_factory.mktemp("models") / "counting"
    config = LabelConfig.parse((EXAMPLE / "label_config.xml").read_text())
    training.fit_version(
        resolve.find_model(COUNTING), task_reader.read_tasks(str(EXAMPLE / "annotated.json")), config, home
    )
    return home


@pytest.fixture
def projects(home: Path, tmp_path: Path) -> Callable[[int], Path]:
    """`projects(3)` -> the folder of the version of project 3, which it has from then on."""

    def make(number: int) -> Path:
        shutil.copytree(home, tmp_path / f"project-{number}")
        return next((tmp_path / f"project-{number}").glob("*/model.json")).parent

    return make


def play(home: Path, versions: Path, scenario: Callable[[ModelPool], Coroutine[Any, Any, None]]) -> None:
    """A scenario with an open `Serving`, and afterwards nothing of it runs any more."""

    async def played() -> None:
        found = ModelPool(resolve.find_model(f"{COUNTING}@{home}"), ModelLoader("cpu"), versions_folder=versions)
        async with asyncio.timeout(SOON):
            await found.open()
            try:
                await scenario(found)
            finally:
                await found.close()

    asyncio.run(played())
    assert replicas() == 0


def folder_of(served: ServedModel) -> str:
    """The folder of the project that a model belongs to."""
    assert served.spec.path is not None
    return served.spec.path.parent.name


def replicas() -> int:
    """Processes with a model in them."""
    here = psutil.Process().children()
    return sum("spawn_main" in " ".join(each.cmdline()) for each in here if each.status() != psutil.STATUS_ZOMBIE)


def test_no_more_models_than_there_is_room_for_however_many_are_asked_for(
    home: Path, projects: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_pool, "MAX_LOADED_MODELS", 2)
    for number in range(1, 8):
        projects(number)

    async def scenario(found: ModelPool) -> None:
        async def ask(number: int) -> str:
            served = await found.model_for(number)
            with served.in_use():
                most.append(replicas())
                await asyncio.sleep(0.05)
            return folder_of(served)

        most: list[int] = []
        names = await asyncio.gather(*(ask(number) for number in range(1, 8)))
        assert names == [f"project-{number}" for number in range(1, 8)]
        assert max(most) <= 3, "two of projects, and the started one"
        assert len(found.loaded_versions()) <= 3
        last = list(found.loaded_versions())[-1]
        await asyncio.gather(*(found.model_for(int(last)) for _ in range(3)))
        assert last in found.loaded_versions()

    play(home, tmp_path, scenario)


def test_a_model_in_use_makes_room_only_when_it_is_done(
    home: Path, projects: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_pool, "MAX_LOADED_MODELS", 1)
    projects(1), projects(2)

    async def scenario(found: ModelPool) -> None:
        first = await found.model_for(1)
        with first.in_use():
            second = asyncio.create_task(found.model_for(2))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(second), 0.5)
            assert not first.unloaded.done()
        assert folder_of(await second) == "project-2"
        assert first.unloaded.done()

    play(home, tmp_path, scenario)


def test_who_hangs_up_before_there_is_room_takes_none(
    home: Path, projects: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_pool, "MAX_LOADED_MODELS", 1)
    description = projects(1) / "model.json"
    description.unlink()  # so what is let in leaves at once
    projects(2), projects(3)

    async def scenario(found: ModelPool) -> None:
        asked = [asyncio.create_task(found.model_for(number)) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        asked[1].cancel()
        with pytest.raises(LsmlError):
            await asked[0]
        assert folder_of(await asked[2]) == "project-3"
        assert folder_of(await found.model_for(2)) == "project-2"

    play(home, tmp_path, scenario)


def test_a_version_that_cannot_be_loaded_for_a_moment_is_tried_again(
    home: Path, projects: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = projects(3)
    weights, away = folder / "counts.json", tmp_path / "away"
    description = folder / "model.json"

    async def refused(found: ModelPool) -> str:
        with pytest.raises(LsmlError) as raised:
            await found.model_for(3)
        return str(raised.value)

    async def scenario(found: ModelPool) -> None:
        description.rename(away)
        first = await refused(found)
        assert await refused(found) == first
        away.rename(description)
        assert (await found.model_for(3)).version_folder_name == folder.name, "at once: somebody was at the files"

    async def later(found: ModelPool) -> None:
        content, was = weights.read_bytes(), weights.stat()
        weights.write_bytes(content[:-1])
        first = await refused(found)
        weights.write_bytes(content)
        os.utime(weights, ns=(was.st_atime_ns, was.st_mtime_ns))
        assert await refused(found) == first, "so soon nothing is tried that looks the same"
        monkeypatch.setattr(model_pool, "RETRY_AFTER", 0.0)
        assert (await found.model_for(3)).version_folder_name == folder.name

    play(home, tmp_path, scenario)
    play(home, tmp_path, later)


def test_a_new_version_that_cannot_be_loaded_is_said_once_and_takes_over_when_it_can(
    home: Path, projects: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder = projects(3)
    monkeypatch.setattr(model_pool, "RETRY_AFTER", 0.0)
    newer = folder.with_name("20991231T235959")

    async def scenario(found: ModelPool) -> None:
        await found.model_for(3)
        shutil.copytree(folder, newer)
        described = json.loads((newer / "model.json").read_bytes())
        (newer / "model.json").write_text("{")
        (newer.parent / "current").write_text(f"{newer.name}\n")
        for _ in range(3):
            await found.load_promoted()
        assert (await found.model_for(3)).version_folder_name == folder.name
        (newer / "model.json").write_text(json.dumps(described))
        await found.load_promoted()
        served = await found.model_for(3)
        assert served.version_folder_name == newer.name
        await found.load_promoted()
        assert await found.model_for(3) is served, "a copy of another version is no newer one each second"

    with caplog.at_level(logging.ERROR, "lsml.serve"):
        play(home, tmp_path, scenario)
    assert [record.getMessage().partition(". ")[0] for record in caplog.records] == [
        f"Project 3: the new version cannot be loaded, so {folder.name} goes on"
    ]
