"""Call a model's `fit`, and evaluate what it wrote on the held-out tasks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import orjson

from lsml_cli.errors import LsmlError, ModelError
from lsml_cli.evaluation.evaluate import evaluate_outcomes
from lsml_cli.evaluation.prediction_sources import model_output_controls
from lsml_cli.evaluation.results import Evaluation
from lsml_cli.inference import dispatch, placement
from lsml_cli.media.fetcher import Media
from lsml_cli.models.base import Binding, Progress
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.progress import Steps, start_phase
from lsml_cli.registry.durable_files import raise_write_error
from lsml_cli.runtime import DISK_FULL_ERRNOS
from lsml_cli.schema.annotations import make_input_task
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Outcome
from lsml_cli.schema.tasks import AnnotatedTask, Task


@dataclass(frozen=True)
class TrainingEnvironment:
    """What a model is trained with, besides its data.

    Attributes:
        media: Where the media are that tasks refer to.
        device: "cpu", "cuda:0".
        progress: Called with a sentence from time to time.
    """

    media: Media | None = None
    device: str = "cpu"
    progress: Progress = lambda sentence: None


def train(
    spec: ModelSpec,
    config: LabelConfig,
    examples: Sequence[AnnotatedTask],
    held_out: Sequence[AnnotatedTask],
    folder: Path,
    environment: TrainingEnvironment,
) -> Mapping[str, Json]:
    """Train a new model of `spec`.

    Args:
        spec: See `build_training_spec`.
        config: The label config.
        examples: What to train on.
        held_out: What the model may validate on, never train on.
        folder: Where it writes its weights.
        environment: Media, device, progress.

    Returns:
        What `Model.fit` returned: the state to store beside the weights.

    Raises:
        ModelError: The model's code failed, or its state is no JSON object.
        OutputError: The disk is full.
    """
    model = spec.build()
    binding: Binding = model.bind(config, {}, None)
    binding.media, binding.device = environment.media, environment.device
    start_phase(environment.progress, "training")
    try:
        state = model.fit(examples, held_out, binding, folder, environment.progress)
    except LsmlError:
        raise
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise_write_error(error, folder.parent)
        _raise_model_error(spec, f"failed while training: {type(error).__name__}: {error}", error)
    except (Exception, SystemExit) as error:
        _raise_model_error(spec, f"failed while training: {type(error).__name__}: {error}", error)
    try:
        orjson.dumps(dict(state))
    except (TypeError, ValueError) as error:
        _raise_model_error(spec, f"returned from `fit` what cannot be stored as a JSON object: {error}", error)
    return state


def evaluate_held_out(
    trained: ModelSpec, config: LabelConfig, held_out: Sequence[AnnotatedTask], environment: TrainingEnvironment
) -> Evaluation:
    """Evaluate a trained model on held-out tasks, with the weights as they were written."""
    if held_out:
        environment.progress(f"Measuring on {len({task.index for task, _ in held_out}):,} held-out tasks.")
    model = trained.build()
    input_controls = model.input_controls(config)
    tasks = [make_input_task(example, input_controls) for example in held_out]
    return evaluate_outcomes(
        config,
        held_out,
        predict(trained, config, tasks, environment),
        name=trained.name,
        input_controls=input_controls,
        output_controls=model_output_controls(model, config),
    )


def predict(
    spec: ModelSpec, config: LabelConfig, tasks: Sequence[Task], environment: TrainingEnvironment | None = None
) -> list[Outcome]:
    """Predict tasks the same way as `lsml predict`. Without an environment on the CPU, and without media."""
    if not tasks:
        return []
    environment = environment or TrainingEnvironment()
    model_class = spec.model_class()
    workers = (os.cpu_count() or 1) if model_class.parallelism == "threads" else 1
    start_phase(environment.progress, "loading model")
    with placement.open_replicas(
        spec, config, devices=[environment.device], workers=workers, media=environment.media
    ) as replicas:
        steps = Steps(environment.progress, "measuring", "tasks", len(tasks))
        outcomes: list[Outcome] = []
        for batch in dispatch.predict_batches(replicas, tasks, batch_size=model_class.batch_size):
            outcomes += [outcome for _, outcome in batch]
            steps.update(len(outcomes))
        return outcomes


def _raise_model_error(spec: ModelSpec, reason: str, error: BaseException) -> NoReturn:
    raise ModelError(f"{spec.name} {reason}.", "LSML_DEBUG=1 shows where in its code.") from error
