"""Where the predictions that are evaluated come from: an open model, or a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Protocol

from lsml_cli.evaluation.prediction_records import StoredPrediction
from lsml_cli.inference.dispatch import predict_batches
from lsml_cli.inference.replica import Replica
from lsml_cli.inference.replica_process import ReplicaProcess
from lsml_cli.models.base import Model
from lsml_cli.schema.annotations import make_input_task
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Failure, Outcome, Prediction
from lsml_cli.schema.tasks import AnnotatedTask, Task


class PredictionSource(Protocol):
    """What is evaluated.

    Attributes:
        name: What it is called.
        input_controls: Controls that are part of the model's input, and so not evaluated; see `Model.input_controls`.
        output_controls: Controls that it can fill; None if that is not known. See `Binding.output_controls`.
    """

    name: str
    input_controls: Set[str]
    output_controls: Set[str] | None

    def predict(
        self, examples: Sequence[AnnotatedTask], on_done: Callable[[int], None]
    ) -> Sequence[StoredPrediction | None]:
        """Return the prediction of each task, in order; None for a task to leave out.

        Args:
            examples: The tasks.
            on_done: Called with a number of tasks whenever that many more are predicted.
        """


class ModelPredictionSource:
    """The predictions of an open model."""

    def __init__(
        self,
        name: str,
        replicas: Sequence[Replica | ReplicaProcess],
        batch_size: int,
        input_controls: Set[str],
        output_controls: Set[str] | None,
    ) -> None:
        self.name = name
        self.input_controls = input_controls
        self.output_controls = output_controls
        self._replicas = replicas
        self._batch_size = batch_size

    def predict(
        self, examples: Sequence[AnnotatedTask], on_done: Callable[[int], None]
    ) -> list[StoredPrediction | None]:
        tasks = [make_input_task(example, self.input_controls) for example in examples]
        predictions: list[StoredPrediction | None] = []
        for batch in predict_batches(self._replicas, tasks, batch_size=self._batch_size):
            predictions += [to_stored_prediction(outcome) for _, outcome in batch]
            on_done(len(batch))
        return predictions


class FilePredictionSource:
    """Predictions that are looked up task by task, with `PredictionFile.lookup`."""

    def __init__(self, name: str, lookup: Callable[[Task], StoredPrediction | None]) -> None:
        self.name = name
        self.input_controls: Set[str] = frozenset()
        self.output_controls: Set[str] | None = None
        self._lookup = lookup

    def predict(
        self, examples: Sequence[AnnotatedTask], on_done: Callable[[int], None]
    ) -> list[StoredPrediction | None]:
        predictions = [self._lookup(example.task) for example in examples]
        on_done(len(examples))
        return predictions


def model_output_controls(model: Model, config: LabelConfig) -> Set[str] | None:
    """Return the controls that the model can fill, or None if its class does not declare any."""
    return model.bind(config, {}, None).output_controls if model.supported_controls else None


def to_stored_prediction(outcome: Outcome) -> StoredPrediction:
    if isinstance(outcome, Failure):
        return StoredPrediction((), outcome.reason, stage=outcome.stage)
    if isinstance(outcome, Prediction):
        return StoredPrediction([region.to_json() for region in outcome.result])
    return StoredPrediction(outcome.prediction["result"])
