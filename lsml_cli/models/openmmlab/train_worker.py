"""The process in which mmengine's Runner trains; see `train` for what is in the run folder and what it reports.

With torch's own launcher there are several such processes, on one host or more, and the first of them reports:

    python -m lsml_cli.models.openmmlab.train_worker RUN mmdet --launch="--nnodes 2 --nproc-per-node 8 ..."
"""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lsml_cli.errors import LsmlError, ModelError
from lsml_cli.models.openmmlab import checkpoints, configs, toolkit
from lsml_cli.models.openmmlab.configs import Config
from lsml_cli.models.openmmlab.image_files import register_modules
from lsml_cli.models.openmmlab.schedule import TrainingSchedule, distribute_schedule
from lsml_cli.models.openmmlab.toolkit import Scope
from lsml_cli.models.openmmlab.train import BEST_WEIGHTS, TERMINATION_SECONDS, WORKER_MODULE
from lsml_cli.runtime import available_cores

BATCH_REPORT_SECONDS = 0.5  # between two reports about the batches of an epoch
_LAUNCH_OPTION = "--launch="
_NO_DOWNLOAD_HINT = (
    "Fetch a checkpoint of this config where there is a network, and name it (checkpoint_file, det_ckpt, recog_ckpt); "
    "or begin with random weights: --with pretrained=false"
)


def main(arguments: Sequence[str]) -> None:
    """Train in a run folder: FOLDER mmdet|mmocr [--launch=ARGUMENTS OF TORCHRUN]."""
    folder, scope, *options = arguments
    launcher_args = next((o.removeprefix(_LAUNCH_OPTION) for o in options if o.startswith(_LAUNCH_OPTION)), None)
    if launcher_args is not None:
        _exit_with_parent()
        from torch.distributed.run import main as launch

        sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123 - until the process ends
        launch([*shlex.split(launcher_args), "-m", WORKER_MODULE, folder, scope])
        return
    if "RANK" not in os.environ:
        _exit_with_parent()
    writer = MessageWriter(os.fdopen(os.dup(1), "w"), int(os.environ.get("RANK", 0)) == 0)
    os.dup2(2, 1)  # whatever a library prints goes to the log
    try:
        _train(Path(folder), "mmdet" if scope == "mmdet" else "mmocr", writer)
    except LsmlError as error:
        writer.send({"error": error.message, "hint": error.hint})
        sys.exit(1)


def _exit_with_parent() -> None:
    """End this process when the one that started it ends, for whatever reason."""

    def wait() -> None:
        while os.read(0, 1):  # not through sys.stdin, whose lock this thread would hold when the process ends
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(TERMINATION_SECONDS)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@dataclass
class MessageWriter:
    """Report to the parent process, unless another process of the training does."""

    out: IO[str]
    is_enabled: bool

    def send(self, message: Mapping[str, Any]) -> None:
        if self.is_enabled:
            with suppress(BrokenPipeError):
                print(json.dumps(message), file=self.out, flush=True)

    def report(self, sentence: str) -> None:
        self.send({"say": sentence})


class TrainingMonitor:
    """Report on a training, keep the weights of its best epoch, and stop it when they do not get better.

    Args:
        folder: The run folder, into which the weights go.
        schedule: What is measured, and how long to wait for something better.
        writer: Gets a sentence per epoch.

    Attributes:
        epoch: The epoch that is kept; 0 if there is none yet.
        metrics: What was measured then.
    """

    def __init__(self, folder: Path, schedule: TrainingSchedule, writer: MessageWriter) -> None:
        self.folder, self.schedule, self.writer = folder, schedule, writer
        self.epoch = 0
        self.metrics: dict[str, float] = {}
        self.best_quality = float("-inf")
        self.losses: list[Any] = []
        self.started_at = time.monotonic()
        self.summary = ""
        self.next_batch_report_at = 0.0

    def start_epoch(self) -> None:
        self.started_at = time.monotonic()
        self.losses = []

    def add_loss(self, loss: Any) -> None:
        """Collect the loss of a step, a tensor."""
        self.losses.append(loss.detach())

    def report_batch(self, epoch: int, batch: int, total: int) -> None:
        """Report how far an epoch is, unless that was done just now."""
        if (now := time.monotonic()) >= self.next_batch_report_at or batch == total:
            self.next_batch_report_at = now + BATCH_REPORT_SECONDS
            phase = f"epoch {epoch} of {self.schedule.epochs}"
            self.writer.send({"steps": phase, "unit": "batches", "done": batch, "total": total})

    def end_epoch(self, epoch: int, lr: float, *, is_validated: bool) -> None:
        """Report the mean loss; if a validation follows, together with its result.

        Raises:
            ModelError: The loss is not finite.
        """
        import torch

        loss = float(torch.stack(self.losses).mean()) if self.losses else 0.0
        if not math.isfinite(loss):
            raise ModelError(f"Training has diverged in epoch {epoch}.", f"A smaller step helps: --with lr={lr / 10:g}")
        self.summary = f"Epoch {epoch} of {self.schedule.epochs}: loss {loss:.4f}"
        if not is_validated:
            self.writer.report(f"{self.summary} ({time.monotonic() - self.started_at:.1f} s)")

    def end_validation(self, epoch: int, metrics: Mapping[str, float], model: Any) -> bool:
        """Report a validation and keep the weights if they are the best; tell whether training should stop."""
        quality = float(metrics.get(self.schedule.metric, 0.0))
        quality = quality if math.isfinite(quality) else 0.0  # not finite where nothing was found at all
        seconds = time.monotonic() - self.started_at
        self.writer.report(f"{self.summary}, {self.schedule.metric_label} {quality:.4f} ({seconds:.1f} s)")
        # As long as nothing is found at all, the latest weights have learned most.
        if quality > self.best_quality or quality == self.best_quality == 0:
            self.best_quality = quality
            self.keep(epoch, metrics, model)
        elif epoch - self.epoch >= self.schedule.patience:
            self.writer.report(f"No better for {self.schedule.patience} epochs.")
            return True
        return False

    def keep(self, epoch: int, metrics: Mapping[str, float], model: Any) -> None:
        """Store the weights of a model as the best ones so far."""
        from mmengine.dist import is_main_process
        from mmengine.model import is_model_wrapper

        self.epoch = epoch
        self.metrics = {name: float(value) for name, value in metrics.items() if math.isfinite(float(value))}
        if is_main_process():
            net = model.module if is_model_wrapper(model) else model
            checkpoints.save(net.state_dict(), self.folder, f"{BEST_WEIGHTS}.part")
            (self.folder / f"{BEST_WEIGHTS}.part").replace(self.folder / BEST_WEIGHTS)


def _monitor_hook(monitor: TrainingMonitor) -> Any:
    """Wrap a monitor into a hook of mmengine's, whose base class is imported late."""
    import torch
    from mmengine.hooks import Hook

    class MonitorHook(Hook):  # type: ignore[misc]
        def before_train_epoch(self, runner: Any) -> None:
            monitor.start_epoch()

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            loss = (outputs or {}).get("loss")
            if isinstance(loss, torch.Tensor):
                monitor.add_loss(loss)
            monitor.report_batch(runner.epoch + 1, batch_idx + 1, len(runner.train_dataloader))

        def after_train_epoch(self, runner: Any) -> None:
            epoch = runner.epoch + 1
            is_validated = bool(monitor.schedule.metric) and epoch % runner.cfg["train_cfg"]["val_interval"] == 0
            monitor.end_epoch(epoch, runner.cfg["optim_wrapper"]["optimizer"]["lr"], is_validated=is_validated)

        def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
            if monitor.end_validation(runner.epoch, metrics or {}, runner.model):
                runner.train_loop.stop_training = True

    return MonitorHook()


def _train(folder: Path, scope: Scope, writer: MessageWriter) -> None:
    """Train as `config.py` in the run folder says."""
    import torch

    config = configs.load_literals(folder)
    settings = config.pop("lsml")
    schedule = TrainingSchedule(**settings["schedule"])
    is_distributed = "RANK" in os.environ
    if is_distributed:
        _join_process_group(config, schedule, on_cpu=settings["device"] == "cpu")
    torch.set_num_threads(max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    monitor = TrainingMonitor(folder, schedule, writer)
    toolkit.import_toolkit(scope)
    register_modules()
    with toolkit.default_scope(scope):
        from mmengine.config import Config as RunnerConfig
        from mmengine.runner import Runner

        runner = Runner.from_cfg(RunnerConfig(config))
        runner.register_hook(_monitor_hook(monitor), priority="VERY_LOW")
        try:
            runner.train()
        except OSError as error:
            raise ModelError(_download_error_message(config, error), _NO_DOWNLOAD_HINT) from error
        except RuntimeError as error:
            if "URL" in str(error) or "urlopen" in str(error):
                raise ModelError(_download_error_message(config, error), _NO_DOWNLOAD_HINT) from error
            raise
    if monitor.epoch == 0:
        monitor.keep(runner.epoch, {}, runner.model)
    writer.report(f"Epoch {monitor.epoch} is kept.")
    writer.send({"done": {"epoch": monitor.epoch, "metrics": monitor.metrics}})
    if is_distributed:
        torch.distributed.destroy_process_group()


def _join_process_group(config: Config, schedule: TrainingSchedule, *, on_cpu: bool) -> None:
    """Join the processes of torch's launcher, and adapt the config to them in place."""
    import torch

    local_rank = int(os.environ["LOCAL_RANK"])
    if not on_cpu:
        torch.cuda.set_device(local_rank)
    else:  # some models insist on normalizing across processes, which PyTorch supports on GPUs alone
        torch.nn.SyncBatchNorm.convert_sync_batchnorm = lambda module, process_group=None: module
    torch.distributed.init_process_group(backend="gloo" if on_cpu else "nccl")
    distribute_schedule(config, schedule, torch.distributed.get_world_size())
    config["launcher"] = "pytorch"
    config["model_wrapper_cfg"] = {
        "type": "MMDistributedDataParallel",
        "broadcast_buffers": False,
        "device_ids": None if on_cpu else [local_rank],
    }


def _download_error_message(config: Config, error: BaseException) -> str:
    checkpoint_urls = ", ".join(configs.pretrained_checkpoints(config["model"])) or "its weights"
    return f"The weights that this config begins with cannot be fetched ({checkpoint_urls}): {error}."


if __name__ == "__main__":
    main(sys.argv[1:])
