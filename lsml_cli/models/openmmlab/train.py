"""A config and a dataset -> trained weights, by mmengine's Runner in a process of its own.

The process works in a run folder: `config.py` says all of it, `start.pth` has the weights to begin with,
`best.safetensors` those of the best epoch so far, `log.txt` what the toolkits have to say. It tells how far it is on
its standard output, a JSON object in a line: {"say": SENTENCE}, {"done": {...}} or {"error": ..., "hint": ...}. With
torch's own launcher there are several such processes, on one host or more, and the first one of them tells.

    python -m lsml_cli.models.openmmlab.train RUN mmdet --launch="--nnodes 2 --nproc-per-node 8 ..."
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lsml_cli.errors import LsmlError, ModelError
from lsml_cli.models.base import Progress
from lsml_cli.models.openmmlab import checkpoints, configs, toolkit
from lsml_cli.models.openmmlab.configs import Config
from lsml_cli.models.openmmlab.image_files import register_modules
from lsml_cli.models.openmmlab.toolkit import Scope
from lsml_cli.runtime import available_cores

if TYPE_CHECKING:
    from torch import nn

WORKER_MODULE = "lsml_cli.models.openmmlab.train"  # as which its own processes run it
START_WEIGHTS, BEST_WEIGHTS, LOG_FILENAME = "start.pth", "best.safetensors", "log.txt"
LOG_TAIL_LENGTH = 5_000  # characters of a failed run's log that LSML_DEBUG=1 shows
MAX_GRAD_NORM = 35.0  # norm of the gradients; what the toolkits' own recipes use


@dataclass(frozen=True)
class TrainingSchedule:
    """How long and by what a training goes.

    epochs    at most
    patience  epochs without a better hold-out after which it ends
    measure   the number that says which epoch is best, "coco/bbox_mAP"; "" without a hold-out: the last one is kept
    shown     how the measure is called in a sentence, "hold-out mAP"
    own_rate  whether somebody has asked for the learning rate, which then stays what it is
    """

    epochs: int
    patience: int
    metric: str
    metric_label: str
    has_fixed_lr: bool = False


@dataclass(frozen=True)
class TrainingResult:
    """What came out: the best weights, the epoch that they are of, and what was measured then (by the toolkit)."""

    checkpoint: checkpoints.Checkpoint
    epoch: int
    metrics: Mapping[str, float]


def apply_schedule(config: Config, schedule: TrainingSchedule, num_images: int, batch_size: int) -> None:
    """Give a config the length of a training, and a learning rate that warms up and falls off, in place.

    pictures  of an epoch
    """
    steps = max(1, math.ceil(num_images / batch_size)) * schedule.epochs
    warm = max(1, min(500, steps // 10))
    steps = max(steps, warm + 1)  # a schedule has to end after it has begun
    config["train_cfg"] = {
        "type": "EpochBasedTrainLoop",
        "max_epochs": schedule.epochs,
        "val_interval": max(1, schedule.epochs // 25) if schedule.metric else schedule.epochs + 1,
    }
    rate = config["optim_wrapper"]["optimizer"]["lr"]
    config["param_scheduler"] = [
        {"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": warm},
        {
            "type": "CosineAnnealingLR",
            "eta_min": rate * 0.02,
            "begin": warm,
            "end": steps,
            "T_max": max(1, steps - warm),
            "by_epoch": False,
        },
    ]
    config["optim_wrapper"].setdefault("clip_grad", {"max_norm": MAX_GRAD_NORM, "norm_type": 2})


def scaled_lr(optimizer: Mapping[str, Any], factor: float) -> float:
    """The learning rate of an optimiser for batches so many times as large."""
    # Adam and its kin already divide by the size of the gradients.
    adam = "adam" in str(optimizer.get("type", "")).lower()
    return float(optimizer["lr"] * (math.sqrt(factor) if adam else factor))


def distribute_schedule(config: Config, schedule: TrainingSchedule, world_size: int) -> None:
    """Fit what `scheduled` gave to processes that share the pictures, in place: each makes its share of the steps.

    A step is one of all processes then, on a batch so many times as large; the learning rate goes with it unless it is
    the user's own.
    """
    for part in config["param_scheduler"]:
        part["begin"] = math.ceil(part["begin"] / world_size)
        part["end"] = max(part["begin"] + 1, math.ceil(part["end"] / world_size))
        if "T_max" in part:
            part["T_max"] = part["end"] - part["begin"]
    if schedule.has_fixed_lr:
        return
    optimizer = config["optim_wrapper"]["optimizer"]
    rate = scaled_lr(optimizer, world_size)
    for part in config["param_scheduler"]:
        if "eta_min" in part:
            part["eta_min"] *= rate / optimizer["lr"]
    optimizer["lr"] = rate


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
    """Train until the plan ends. `folder` is the run folder, with the dataset in it.

    start   a model with the weights to begin with; None: those that the config's own initialisation gives
    launch  arguments for torch's launcher, "--nproc-per-node 4"; None: this process's device alone

    Raises ModelError when it fails, with what the toolkit said.
    """
    import torch

    whole = dict(config) | {
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
        "lsml": {"plan": vars(schedule), "device": device},
    }
    if initial_model is not None:
        torch.save({"state_dict": initial_model.state_dict()}, folder / START_WEIGHTS)
        whole["load_from"] = str(folder / START_WEIGHTS)
        whole["model"] = configs.without_pretrained(whole["model"])
    configs.save(whole, folder)
    done = _run_process(folder, scope, device, launcher_args, progress)
    return TrainingResult(checkpoints.load(folder, BEST_WEIGHTS), int(done["epoch"]), done["metrics"])


def _run_process(
    folder: Path, scope: Scope, device: str, launcher_args: str | None, progress: Progress
) -> Mapping[str, Any]:
    """Run the training's own process to its end, and pass on what it says."""
    command = [sys.executable, "-m", WORKER_MODULE, str(folder), scope]
    command += [f"--launch={launcher_args}"] if launcher_args else []
    environment = os.environ | {
        "OMP_NUM_THREADS": str(available_cores()),
        "PYTHONWARNINGS": "ignore",
        "TQDM_DISABLE": "1",
    }
    # Threads that wait for each other while they spin take the core that the other one needs, where anything else runs
    # on this machine: training took 3 times as long.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif ":" in device and not launcher_args:
        environment["CUDA_VISIBLE_DEVICES"] = _visible_device(device)
    done: Mapping[str, Any] | None = None
    problem: LsmlError | None = None
    with (folder / LOG_FILENAME).open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, start_new_session=True
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                told = _parse_message(line)
                if "say" in told:
                    progress(str(told["say"]))
                elif "done" in told:
                    done = told["done"]
                elif "error" in told:
                    problem = ModelError(str(told["error"]), told.get("hint"))
            code = process.wait()
        finally:  # by ctrl-C, too
            _terminate(process)
    if problem is not None:
        raise problem
    if done is None or code:
        raise ModelError(*_failure_message(folder, code))
    return done


def _visible_device(device: str) -> str:
    """ "2" for cuda:2; where only some GPUs are shown to this process, the one of them that has this number."""
    number = int(device.partition(":")[2])
    shown = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    return shown[number] if number < len(shown) else str(number)


def _parse_message(line: bytes) -> Mapping[str, Any]:
    with suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict):
            return found
    return {}  # somebody else's print


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """Nothing of a training outlives whoever waits for it."""
    if process.stdin is not None:
        process.stdin.close()  # whose end it takes as a sign to go
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _failure_message(folder: Path, code: int) -> tuple[str, str]:
    log = (folder / LOG_FILENAME).read_text("utf-8", "replace")
    if os.environ.get("LSML_DEBUG") == "1":
        print(log[-LOG_TAIL_LENGTH:], file=sys.stderr)
    if code < 0:
        name = signal.Signals(-code).name
        return (
            f"The training's process was killed by {name}.",
            "If memory was short, a smaller one helps: --with batch_size=2",
        )
    errors = [line.strip() for line in log.splitlines() if _ERROR_LINE.match(line) and "ChildFailedError" not in line]
    said = errors[-1] if errors else f"its process ended with {code}"
    if "out of memory" in said.lower() or "OutOfMemory" in said:
        return (
            f"The device has too little memory for this training: {said[:200]}.",
            "Smaller ones help: --with batch_size=2",
        )
    return f"The training failed: {said[:300].rstrip('.')}.", "LSML_DEBUG=1 shows the end of its log."


_ERROR_LINE = re.compile(r"(\[rank\d+\]: *)?[\w.]*(Error|Exception|Exit)\b")  # the last line of a traceback
_BATCH_SIZE_HINT = "Where memory is short, smaller batches help: --with batch_size=2"


# ---- in the training's own process


def main(arguments: Sequence[str]) -> None:
    folder, scope, *rest = arguments
    launch = next((each.removeprefix("--launch=") for each in rest if each.startswith("--launch=")), None)
    if launch is not None:
        _exit_with_parent()
        from torch.distributed.run import main as launcher

        sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123 - for good
        launcher([*shlex.split(launch), "-m", WORKER_MODULE, folder, scope])
        return
    if "RANK" not in os.environ:
        _exit_with_parent()
    teller = _MessageWriter(os.fdopen(os.dup(1), "w"), int(os.environ.get("RANK", 0)) == 0)
    os.dup2(2, 1)  # whatever is printed belongs into the log
    try:
        _train(Path(folder), "mmdet" if scope == "mmdet" else "mmocr", teller)
    except LsmlError as error:
        teller.send({"error": error.message, "hint": error.hint})
        sys.exit(1)


def _exit_with_parent() -> None:
    """End with the process that started this one, however that ends."""

    def wait() -> None:
        while os.read(0, 1):  # not through sys.stdin, whose lock this thread would still hold when the process ends
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@dataclass
class _MessageWriter:
    """Tells the one who waits, if this is the process to do so."""

    out: IO[str]
    is_enabled: bool

    def send(self, message: Mapping[str, Any]) -> None:
        if self.is_enabled:
            with suppress(BrokenPipeError):
                print(json.dumps(message), file=self.out, flush=True)

    def report(self, sentence: str) -> None:
        self.send({"say": sentence})


def _train(folder: Path, scope: Scope, writer: _MessageWriter) -> None:
    import torch

    config = configs.load(folder)
    own = config.pop("lsml")
    plan = TrainingSchedule(**own["plan"])
    distributed = "RANK" in os.environ
    if distributed:
        on_cpu = own["device"] == "cpu"
        if not on_cpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        else:  # some models insist on normalising across processes, which PyTorch does on GPUs alone
            torch.nn.SyncBatchNorm.convert_sync_batchnorm = lambda module, process_group=None: module
        torch.distributed.init_process_group(backend="gloo" if on_cpu else "nccl")
        distribute_schedule(config, plan, torch.distributed.get_world_size())
        config["launcher"] = "pytorch"
        config["model_wrapper_cfg"] = {
            "type": "MMDistributedDataParallel",
            "broadcast_buffers": False,
            "device_ids": None if on_cpu else [int(os.environ["LOCAL_RANK"])],
        }
    torch.set_num_threads(max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    toolkit.import_toolkit(scope)
    register_modules()
    with toolkit.default_scope(scope):
        from mmengine.config import Config as Known
        from mmengine.runner import Runner

        runner = Runner.from_cfg(Known(config))
        follower = _training_hook(folder, plan, writer)
        runner.register_hook(follower, priority="VERY_LOW")
        try:
            runner.train()
        except OSError as error:
            raise ModelError(_download_error_message(config, error), _NO_DOWNLOAD_HINT) from error
        except RuntimeError as error:
            if "URL" in str(error) or "urlopen" in str(error):
                raise ModelError(_download_error_message(config, error), _NO_DOWNLOAD_HINT) from error
            raise
    if follower.epoch == 0:
        follower.keep(runner, runner.epoch, {})
    writer.report(f"Epoch {follower.epoch} is kept.")
    writer.send({"done": {"epoch": follower.epoch, "metrics": follower.metrics}})
    if distributed:
        torch.distributed.destroy_process_group()


def _download_error_message(config: Config, error: BaseException) -> str:
    wanted = ", ".join(configs.pretrained_checkpoints(config["model"])) or "its weights"
    return f"The weights that this config begins with cannot be fetched ({wanted}): {error}."


_NO_DOWNLOAD_HINT = (
    "Fetch a checkpoint of this config where there is a network, and name it (checkpoint_file, det_ckpt, recog_ckpt); "
    "or begin with random weights: --with pretrained=false"
)


def _training_hook(folder: Path, schedule: TrainingSchedule, writer: _MessageWriter) -> Any:
    """The hook that tells how far the training is, and keeps the best weights. A class of mmengine's, made late."""
    import torch
    from mmengine.dist import is_main_process
    from mmengine.hooks import Hook
    from mmengine.model import is_model_wrapper

    class Follower(Hook):  # type: ignore[misc]
        def __init__(self) -> None:
            self.epoch = 0
            self.metrics: dict[str, float] = {}
            self.best = float("-inf")
            self.losses: list[Any] = []
            self.begun = time.monotonic()
            self.told = ""

        def before_train_epoch(self, runner: Any) -> None:
            self.begun = time.monotonic()
            self.losses = []

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            loss = (outputs or {}).get("loss")
            if isinstance(loss, torch.Tensor):
                self.losses.append(loss.detach())

        def after_train_epoch(self, runner: Any) -> None:
            number = runner.epoch + 1
            lost = float(torch.stack(self.losses).mean()) if self.losses else 0.0
            if not math.isfinite(lost):
                rate = runner.cfg["optim_wrapper"]["optimizer"]["lr"]
                raise ModelError(
                    f"Training has diverged in epoch {number}.", f"A smaller step helps: --with lr={rate / 10:g}"
                )
            self.told = f"Epoch {number} of {schedule.epochs}: loss {lost:.4f}"
            measured = schedule.metric and (number % runner.cfg["train_cfg"]["val_interval"] == 0)
            if not measured:
                writer.report(f"{self.told} ({time.monotonic() - self.begun:.1f} s)")

        def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
            number = runner.epoch
            quality = float((metrics or {}).get(schedule.metric, 0.0))
            quality = quality if math.isfinite(quality) else 0.0  # nothing was found at all
            writer.report(f"{self.told}, {schedule.metric_label} {quality:.4f} ({time.monotonic() - self.begun:.1f} s)")
            # While nothing is found at all, the latest weights have learned most.
            if quality > self.best or quality == self.best == 0:
                self.best = quality
                self.keep(runner, number, metrics or {})
            elif number - self.epoch >= schedule.patience:
                writer.report(f"No better for {schedule.patience} epochs.")
                runner.train_loop.stop_training = True

        def keep(self, runner: Any, epoch: int, metrics: Mapping[str, float]) -> None:
            self.epoch = epoch
            self.metrics = {name: float(value) for name, value in metrics.items() if math.isfinite(float(value))}
            if is_main_process():
                net = runner.model.module if is_model_wrapper(runner.model) else runner.model
                checkpoints.save(net.state_dict(), folder, f"{BEST_WEIGHTS}.part")
                (folder / f"{BEST_WEIGHTS}.part").replace(folder / BEST_WEIGHTS)

    return Follower()


if __name__ == "__main__":
    main(sys.argv[1:])
