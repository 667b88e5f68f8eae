"""Choose devices, and open replicas of a model on them.

    in this process     `Replica`          called directly, or with threads that encode ahead of the forward lane
    in its own process  `ReplicaProcess`   for models that hold the GIL, for a second device, for isolation

Both are used in the same way, see `dispatch`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from lsml_cli.errors import UsageError
from lsml_cli.inference.record_codec import BindingKey
from lsml_cli.inference.replica import Replica
from lsml_cli.inference.replica_process import ReplicaConfig, ReplicaProcess
from lsml_cli.media.fetcher import Media
from lsml_cli.models.base import Model
from lsml_cli.models.spec import ModelSpec
from lsml_cli.runtime import DEFAULT_FETCH_THREADS, available_cores
from lsml_cli.schema.label_config import LabelConfig


@contextmanager
def open_replicas(
    spec: ModelSpec,
    config: LabelConfig,
    *,
    label_map: Mapping[str, str] | None = None,
    project: str | None = None,
    threshold: float | None = None,
    devices: Sequence[str] = ("cpu",),
    workers: int | None = 1,
    media: Media | None = None,
    fetch_threads: int = DEFAULT_FETCH_THREADS,
) -> Iterator[list[Replica | ReplicaProcess]]:
    """Open replicas of a model, bound to a label config and ready for `predict_stream`; close them on leaving.

    A single replica stays in this process; several get a process each.

    Args:
        spec: The model, from `find_model`.
        config: The label config to bind it to.
        label_map: {class of the model: label of the config}, where the names differ.
        project: The Label Studio project, for models that keep state per project.
        threshold: Drop regions that score below this probability.
        devices: One replica on each, or `workers` of a "process" model; naming a device twice makes two.
        workers: For "process" models the replicas on each device, for "threads" models the threads that encode ahead.
            None: one process, or a thread for each core of the replica's share.
        media: Fetches what tasks point to; closed on leaving.
        fetch_threads: For "threads" models, the threads that wait for media.

    Returns:
        A context manager with the list of replicas.

    Raises:
        ModelError: The model cannot be loaded.
        LabelMismatch: It cannot fill the label config.

    Example:
        >>> spec = find_model("models/news")
        >>> with open_replicas(spec, LabelConfig.load(Path("config.xml")), workers=4) as replicas:
        ...     for task, outcome in predict_stream(replicas, read_tasks("tasks.json"), batch_size=32):
        ...         print(task.id, outcome)
    """
    binding_key = BindingKey(config, label_map or {}, project, threshold)
    is_threaded = spec.model_class().parallelism == "threads"
    replica_devices = [device for device in devices for _ in range(1 if is_threaded else workers or 1)]
    count = len(replica_devices)
    encode_threads = (workers or max(1, available_cores() // count)) if is_threaded else 0
    configs = [
        ReplicaConfig(spec, binding_key, device, encode_threads, media, fetch_threads, count)
        for device in replica_devices
    ]
    with ExitStack() as stack:
        if media is not None:
            stack.callback(media.close)
        replicas: list[Replica | ReplicaProcess] = []
        for replica_config in configs:
            replica = replica_config.open() if count == 1 else ReplicaProcess(replica_config)
            stack.callback(replica.close)
            replicas.append(replica)
        for replica in replicas:  # all of them load at the same time
            if isinstance(replica, ReplicaProcess):
                replica.wait_until_ready()
        gc.freeze()  # what is loaded now stays: the collector need not walk it again and again
        stack.callback(gc.unfreeze)  # frozen objects would outlive Python's shutdown, which some libraries warn about
        yield replicas


def find_devices(requested: str, model: type[Model]) -> list[str]:
    """Return the devices that `--device` names.

    Args:
        requested: "auto" for the best one, "cuda" for all of that kind, else one or several names with commas.
        model: The class of the model.

    Raises:
        UsageError: The model cannot use one of them, or it is not there.
    """
    available = list(model.available_devices())
    if requested == "auto":
        return available[:1]
    return [device for name in requested.split(",") for device in _match_devices(name.strip(), model, available)]


def _match_devices(name: str, model: type[Model], available: Sequence[str]) -> list[str]:
    kind, _, number = name.partition(":")
    if kind not in model.devices or (number and not number.isdigit()):
        raise UsageError(f"{model.__name__} cannot run on {name!r}.", f"It runs on: auto, {', '.join(model.devices)}.")
    matching = [device for device in available if name in (device, device.partition(":")[0])]
    if not matching:
        raise UsageError(f"There is no device {name!r} here.", f"There is: {', '.join(available)}.")
    return matching
