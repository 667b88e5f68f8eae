"""A model that is loaded and bound to a label config: what a notebook holds in a variable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from lsml_cli.errors import UsageError
from lsml_cli.inference.dispatch import find_devices, open_replicas, predict_stream
from lsml_cli.inference.record_codec import TaskCodec
from lsml_cli.io.json_records import Record
from lsml_cli.io.task_reader import parse_task
from lsml_cli.media.fetcher import Media
from lsml_cli.models.base import Model
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.registry.resolve import class_spec, find_model, stored_label_config
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
    """A model with its weights in memory, ready to predict.

    model         as on the command line ("models/news", "text-classifier", "model.py:Class",
                  "model.py:Class@models/news"), a class, or a spec
    label_config  labelling XML, or the path of a file with it; a trained version remembers its own
    params        the model's own parameters, `--with` on the command line
    label_map     {class of the model: label of the config}, where the names differ
    threshold     leave out what the model is less sure of than this probability
    device        "auto", "cpu", "cuda:0", ...; several with commas
    workers       processes or encoding threads, whichever the model asks for. In a script, more than one process
                  needs Python's `if __name__ == "__main__":` around what it runs
    media         folder that the tasks' pictures lie in; a `lsml_cli.media.fetcher.Media` where they come from elsewhere

    Raises LsmlError with a sentence: UnknownModel, LabelMismatch, ModelError, ...
    """
    spec = to_spec(model, params)
    config = to_config(label_config) or stored_label_config(spec)
    if config is None:
        raise UsageError(f"{spec.name} needs a label config.", 'Name the labelling XML: load_model(..., "config.xml").')
    binding = spec.build().bind(config, label_map or {}, None)  # fails here, before anything heavy is loaded
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
    """What `load_model` gives. `notes` are sentences to read once; use it in a `with` block, or `close` it.

    It is nothing but `open_replicas` and `predict_stream` for a model that stays around.
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
        """Each task with its outcome, a `Prediction` or a `Failure`, in the order of `tasks`, as they come.

        tasks  from `read_tasks`, or any dicts: whole tasks, or bare data such as {"text": "hello"}. What is no task
               comes back as an empty one, with a Failure that says why

        Memory holds a few batches. A single item is a batch of one: `[(task, outcome)] = model.predict([item])`.
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
        """Free the weights, end the processes."""
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
    """The spec of what a caller names as a model."""
    if isinstance(model, ModelSpec):
        if params:
            raise UsageError("A ModelSpec has its parameters already.", "Hand them to find_model(name, params).")
        return model
    return find_model(model, params) if isinstance(model, str) else class_spec(model, params)


def to_config(label_config: LabelConfig | str | Path | None) -> LabelConfig | None:
    """The label config in labelling XML or in the file of that name."""
    if label_config is None or isinstance(label_config, LabelConfig):
        return label_config
    if isinstance(label_config, str) and label_config.lstrip("\ufeff \n\t").startswith("<"):
        return LabelConfig.parse(label_config)
    return LabelConfig.load(Path(label_config))


def to_task(index: int, item: Mapping[str, Any]) -> Task:
    """The task in a dict, by the rules for a record of a file. Raises ValueError with a sentence."""
    try:
        return parse_task(Record(index, f"item {index}", orjson.dumps(item)))
    except TypeError as error:
        raise ValueError(f"not JSON: {error}") from None


def _read_item(index: int, item: Any) -> tuple[Task, Failure | None]:
    nothing = Task(index, None, {}, {})
    if isinstance(item, UnreadableRecord):
        return nothing, Failure("read", f"{item.location}: {item.reason}")
    if isinstance(item, Task):
        return item, None
    if not isinstance(item, Mapping):
        return nothing, Failure("read", f"expected a task, found {describe_json_type(item)}")
    try:
        return to_task(index, item), None
    except ValueError as error:
        return nothing, Failure("read", str(error))


class _NotebookCodec(TaskCodec):
    """Pairs of a task and what was wrong with it go in, `(task, outcome)` comes out."""

    def read(self, item: Any) -> tuple[Task | None, Outcome | None]:
        task, failure = item
        return task, failure

    def write(self, item: Any, task: Task | None, outcome: Outcome) -> tuple[Task, Outcome]:
        return item[0], outcome
