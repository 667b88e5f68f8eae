"""A model that is loaded and bound to a label config, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from lsml_cli.errors import UsageError
from lsml_cli.inference.dispatch import predict_stream
from lsml_cli.inference.placement import find_devices, open_replicas
from lsml_cli.inference.record_codec import TaskCodec
from lsml_cli.io.json_records import Record
from lsml_cli.io.task_reader import parse_task
from lsml_cli.media.fetcher import Media
from lsml_cli.models.base import Model
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.registry.resolve import class_spec, find_label_config, find_model
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Failure, Outcome
from lsml_cli.schema.tasks import Task, UnreadableRecord, describe_json_type

TaskLike = Task | UnreadableRecord | Mapping[str, Any]


def load_model(
    model: str | type[Model] | ModelSpec,
    label_config: LabelConfig | str | Path | None = None,
    *,
    params: Mapping[str, Json] | None = None,
    label_map: Mapping[str, str] | None = None,
    threshold: float | None = None,
    device: str = "auto",
    workers: int = 1,
    media: Media | str | Path | None = None,
) -> LoadedModel:
    """Load a model and bind it to a label config.

    Args:
        model: As on the command line ("models/news", "text-classifier", "model.py:Class",
            "model.py:Class@models/news"), or a class, or a spec.
        label_config: Labelling XML, or the path of a file with it; None: what a trained version was trained for.
        params: Parameters of the model, `--with` on the command line.
        label_map: {class of the model: label of the config}, where the names differ.
        threshold: Drop regions that score below this probability.
        device: "auto", "cpu", "cuda:0", ...; several with commas.
        workers: Processes or encoding threads, whichever the model asks for. More than one process for a class that is
            defined in the running script needs Python's `if __name__ == "__main__":` around what that script runs.
        media: Folder with the tasks' media; a `lsml_cli.media.fetcher.Media` where they come from elsewhere.

    Returns:
        The model, ready to predict. Use it in a `with` block, or `close` it.

    Raises:
        UsageError: There is no label config, or `params` are given with a spec.
        UnknownModel: There is no such model.
        LabelMismatch: The model cannot fill the label config; this is found before anything heavy is loaded.
        ModelError: The model cannot be loaded.

    Example:
        >>> with load_model("models/news", "config.xml") as model:
        ...     for task, outcome in model.predict(read_tasks("tasks.json")):
        ...         print(task.id, outcome)
    """
    spec = to_spec(model, params)
    config = to_config(label_config) or find_label_config(spec, model if isinstance(model, str) else "")
    if config is None:
        raise UsageError(f"{spec.name} needs a label config.", 'Name the labelling XML: load_model(..., "config.xml").')
    binding = spec.build().bind(config, label_map or {}, None)  # raises before anything heavy is loaded
    stack = ExitStack()
    replicas = stack.enter_context(
        open_replicas(
            spec,
            config,
            label_map=label_map,
            threshold=threshold,
            devices=find_devices(device, spec.model_class()),
            workers=workers,
            media=Media(Path(media)) if isinstance(media, str | Path) else media,
        )
    )
    return LoadedModel(spec, config, (*spec.notes, *binding.notes), replicas, stack)


class LoadedModel:
    """A model with its weights in memory, from `load_model`: `open_replicas` and `predict_stream` in one object.

    Use it in a `with` block, or `close` it.

    Attributes:
        spec: The model's spec.
        config: The label config that it is bound to.
        notes: Sentences to read once about how the model fits the label config.

    Example:
        >>> model = load_model("models/news", "config.xml")
        >>> [(task, outcome)] = model.predict([{"text": "Shares fell on Monday"}])
        >>> outcome.result[0].value
        {'choices': ['Business']}
        >>> model.close()
    """

    def __init__(
        self, spec: ModelSpec, config: LabelConfig, notes: tuple[str, ...], replicas: list[Any], stack: ExitStack
    ) -> None:
        self.spec = spec
        self.config = config
        self.notes = notes
        self._replicas = replicas
        self._stack = stack

    def predict(self, tasks: Iterable[TaskLike], *, batch_size: int | None = None) -> Iterator[tuple[Task, Outcome]]:
        """Predict tasks as they come; memory holds a few batches.

        Args:
            tasks: From `read_tasks`, or dicts: whole tasks, or bare data such as {"text": "hello"}.
            batch_size: Tasks per batch; None: what the model prefers.

        Returns:
            An iterator of (task, outcome) in the order of `tasks`; an outcome is a `Prediction` or a `Failure`. What
            is no task comes back as an empty one with a Failure that says why.

        Raises:
            UsageError: `tasks` is a path or a single task, or the model was closed.
            ModelError: The model's process dies again and again.

        Example:
            >>> [(task, outcome)] = model.predict([item])  # a single item is a batch of one
        """
        if isinstance(tasks, str | bytes | Path | Mapping):
            raise UsageError(
                f"predict takes an iterable of tasks, not {describe_json_type(tasks)}.",
                'A file: predict(read_tasks("tasks.json")).',
            )
        if not self._replicas:
            raise UsageError(f"{self.spec.model_version} was closed.", "Load it again.")
        size = self.spec.model_class().batch_size if batch_size is None else batch_size
        items = (_read_item(index, item) for index, item in enumerate(tasks))
        return predict_stream(self._replicas, items, batch_size=size, codec=_NotebookCodec())

    def close(self) -> None:
        """Free the weights and end the processes."""
        self._stack.close()
        self._replicas = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.spec.model_version} for {', '.join(map(str, self.config.controls.values()))}>"


def to_spec(model: str | type[Model] | ModelSpec, params: Mapping[str, Json] | None = None) -> ModelSpec:
    """Return the spec of a model given by name, class or spec.

    Raises:
        UsageError: `params` are given with a spec, which has its own.
        UnknownModel: There is no such model.
    """
    if isinstance(model, ModelSpec):
        if params:
            raise UsageError("A ModelSpec has its parameters already.", "Hand them to find_model(name, params).")
        return model
    return find_model(model, params) if isinstance(model, str) else class_spec(model, params)


def to_config(label_config: LabelConfig | str | Path | None) -> LabelConfig | None:
    """Return the label config in labelling XML, or in the file of that name."""
    if label_config is None or isinstance(label_config, LabelConfig):
        return label_config
    if isinstance(label_config, str) and label_config.lstrip("\ufeff \n\t").startswith("<"):
        return LabelConfig.parse(label_config)
    return LabelConfig.load(Path(label_config))


def to_task(index: int, item: Mapping[str, Any]) -> Task:
    """Return the task in a dict, by the rules for a record of a file; raise ValueError with a sentence if none is."""
    try:
        return parse_task(Record(index, f"item {index}", orjson.dumps(item)))
    except TypeError as error:
        raise ValueError(f"not JSON: {error}") from None


def _read_item(index: int, item: Any) -> tuple[Task, Failure | None]:
    """Return the task in what a caller gave, with a failure where there is none."""
    empty_task = Task(index, None, {}, {})
    if isinstance(item, UnreadableRecord):
        return empty_task, Failure("read", f"{item.location}: {item.reason}")
    if isinstance(item, Task):
        return item, None
    if not isinstance(item, Mapping):
        return empty_task, Failure("read", f"expected a task, found {describe_json_type(item)}")
    try:
        return to_task(index, item), None
    except ValueError as error:
        return empty_task, Failure("read", str(error))


class _NotebookCodec(TaskCodec):
    """Takes (task, failure or None) pairs, returns (task, outcome) pairs."""

    def read(self, item: Any) -> tuple[Task | None, Outcome | None]:
        task, failure = item
        return task, failure

    def write(self, item: Any, task: Task | None, outcome: Outcome) -> tuple[Task, Outcome]:
        return item[0], outcome
