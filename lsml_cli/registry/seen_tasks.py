"""Remember the tasks that a version was trained on, and those that were held out, by hashes of their content.

A version stores two sorted arrays of 8-byte hashes, `trained_tasks.npy` and `held_out_tasks.npy`. A task has up to two
hashes: of what its objects show, where a file on this machine counts by its bytes, and of the values as the task states
them. So a task is recognized under another name of its image, and also where the image cannot be read at the moment.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from lsml_cli.errors import ModelError
from lsml_cli.registry import versions
from lsml_cli.registry.versions import HELD_OUT_TASKS_FILE, TRAINED_TASKS_FILE, Version
from lsml_cli.schema.annotations import MediaDigests, content_hash, task_content
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import Task

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

HASH_TYPE = "<u8"

Side = Literal["trained", "held out"]


class TaskHashes(NamedTuple):
    """The hashes of one task: with files by their bytes, and with values as they stand. Often they are equal."""

    content: int
    values: int


def hash_task(task: Task, config: LabelConfig, media: MediaDigests | None = None) -> TaskHashes:
    """Hash what the objects of a task show; `media` reads files on this machine."""
    values = content_hash(task_content(task, config))
    return TaskHashes(values if media is None else content_hash(task_content(task, config, media)), values)


@dataclass(frozen=True)
class SeenTasks:
    """What a version knows about the tasks of its training.

    Attributes:
        name: The version: "news@20261120T213015".
        config: The label config that says what a task shows.
        trained: Sorted hashes of the tasks that it, or a version it started from, was trained on; None if that is not
            known, because an older lsml wrote one of these versions.
        held_out: Sorted hashes of the tasks that were held out; None if not known.
        refit: The version was trained on the held-out tasks as well, after the measurement.
    """

    name: str
    config: LabelConfig
    trained: npt.NDArray[np.uint64] | None
    held_out: npt.NDArray[np.uint64] | None
    refit: bool = False

    @property
    def is_known(self) -> bool:
        """Tell whether it is known what the version was trained on."""
        return self.trained is not None

    @cached_property
    def all_trained(self) -> npt.NDArray[np.uint64] | None:
        """The hashes of all tasks that the weights were trained on, with --refit the held-out ones, too."""
        import numpy as np

        if self.trained is None or not self.refit or self.held_out is None:
            return self.trained
        return np.union1d(self.trained, self.held_out)

    def split_side(self, task: Task, media: MediaDigests | None = None) -> Side | None:
        """Return the side of a task in the version's split; None for a task that it does not know.

        What a file holds decides before its name does.
        """
        for task_hash in dict.fromkeys(hash_task(task, self.config, media)):
            if self.trained is not None and _contains(self.trained, task_hash):
                return "trained"
            if self.held_out is not None and _contains(self.held_out, task_hash):
                return "held out"
        return None

    def was_trained_on(self, task: Task, media: MediaDigests | None = None) -> bool:
        """Tell whether the version was trained on a task; False if that is not known."""
        side = self.split_side(task, media)
        return side == "trained" or (side == "held out" and self.refit)


def read_seen_tasks(folder: Path) -> SeenTasks:
    """Read what the version in a folder knows about the tasks of its training.

    Raises:
        ModelError: The version, or a file of hashes, is damaged.
    """
    version = versions.read(folder)
    return SeenTasks(
        f"{version.name}@{version.version}",
        LabelConfig.parse(version.label_config),
        _read_hashes(version, TRAINED_TASKS_FILE),
        _read_hashes(version, HELD_OUT_TASKS_FILE),
        version.refit,
    )


def write_hashes(path: Path, hashes: Iterable[int]) -> None:
    """Write hashes, sorted and without repetitions.

    Raises:
        OSError: The file cannot be written.
    """
    import numpy as np

    with path.open("wb") as file:
        np.save(file, np.unique(np.fromiter(hashes, HASH_TYPE)), allow_pickle=False)


def shows_the_same(first: LabelConfig, second: LabelConfig) -> bool:
    """Tell whether two label configs show the same of a task, so that their hashes can be compared."""
    return _shown_objects(first) == _shown_objects(second)


def _shown_objects(config: LabelConfig) -> list[tuple[str, str]]:
    names = {name for control in config.controls.values() for name in control.to_names}
    return [(obj.tag, obj.value) for obj in config.objects.values() if obj.name in names]


def _read_hashes(version: Version, name: str) -> npt.NDArray[np.uint64] | None:
    import numpy as np

    if name not in version.files:
        return None
    path = version.folder / name
    try:
        # Mapped, because reading would first reserve whatever memory the file asks for.
        hashes = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:  # what NumPy raises depends on how a header is damaged
        raise ModelError(f"{path} is damaged ({error}).", versions.RESTORE_HINT) from None
    if not isinstance(hashes, np.ndarray) or hashes.dtype != np.dtype(HASH_TYPE) or hashes.ndim != 1:
        raise ModelError(f"{path} is damaged (it is no list of hashes).", versions.RESTORE_HINT)
    return hashes


def _contains(hashes: npt.NDArray[np.uint64], task_hash: int) -> bool:
    import numpy as np

    position = int(np.searchsorted(hashes, np.uint64(task_hash)))
    return position < len(hashes) and int(hashes[position]) == task_hash
