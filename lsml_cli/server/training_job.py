"""Run one training job: as `python -m lsml_cli.server.training_job DIR JOB ATTEMPT SETTINGS`, or as an RQ job.

The server that starts it says how to train; the job's file says which project, and takes the result. The API key of
Label Studio comes from this process's environment.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lsml_cli.errors import GateMissed, InputError, LsmlError
from lsml_cli.registry import promotion
from lsml_cli.runtime import error_reason
from lsml_cli.server.heartbeat import AttemptAbandoned, Heartbeat
from lsml_cli.server.job_record import Job, config_from_json, utc_now
from lsml_cli.server.job_store import JobStore, StaleAttempt, project_versions_folder
from lsml_cli.server.log_setup import log_everything_to_stderr
from lsml_cli.terminal import print_details

if TYPE_CHECKING:
    from lsml_cli.media.fetcher import Media
    from lsml_cli.models.base import Model
    from lsml_cli.registry.versions import Version
    from lsml_cli.training.fit import FitResult

VERSIONS_VARIABLE = "LSML_WORKER_VERSIONS"  # environment variable with the path of the shared folder on this host
NICENESS = 10  # lower priority than the server

log = logging.getLogger("lsml.serve")


def run(versions_folder: str, job_id: str, attempt: int, settings: str) -> None:
    """Train a project's model as a job describes, and store the result in the job's file.

    RQ calls it in a process that its worker has forked. If that worker dies, the process ends itself: the worker is
    what reports it, so the server is about to start another attempt.

    Args:
        versions_folder: Path of the folder of versions on the server's host; LSML_WORKER_VERSIONS overrides it.
        settings: What `job_record.config_to_json` returned.

    Raises:
        LsmlError: This host cannot read or write the job's file. Any other error becomes the result of the job.
    """
    # RQ sets the variable for a process of its own; in a worker that runs jobs itself, the parent is any process.
    parent = os.getppid() if "RQ_WORKER_ID" in os.environ else None
    _run_attempt(versions_folder, job_id, attempt, settings, parent)


def _run_attempt(versions_folder: str, job_id: str, attempt: int, settings: str, parent: int | None) -> None:
    """Run an attempt, see `run`; do nothing if another process runs it already, or if it no longer counts.

    Args:
        parent: The process whose death ends the attempt, None for no such process.
    """
    with suppress(OSError):
        os.nice(max(0, NICENESS - os.nice(0)))
    store = JobStore(Path(os.environ.get(VERSIONS_VARIABLE) or versions_folder))
    try:
        _require_shared_folder(store, job_id)
        job = store.claim(job_id, attempt, config_from_json(settings))
    except LsmlError as error:
        log.error("Job %s: %s", job_id, error)
        raise
    except StaleAttempt:
        log.info("Job %s, attempt %d: nothing to do.", job_id, attempt)
        return
    log.info("Job %s: training project %d (attempt %d).", job.id, job.project, job.attempt)
    try:
        with Heartbeat(store, job, parent) as heartbeat:
            outcome = _train_and_summarize(store, job, heartbeat)
    except AttemptAbandoned as abandoned:
        log.warning("Job %s: attempt %d ends itself: %s", job.id, job.attempt, abandoned)
        return
    _store_outcome(store, job, outcome)


def _store_outcome(store: JobStore, job: Job, outcome: _Outcome) -> None:
    """Promote the trained version and store the result in one step, or discard both if the attempt is stale."""
    changes = {"version": None, "reason": None, **outcome.changes, "ended": utc_now(), "progress": None}
    try:
        try:
            job = store.complete(job, outcome.promote, **changes)
        except LsmlError as error:
            if outcome.promote is None:
                raise
            job = store.update(job, **changes | {"state": "failed", "reason": str(error)})
    except StaleAttempt:
        log.warning("Job %s: attempt %d no longer counts, so its result is discarded.", job.id, job.attempt)
        if outcome.trained is not None:
            promotion.discard(outcome.trained.folder.parent, outcome.trained.version)
        return
    log.info("Job %s: %s. %s", job.id, job.state, job.reason or job.version or "")


def _require_shared_folder(store: JobStore, job_id: str) -> None:
    hint = (
        "The server's --versions folder has to be shared with this host; if its path differs here: "
        "lsml worker --versions DIR"
    )
    if not store.versions_folder.is_dir():
        raise InputError(f"There is no folder {store.versions_folder} on this host.", hint)
    try:
        store.read(job_id)
    except InputError as error:
        raise InputError(f"{store.versions_folder} on this host is not the server's: {error.message}", hint) from None
    if not os.access(store.versions_folder, os.W_OK) or not os.access(store.jobs_folder, os.W_OK):
        raise InputError(f"{store.versions_folder} cannot be written on this host.", "Mount it read-write.")


@dataclass(frozen=True)
class _Outcome:
    """What an attempt has come to.

    Attributes:
        changes: Fields of the job's record that describe the result.
        trained: The version that was trained, None if there is none.
        is_promotable: Whether that version is to be promoted.
    """

    changes: Mapping[str, Any]
    trained: Version | None = None
    is_promotable: bool = False

    @property
    def promote(self) -> Callable[[], None] | None:
        """Return what promotes the version, None if nothing is to be promoted."""
        if self.trained is None or not self.is_promotable:
            return None
        return partial(promotion.promote, self.trained.folder.parent, self.trained.version)


def _train_and_summarize(store: JobStore, job: Job, heartbeat: Heartbeat) -> _Outcome:
    """Train a version without promoting it, and describe the result."""
    try:
        fit_result = _train(store, job, heartbeat)
    except LsmlError as error:
        _print_debug_traceback()
        return _Outcome({"state": "failed", "reason": str(error)})
    except (Exception, SystemExit) as error:
        _print_debug_traceback()
        reason = f"{error_reason(error).rstrip('.')}. LSML_DEBUG=1 shows the traceback."
        return _Outcome({"state": "failed", "reason": reason})
    version = fit_result.version
    trained = {"version": f"{version.name}@{version.version}", "facts": _summarize_fit(fit_result)}
    try:
        fit_result.require_gates_passed()
    except GateMissed as error:
        return _Outcome(trained | {"state": "missed", "reason": str(error)}, version)
    if not fit_result.is_promotable:
        reason = "The export ended too early, so the version was not promoted."
        return _Outcome(trained | {"state": "failed", "reason": reason}, version)
    return _Outcome(trained | {"state": "done"}, version, is_promotable=True)


def _train(store: JobStore, job: Job, heartbeat: Heartbeat) -> FitResult:
    from lsml_cli import label_studio
    from lsml_cli.io import task_reader
    from lsml_cli.registry import resolve
    from lsml_cli.schema.label_config import LabelConfig
    from lsml_cli.training import fit as training

    url = job.config.label_studio_url
    spec = resolve.find_model(job.config.model, job.config.params)
    media, device = _build_media(job), _select_device(job, spec.model_class())
    heartbeat.report_progress(f"Downloading the annotations of project {job.project} from {url}.")
    export = store.tasks_file(job)
    try:
        with label_studio.connect(url) as client:
            config = LabelConfig.parse(client.get_label_config(job.project))
            client.download_annotated(job.project, export)
        heartbeat.report_progress("Training.")
        return training.fit_version(
            spec,
            task_reader.read_tasks(str(export), controls=frozenset(config.controls)),
            config,
            project_versions_folder(store.versions_folder, job.project),
            fail_under=job.config.fail_under,
            promote=False,  # only together with the check that this attempt still counts
            media=media,
            device=device,
            progress=heartbeat.report_progress,
            before_commit=heartbeat.finish,
        )
    finally:
        media.close()
        export.unlink(missing_ok=True)


def _build_media(job: Job) -> Media:
    """Look for media where the server does, as far as its folders exist on this host; read no plain paths."""
    from lsml_cli.media.fetcher import AllowedHosts, Cache, LabelStudioCredentials, Media

    config = job.config
    cache_folder = _existing_folder(config.media_cache)
    prefix_map = [(prefix, _existing_folder(folder)) for prefix, folder in config.maps.items()]
    return Media(
        document_root=_existing_folder(config.document_root),
        upload_root=_existing_folder(config.upload_root),
        prefix_map=tuple((prefix, folder) for prefix, folder in prefix_map if folder),
        label_studio=LabelStudioCredentials.from_env(config.label_studio_url),
        allowed_hosts=AllowedHosts(config.allow_hosts),
        cache=Cache(cache_folder, config.media_cache_size) if cache_folder and config.media_cache_size else None,
    )


def _existing_folder(folder: str | None) -> Path | None:
    return Path(folder) if folder is not None and os.path.isdir(folder) else None  # noqa: PTH112


def _select_device(job: Job, model_class: type[Model]) -> str:
    """Return the server's device, or this host's best one if it has no such device."""
    from lsml_cli.errors import UsageError
    from lsml_cli.inference import placement

    try:
        return placement.find_devices(job.config.device, model_class)[0]
    except UsageError as error:
        device = placement.find_devices("auto", model_class)[0]
        log.warning("Job %s: %s It trains on %s.", job.id, error.message, device)
        return device


def _summarize_fit(result: FitResult) -> dict[str, Any]:
    metrics = {
        control: {"accuracy": scores.get("accuracy"), "macro_f1": scores.get("macro_f1")}
        for control, scores in result.version.metrics.items()
    }
    return {"counts": dict(result.version.counts), "metrics": metrics, "seconds": round(result.seconds, 3)}


def _print_debug_traceback() -> None:
    if os.environ.get("LSML_DEBUG"):
        import traceback

        print_details(traceback.format_exc())


def main() -> int:
    """Return 0 if the job's file has its result, whatever that is, and 1 if it could not be read or written."""
    log_everything_to_stderr()
    versions_folder, job_id, attempt, settings = sys.argv[1:]
    try:
        with _sigterm_as_interrupt():
            # A killed server leaves it running; the next server follows it.
            _run_attempt(versions_folder, job_id, int(attempt), settings, parent=None)
    except LsmlError:  # it has been logged
        return 1
    return 0


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Clean up on SIGTERM as on ctrl-C, and then end by SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        _exit_by_signal(signal.SIGTERM)


def _exit_by_signal(number: signal.Signals) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
