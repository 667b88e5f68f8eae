"""One training job, in a process of its own: `python -m lsml_cli.server.training_job DIR JOB ATTEMPT`, or an RQ job.

The job's file says what to do, and takes what comes of it. The key of Label Studio comes from the environment of the
process that runs this.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lsml_cli.errors import GateMissed, InputError, LsmlError
from lsml_cli.server.job_store import Job, JobStore, StaleAttempt, project_versions_folder, utc_now

if TYPE_CHECKING:
    from lsml_cli.media.fetcher import Media
    from lsml_cli.models.base import Model
    from lsml_cli.training.fit import FitResult

VERSIONS_VARIABLE = "LSML_WORKER_VERSIONS"  # the environment variable that says where the shared folder is on this host
NICENESS = 10
HEARTBEAT_INTERVAL = 2.0  # seconds
PROGRESS_INTERVAL = 0.2  # seconds at least between two sentences that are written down

log = logging.getLogger("lsml.serve")


def run(versions_folder: str, job_id: str, attempt: int = 1) -> None:
    """Train what a job asks for, and write down what came of it.

    versions  the folder of versions as the server calls it; LSML_WORKER_VERSIONS wins

    Raises LsmlError when this host cannot see the job or not write it down. Anything else that goes wrong is the
    result of the job; and where another process has this attempt already, or it no longer counts, nothing is done.
    """
    with suppress(OSError):
        os.nice(max(0, NICENESS - os.nice(0)))
    store = JobStore(Path(os.environ.get(VERSIONS_VARIABLE) or versions_folder))
    try:
        _require_shared_folder(store, job_id)
        job = store.claim(job_id, attempt)
    except LsmlError as error:
        log.error("Job %s: %s", job_id, error)
        raise
    except StaleAttempt:
        log.info("Job %s, attempt %d: nothing left to do.", job_id, attempt)
        return
    log.info("Job %s: training project %d (attempt %d).", job.id, job.project, job.attempt)
    with _Heartbeat(store, job) as heart:
        result = {"version": None, "reason": None, **_train_and_summarize(store, job, heart)}
    try:
        job = store.update(job, ended=utc_now(), progress=None, **result)
    except StaleAttempt:
        log.warning("Job %s went on without attempt %d.", job.id, job.attempt)
        return
    log.info("Job %s: %s. %s", job.id, job.state, job.reason or job.version or "")


def _require_shared_folder(store: JobStore, job_id: str) -> None:
    shared = (
        "The folder of --versions has to be shared with this host; where it has another name here, say so: "
        "lsml worker --versions DIR"
    )
    if not store.versions_folder.is_dir():
        raise InputError(f"There is no folder {store.versions_folder} on this host.", shared)
    try:
        store.read(job_id)
    except InputError as error:
        raise InputError(f"{store.versions_folder} on this host is not the server's: {error.message}", shared) from None
    if not os.access(store.versions_folder, os.W_OK) or not os.access(store.jobs_folder, os.W_OK):
        raise InputError(f"{store.versions_folder} cannot be written on this host.", "Mount it so that it can be.")


def _train_and_summarize(store: JobStore, job: Job, heartbeat: _Heartbeat) -> Mapping[str, Any]:
    """Train; what to write down about it."""
    try:
        found = _train(store, job, heartbeat)
    except LsmlError as error:
        _print_debug_traceback()
        return {"state": "failed", "reason": str(error)}
    except (Exception, SystemExit) as error:
        _print_debug_traceback()
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return {"state": "failed", "reason": f"{what}. LSML_DEBUG=1 shows where."}
    known = {"version": f"{found.version.name}@{found.version.version}", "facts": _summarize_fit(found)}
    try:
        found.require_gates_passed()
    except GateMissed as error:
        return known | {"state": "missed", "reason": str(error)}
    if not found.promoted:
        return known | {"state": "failed", "reason": "The export ended too early, so the version was not promoted."}
    return known | {"state": "done"}


def _train(store: JobStore, job: Job, heartbeat: _Heartbeat) -> FitResult:
    from lsml_cli import label_studio
    from lsml_cli.io import task_reader
    from lsml_cli.registry import resolve
    from lsml_cli.schema.label_config import LabelConfig
    from lsml_cli.training import fit as training

    spec = resolve.find_model(job.model, job.params)
    media, device = _build_media(job), _select_device(job, spec.model_class())
    heartbeat.report_progress(f"Asking {job.label_studio_url} for the annotations of project {job.project}.")
    export = store.tasks_file(job)
    try:
        with label_studio.connect(job.label_studio_url) as there:
            config = LabelConfig.parse(there.get_label_config(job.project))
            there.download_annotated(job.project, export)
        heartbeat.report_progress("Training.")
        return training.fit_version(
            spec,
            task_reader.read_tasks(str(export), controls=frozenset(config.controls)),
            config,
            project_versions_folder(store.versions_folder, job.project),
            fail_under=job.fail_under,
            media=media,
            device=device,
            progress=heartbeat.report_progress,
        )
    finally:
        media.close()
        export.unlink(missing_ok=True)


def _build_media(job: Job) -> Media:
    """Where pictures are looked for: where the server does, as far as that is on this host. No plain path is read."""
    from lsml_cli.media.fetcher import AllowedHosts, Cache, LabelStudioCredentials, Media

    def here(folder: str | None) -> Path | None:
        return Path(folder) if folder is not None and os.path.isdir(folder) else None  # noqa: PTH112

    cache = here(job.media_cache)
    return Media(
        document_root=here(job.document_root),
        upload_root=here(job.upload_root),
        prefix_map=tuple((prefix, found) for prefix, folder in job.maps.items() if (found := here(folder))),
        label_studio=LabelStudioCredentials.from_env(job.label_studio_url),
        allowed_hosts=AllowedHosts(job.allow_hosts),
        cache=Cache(cache, job.media_cache_size) if cache and job.media_cache_size else None,
    )


def _select_device(job: Job, model_class: type[Model]) -> str:
    """The server's device, or the best one of a worker that has no such device."""
    from lsml_cli.errors import UsageError
    from lsml_cli.inference import placement

    try:
        return placement.find_devices(job.device, model_class)[0]
    except UsageError as error:
        best = placement.find_devices("auto", model_class)[0]
        log.warning("Job %s: %s It trains on %s.", job.id, error.message, best)
        return best


def _summarize_fit(result: FitResult) -> dict[str, Any]:
    metrics = {
        name: {"accuracy": each.get("accuracy"), "macro_f1": each.get("macro_f1")}
        for name, each in result.version.metrics.items()
    }
    return {"counts": dict(result.version.counts), "metrics": metrics, "seconds": round(result.seconds, 3)}


class _Heartbeat:
    """Beats every two seconds while it is open, from a thread, and writes down what is said of the progress."""

    def __init__(self, store: JobStore, job: Job) -> None:
        self._store = store
        self._job = job
        self._progress: str | None = None
        self._progress_changed = threading.Event()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def __enter__(self) -> _Heartbeat:
        self._store.write_heartbeat(self._job, 0)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._is_stopped = True
        self._progress_changed.set()
        self._thread.join()

    def report_progress(self, progress: str) -> None:
        self._progress = progress
        self._progress_changed.set()

    def _run(self) -> None:
        written, number = None, 0
        while not self._is_stopped:
            self._progress_changed.wait(HEARTBEAT_INTERVAL)
            self._progress_changed.clear()
            number += 1
            self._store.write_heartbeat(self._job, number)
            if (sentence := self._progress) != written and not self._is_stopped:
                with suppress(LsmlError, StaleAttempt):  # the result will say so
                    self._store.update(self._job, progress=sentence)
                written = sentence
                time.sleep(PROGRESS_INTERVAL)


def _print_debug_traceback() -> None:
    if os.environ.get("LSML_DEBUG"):
        import traceback

        traceback.print_exc()


def main() -> int:
    """0 whatever the job's own result, which is on record; 1 when it could not be."""
    logging.basicConfig(format="lsml: %(message)s")
    versions, job_id, attempt = sys.argv[1:]
    try:
        with _sigterm_as_interrupt():
            run(versions, job_id, int(attempt))
    except LsmlError:  # the log says which
        return 1
    return 0


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the process like ctrl-C does, so that what was begun is cleaned up; and then as SIGTERM does."""
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
