"""`ModelPool`: which model serves which project, how many are loaded, and what a failed load causes."""

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
from lsml_cli.server.model_pool import ModelPool
from lsml_cli.server.served_model import ModelLoader, ServedModel
from lsml_cli.training import fit as training
from tests.conftest import EXAMPLE
from tests.helpers import trainable_models

COUNTING = f"{trainable_models.__file__}:Counting"
TIMEOUT = 30.0  # seconds for one scenario


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one version of a small model; tests must not write into it."""
    folder = tmp_path_factory.mktemp("models") / "counting"
    config = LabelConfig.parse((EXAMPLE / "label_config.xml").read_text())
    training.fit_version(
        resolve.find_model(COUNTING), task_reader.read_tasks(str(EXAMPLE / "annotated.json")), config, folder
    )
    return folder


@pytest.fixture
def add_project(model_folder: Path, tmp_path: Path) -> Callable[[int], Path]:
    """Return a function that gives a project a version of its own, and returns the version's folder."""

    def add(project: int) -> Path:
        shutil.copytree(model_folder, tmp_path / f"project-{project}")
        return next((tmp_path / f"project-{project}").glob("*/model.json")).parent

    return add


def run_with_pool(
    model_folder: Path, versions: Path, scenario: Callable[[ModelPool], Coroutine[Any, Any, None]], **options: Any
) -> None:
    """Run a scenario with an open pool; no replica process may be left afterwards."""

    async def run() -> None:
        spec = resolve.find_model(f"{COUNTING}@{model_folder}")
        pool = ModelPool(spec, ModelLoader("cpu"), versions_folder=versions, **options)
        async with asyncio.timeout(TIMEOUT):
            await pool.open()
            try:
                await scenario(pool)
            finally:
                await pool.close()

    asyncio.run(run())
    assert count_replicas() == 0


def project_folder_name(served: ServedModel) -> str:
    assert served.spec.path is not None
    return served.spec.path.parent.name


def count_replicas() -> int:
    children = psutil.Process().children()
    running = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return sum("spawn_main" in " ".join(child.cmdline()) for child in running)


def test_number_of_loaded_models_is_limited(
    model_folder: Path, add_project: Callable[[int], Path], tmp_path: Path
) -> None:
    for number in range(1, 8):
        add_project(number)

    async def scenario(pool: ModelPool) -> None:
        async def request(project: int) -> str:
            served = await pool.model_for(project)
            with served.in_use():
                replica_counts.append(count_replicas())
                await asyncio.sleep(0.05)
            return project_folder_name(served)

        replica_counts: list[int] = []
        names = await asyncio.gather(*(request(number) for number in range(1, 8)))
        assert names == [f"project-{number}" for number in range(1, 8)]
        assert max(replica_counts) <= 3, "two of projects, and the default model"
        assert len(pool.loaded_versions()) <= 3
        last = list(pool.loaded_versions())[-1]
        await asyncio.gather(*(pool.model_for(int(last)) for _ in range(3)))
        assert last in pool.loaded_versions()

    run_with_pool(model_folder, tmp_path, scenario, max_loaded_models=2)


def test_busy_model_is_unloaded_after_its_last_request(
    model_folder: Path, add_project: Callable[[int], Path], tmp_path: Path
) -> None:
    add_project(1), add_project(2)

    async def scenario(pool: ModelPool) -> None:
        first = await pool.model_for(1)
        with first.in_use():
            second = asyncio.create_task(pool.model_for(2))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(second), 0.5)
            assert not first.unloaded.done()
        assert project_folder_name(await second) == "project-2"
        assert first.unloaded.done()

    run_with_pool(model_folder, tmp_path, scenario, max_loaded_models=1)


def test_cancelled_waiting_request_takes_no_room(
    model_folder: Path, add_project: Callable[[int], Path], tmp_path: Path
) -> None:
    metadata = add_project(1) / "model.json"
    metadata.unlink()  # so that project 1's load fails at once and leaves its room
    add_project(2), add_project(3)

    async def scenario(pool: ModelPool) -> None:
        requests = [asyncio.create_task(pool.model_for(number)) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        requests[1].cancel()
        with pytest.raises(LsmlError):
            await requests[0]
        assert project_folder_name(await requests[2]) == "project-3"
        assert project_folder_name(await pool.model_for(2)) == "project-2"

    run_with_pool(model_folder, tmp_path, scenario, max_loaded_models=1)


async def load_error(pool: ModelPool) -> str:
    """Return the message with which project 3's model cannot be loaded."""
    with pytest.raises(LsmlError) as raised:
        await pool.model_for(3)
    return str(raised.value)


def test_failed_load_is_retried_when_files_change(
    model_folder: Path, add_project: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = add_project(3)
    metadata, moved = folder / "model.json", tmp_path / "moved"

    async def scenario(pool: ModelPool) -> None:
        metadata.rename(moved)
        first = await load_error(pool)
        assert await load_error(pool) == first
        moved.rename(metadata)
        assert (await pool.model_for(3)).version_folder_name == folder.name

    run_with_pool(model_folder, tmp_path, scenario)


@pytest.mark.parametrize(("retry_after", "is_retried"), [(30.0, False), (0.0, True)])
def test_failed_load_is_retried_after_a_while_with_unchanged_files(
    model_folder: Path, add_project: Callable[[int], Path], tmp_path: Path, retry_after: float, is_retried: bool
) -> None:
    folder = add_project(3)
    weights = folder / "counts.json"

    async def scenario(pool: ModelPool) -> None:
        content, stat = weights.read_bytes(), weights.stat()
        weights.write_bytes(content[:-1])
        first = await load_error(pool)
        weights.write_bytes(content)
        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        if is_retried:
            assert (await pool.model_for(3)).version_folder_name == folder.name
        else:
            assert await load_error(pool) == first

    run_with_pool(model_folder, tmp_path, scenario, retry_after=retry_after)


def test_broken_new_version_is_logged_once_and_replaces_the_old_one_when_repaired(
    model_folder: Path, add_project: Callable[[int], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = add_project(3)
    newer = folder.with_name("20991231T235959")

    async def scenario(pool: ModelPool) -> None:
        await pool.model_for(3)
        shutil.copytree(folder, newer)
        metadata = json.loads((newer / "model.json").read_bytes())
        (newer / "model.json").write_text("{")
        (newer.parent / "current").write_text(f"{newer.name}\n")
        for _ in range(3):
            await pool.load_promoted()
        assert (await pool.model_for(3)).version_folder_name == folder.name
        (newer / "model.json").write_text(json.dumps(metadata))
        await pool.load_promoted()
        served = await pool.model_for(3)
        assert served.version_folder_name == newer.name
        await pool.load_promoted()
        assert await pool.model_for(3) is served, "a copied version is not loaded again at every check"

    with caplog.at_level(logging.ERROR, "lsml.serve"):
        run_with_pool(model_folder, tmp_path, scenario, retry_after=0.0)
    assert [record.getMessage().partition(". ")[0] for record in caplog.records] == [
        f"Project 3: the new version cannot be loaded, so {folder.name} stays in use"
    ]
