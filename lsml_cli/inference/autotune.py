"""Choose precision and batch size for model and device, once, before the first batch of a run.

The model chooses them itself on the first tasks (`Model.autotune`). The result becomes part of the run's fingerprint:
every replica works by it, and so does a resumed run, whose bytes would differ otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from lsml_cli.errors import ModelError, ResumeRefused, UsageError, format_list
from lsml_cli.inference.plan import AUTOTUNED_KEY, PredictPlan
from lsml_cli.inference.record_codec import BindingKey
from lsml_cli.inference.replica_process import ReplicaConfig
from lsml_cli.io.json_records import Record
from lsml_cli.models.base import AutotuneResult
from lsml_cli.models.spec import Json
from lsml_cli.progress import ProgressReporter
from lsml_cli.registry.resolve import check_params
from lsml_cli.schema.value_checks import is_integer

MAX_BATCH_SIZE = 4096  # that a journal may hold; no model chooses a larger one
SAMPLE_TASKS = 64  # an input with fewer tasks is done before there would be anything to gain


def autotune_plan(
    plan: PredictPlan, records: Iterator[Record], reporter: ProgressReporter
) -> tuple[PredictPlan, Iterator[Record], str]:
    """Replace every "auto" of a plan by a value.

    Args:
        plan: The plan of the run.
        records: Its input; the first ones are tried out.
        reporter: Is told that the model is loaded, and what is chosen.

    Returns:
        The plan, all the records, and a sentence about what was chosen ("" when there was nothing to choose).

    Raises:
        ModelError: The model cannot be loaded, or it has no class that is a label here.
    """
    _require_can_predict(plan)
    undecided = [name for name in plan.model.auto_params if plan.model.param(name) == "auto"]
    if not undecided and plan.options.batch_size != "auto":
        return plan, records, ""
    if plan.options.resume and (autotuned := _read_autotuned(plan, undecided)) is not None:
        return apply_autotuned(plan, autotuned), records, ""
    sample = list(islice(records, SAMPLE_TASKS))
    all_records = chain(sample, records)
    if len(sample) < SAMPLE_TASKS or (plan.options.limit is not None and plan.options.limit < SAMPLE_TASKS):
        return plan, all_records, ""
    what = [
        name.replace("_", " ") for name in (*undecided, *(["batch size"] if plan.options.batch_size == "auto" else []))
    ]
    result = _run_autotune(plan, sample, reporter, f"choosing {' and '.join(what)}")
    if result is None:
        return plan, all_records, ""
    return apply_autotuned(plan, dict(result.params) | {"batch_size": result.batch_size}), all_records, result.note


def apply_autotuned(plan: PredictPlan, autotuned: Mapping[str, Json]) -> PredictPlan:
    """Return the plan with these values of parameters, and with `batch_size` among them where that was "auto"."""
    params = {name: value for name, value in autotuned.items() if name != "batch_size"}
    spec = replace(plan.spec, params=dict(plan.spec.params) | params)
    size = autotuned.get("batch_size")
    if plan.options.batch_size != "auto" or not isinstance(size, int):
        size = plan.batch_size
    return replace(plan, spec=spec, model=spec.build(), batch_size=size, autotuned_params=dict(autotuned))


def _require_can_predict(plan: PredictPlan) -> None:
    """Raise ModelError for a model without a class that is a label here: it would find nothing in every task.

    A server may start with such a model, since it is trained there.
    """
    binding = plan.binding
    if not binding.can_predict:
        reason = " ".join(binding.notes) or "It has no class that is a label here."
        raise ModelError(
            f"{plan.spec.name} would predict nothing at all. {reason}",
            f"Train it first: lsml fit EXPORT.json --model {plan.spec.name} --output DIR",
        )


def _run_autotune(
    plan: PredictPlan, sample: list[Record], reporter: ProgressReporter, phase: str
) -> AutotuneResult | None:
    options = plan.options
    reporter.start_phase("loading model")
    binding_key = BindingKey(plan.binding.config, options.label_map, None, options.threshold)
    replica = ReplicaConfig(plan.spec, binding_key, plan.devices[0], media=plan.media).open()
    reporter.start_phase(phase)
    fetch_pool = ThreadPoolExecutor(options.fetch_threads, "fetch")  # one after the other could take a minute
    try:
        encoded = fetch_pool.map(lambda record: replica.encode_items([record], binding_key, plan.codec), sample)
        inputs = list(chain.from_iterable(encoded))
        batch_size = None if options.batch_size == "auto" else plan.batch_size
        return replica.model.autotune(replica.get_binding(binding_key), inputs, batch_size)
    finally:
        fetch_pool.shutdown(wait=False, cancel_futures=True)
        replica.close()


def _read_autotuned(plan: PredictPlan, undecided: Sequence[str]) -> Mapping[str, Any] | None:
    """Return what the unfinished run has chosen; None when there is no such run, or it had nothing to choose.

    The journal lies beside the output, where anybody who made that folder may have put one: it decides nothing but what
    `Model.autotune` would.

    Raises:
        ResumeRefused: It names other parameters, or values that are not allowed.
    """
    fingerprint = plan.options.target.read_unfinished_fingerprint()
    autotuned = fingerprint.get(AUTOTUNED_KEY) if fingerprint else None
    if not isinstance(autotuned, dict):
        return None
    params = {name: value for name, value in autotuned.items() if name != "batch_size"}
    try:
        if unknown := sorted(params.keys() - set(undecided)):
            raise UsageError(f"it sets {format_list(unknown)}")
        check_params(type(plan.model), params)
        size = autotuned.get("batch_size")
        if size is not None and not (is_integer(size) and 0 < size <= MAX_BATCH_SIZE):
            raise UsageError(f"its batch size is not between 1 and {MAX_BATCH_SIZE:,}")
    except UsageError as error:
        journal = plan.options.target.journal_path
        raise ResumeRefused(
            f"{journal} is damaged, so the run cannot be resumed: {error.message.rstrip('.')}.",
            "Delete it, and start over without --resume.",
        ) from None
    return autotuned
