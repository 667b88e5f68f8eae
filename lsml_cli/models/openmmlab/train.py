"""Train a model with mmengine's Runner, in a process of its own.

The process (`train_worker`) works in a run folder: `config.py` says what to do, `start.pth` has the initial weights,
`best.safetensors` those of the best epoch so far, and `log.txt` the output of the toolkits. It reports on its standard
output, one JSON object per line: {"say": SENTENCE}, {"done": {...}} or {"error": ..., "hint": ...}.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsml_cli.errors import LsmlError, ModelError
from lsml_cli.models.base import Progress
from lsml_cli.models.openmmlab import checkpoints, configs
from lsml_cli.models.openmmlab.configs import Config
from lsml_cli.models.openmmlab.schedule import TrainingSchedule
from lsml_cli.models.openmmlab.toolkit import Scope
from lsml_cli.progress import Steps
from lsml_cli.runtime import SAFE_PATH_VARIABLE, available_cores, python_command, python_environment
from lsml_cli.terminal import print_details

if TYPE_CHECKING:
    from torch import nn

WORKER_MODULE = "lsml_cli.models.openmmlab.train_worker"  # what the process is started with
START_WEIGHTS, BEST_WEIGHTS, LOG_FILENAME = "start.pth", "best.safetensors", "log.txt"
LOG_TAIL_LENGTH = 5_000  # characters of a failed run's log that LSML_DEBUG=1 shows
TERMINATION_SECONDS = 10  # between SIGTERM and SIGKILL
_ERROR_LINE = re.compile(r"(\[rank\d+\]: *)?[\w.]*(Error|Exception|Exit)\b")  # the last line of a traceback


@dataclass(frozen=True)
class TrainingResult:
    """The best weights, the epoch that they are of, and what the toolkit measured then."""

    checkpoint: checkpoints.Checkpoint
    epoch: int
    metrics: Mapping[str, float]


def train(
    folder: Path,
    config: Config,
    scope: Scope,
    schedule: TrainingSchedule,
    initial_model: nn.Module | None,
    *,
    device: str,
    seed: int,
    launcher_args: str | None,
    progress: Progress,
) -> TrainingResult:
    """Train a model until its schedule ends.

    Args:
        folder: The run folder, with the dataset in it.
        config: What mmengine's Runner takes, with a schedule.
        scope: The toolkit of the model.
        schedule: Which epoch is kept, and when to stop.
        initial_model: A model with the initial weights; None for the initialization that the config describes.
        device: "cpu", "cuda:0".
        seed: Of everything random.
        launcher_args: Arguments of torchrun, "--nproc-per-node 4"; None to train on `device` alone.
        progress: Called with sentences.

    Raises:
        ModelError: Training failed; the message has the toolkit's own.
    """
    import torch

    runner_config = dict(config) | _runner_settings(folder, scope, schedule, device, seed)
    if initial_model is not None:
        torch.save({"state_dict": initial_model.state_dict()}, folder / START_WEIGHTS)
        runner_config["load_from"] = str(folder / START_WEIGHTS)
        runner_config["model"] = configs.without_pretrained(runner_config["model"])
    configs.save(runner_config, folder)
    summary = _run_process(folder, scope, device, launcher_args, progress)
    return TrainingResult(checkpoints.load(folder, BEST_WEIGHTS), int(summary["epoch"]), summary["metrics"])


def _runner_settings(folder: Path, scope: Scope, schedule: TrainingSchedule, device: str, seed: int) -> dict[str, Any]:
    """Return what the Runner needs besides model, data and optimizer: quiet, reproducible, without checkpoints."""
    return {
        "work_dir": str(folder / "work"),
        "default_hooks": {
            "timer": {"type": "IterTimerHook"},
            "param_scheduler": {"type": "ParamSchedulerHook"},
            "sampler_seed": {"type": "DistSamplerSeedHook"},
            "logger": {"type": "LoggerHook", "interval": 1_000_000},
            "checkpoint": None,
        },
        "custom_hooks": [],
        "visualizer": {"type": "Visualizer", "vis_backends": []},
        "log_level": "ERROR",
        "randomness": {"seed": seed},
        "env_cfg": {"cudnn_benchmark": False, "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0}},
        "default_scope": scope,
        "load_from": None,
        "resume": False,
        "auto_scale_lr": None,
        "lsml": {"schedule": vars(schedule), "device": device},  # for train_worker
    }


def _run_process(
    folder: Path, scope: Scope, device: str, launcher_args: str | None, progress: Progress
) -> Mapping[str, Any]:
    """Run the worker process to its end, and pass on what it reports."""
    command = python_command("-m", WORKER_MODULE, str(folder), scope)
    command += [f"--launch={launcher_args}"] if launcher_args else []
    summary: Mapping[str, Any] | None = None
    steps: Steps | None = None
    error: LsmlError | None = None
    with (folder / LOG_FILENAME).open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(device, launcher_args),
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                message = _parse_message(line)
                if "say" in message:
                    progress(str(message["say"]))
                elif "steps" in message:
                    if steps is None or steps.phase != message["steps"]:
                        steps = Steps(progress, message["steps"], message["unit"], message["total"])
                    steps.update(message["done"])
                elif "done" in message:
                    summary = message["done"]
                elif "error" in message:
                    error = ModelError(str(message["error"]), message.get("hint"))
            code = process.wait()
        finally:  # also after ctrl-C
            _terminate(process)
    if error is not None:
        raise error
    if summary is None or code:
        raise ModelError(*_failure_message(folder, code))
    return summary


def _environment(device: str, launcher_args: str | None) -> dict[str, str]:
    environment = python_environment() | {
        "OMP_NUM_THREADS": str(available_cores()),
        "PYTHONWARNINGS": "ignore",
        "TQDM_DISABLE": "1",
    }
    # Threads that spin while they wait for each other take the core that the other one needs as soon as anything else
    # runs on the machine: training took 3 times as long.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif ":" in device and not launcher_args:
        environment["CUDA_VISIBLE_DEVICES"] = _visible_device(device)
    if launcher_args:  # torch's launcher starts more Python processes, each with this environment
        environment[SAFE_PATH_VARIABLE] = "1"
    return environment


def _visible_device(device: str) -> str:
    """Return "2" for cuda:2; where this process sees only some GPUs, the one of them that has this position."""
    number = int(device.partition(":")[2])
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible[number] if number < len(visible) else str(number)


def _parse_message(line: bytes) -> Mapping[str, Any]:
    """Parse a line of the worker; empty for what a library printed."""
    with suppress(ValueError):
        message = json.loads(line)
        if isinstance(message, dict):
            return message
    return {}


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """End the worker and all its processes, if they still run."""
    if process.stdin is not None:
        process.stdin.close()  # the worker ends when its standard input does
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(TERMINATION_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _failure_message(folder: Path, code: int) -> tuple[str, str]:
    """Return message and hint for a worker that ended without a report."""
    log = (folder / LOG_FILENAME).read_text("utf-8", "replace")
    if os.environ.get("LSML_DEBUG") == "1":
        print_details(log[-LOG_TAIL_LENGTH:])
    if code < 0:
        name = signal.Signals(-code).name
        return (
            f"The training's process was killed by {name}.",
            "If memory was short, a smaller batch helps: --with batch_size=2",
        )
    errors = [line.strip() for line in log.splitlines() if _ERROR_LINE.match(line) and "ChildFailedError" not in line]
    reason = errors[-1] if errors else f"its process ended with {code}"
    if "out of memory" in reason.lower() or "OutOfMemory" in reason:
        return (
            f"The device has too little memory for this training: {reason[:200]}.",
            "Smaller batches help: --with batch_size=2",
        )
    return f"The training failed: {reason[:300].rstrip('.')}.", "LSML_DEBUG=1 shows the end of its log."
