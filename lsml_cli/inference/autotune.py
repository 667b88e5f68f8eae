"""What a run settles once, before its first batch: the precision and the batch size that suit model and device.

It is settled on the first tasks, by the model itself (`Model.tune`), and becomes part of what the run was started with:
every replica works by it, and so does a resumed run, whose bytes would not be the same otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lsml_cli.errors import ModelError
from lsml_cli.inference.plan import PredictPlan
from lsml_cli.inference.record_codec import BindingKey
from lsml_cli.inference.replica_process import ReplicaConfig
from lsml_cli.io.journal import JournalState
from lsml_cli.io.json_records import Record
from lsml_cli.io.output_paths import is_stream, sibling_path
from lsml_cli.models.base import AutotuneResult
from lsml_cli.models.spec import Json

SAMPLE_TASKS = 64  # tasks; an input with fewer is done before there would be anything to gain


def autotune_plan(plan: PredictPlan, records: Iterator[Record]) -> tuple[PredictPlan, Iterator[Record], str]:
    """The plan with everything settled, all the records, and a sentence about it ("" when there was nothing).

    Raises ModelError when the model cannot be loaded, or when it could only leave every task without an answer.
    """
    _require_can_predict(plan)
    open_questions = [name for name in plan.model.auto_params if plan.model.param(name) == "auto"]
    if not open_questions and plan.options.batch_size != "auto":
        return plan, records, ""
    if plan.options.resume and (known := _read_autotuned(plan)) is not None:
        return apply_autotuned(plan, known), records, ""
    sample = list(islice(records, SAMPLE_TASKS))
    every = chain(sample, records)
    if len(sample) < SAMPLE_TASKS or (plan.options.limit is not None and plan.options.limit < SAMPLE_TASKS):
        return plan, every, ""
    found = _run_autotune(plan, sample)
    if found is None:
        return plan, every, ""
    return apply_autotuned(plan, dict(found.params) | {"batch_size": found.batch_size}), every, found.note


def apply_autotuned(plan: PredictPlan, autotuned: Mapping[str, Json]) -> PredictPlan:
    """The plan with these answers; `batch_size` among them, which counts where it was asked for by "auto"."""
    params = {name: value for name, value in autotuned.items() if name != "batch_size"}
    spec = replace(plan.spec, params=dict(plan.spec.params) | params)
    size = autotuned.get("batch_size")
    if plan.options.batch_size != "auto" or not isinstance(size, int):
        size = plan.batch_size
    return replace(plan, spec=spec, model=spec.build(), batch_size=size, autotuned_params=dict(autotuned))


def _require_can_predict(plan: PredictPlan) -> None:
    """A model that knows no class which is a label here would write "found nothing" about every task.

    A server may begin with such a model, since it is trained there; for a file there is no use in it.
    """
    binding = plan.binding
    if not binding.can_predict:
        why = next(iter(binding.notes), "It has no class that is a label here.")
        raise ModelError(
            f"{plan.spec.name} would predict nothing at all. {why}",
            f"Train it first: lsml fit EXPORT.json --model {plan.spec.name} --output DIR",
        )


def _run_autotune(plan: PredictPlan, sample: list[Record]) -> AutotuneResult | None:
    options = plan.options
    setting = BindingKey(plan.binding.config, options.label_map, None, options.threshold)
    replica = ReplicaConfig(plan.spec, setting, plan.devices[0], media=plan.media).open()
    fetchers = ThreadPoolExecutor(options.fetch_threads, "fetch")  # one after the other could take a minute
    try:
        found = fetchers.map(lambda record: replica.encode_items([record], setting, plan.codec), sample)
        inputs = list(chain.from_iterable(found))
        size = None if options.batch_size == "auto" else plan.batch_size
        return replica.model.autotune(replica.get_binding(setting), inputs, size)
    finally:
        fetchers.shutdown(wait=False, cancel_futures=True)
        replica.close()


def _read_autotuned(plan: PredictPlan) -> Mapping[str, Any] | None:
    """What the run to be resumed has settled; None when there is no such run, or when it had nothing to settle."""
    output = plan.options.output
    if is_stream(output):
        return None
    header = JournalState.read(sibling_path(Path(output), ".part.journal"), sys.maxsize, sys.maxsize).header
    found = header.get("tuned") if header else None
    return found if isinstance(found, dict) else None
