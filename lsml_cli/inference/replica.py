"""One loaded model on one device: read, fetch, encode, forward, decode, check and write the items of a batch.

What goes in and what comes out is up to a `RecordCodec`: tasks and outcomes by default, bytes in bulk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lsml_cli.errors import ModelError
from lsml_cli.inference.record_codec import BindingKey, RecordCodec, TaskCodec
from lsml_cli.models.base import Binding, Model
from lsml_cli.runtime import (
    DEFAULT_FETCH_THREADS,
    FetchMedia,
    Retrier,
    error_reason,
)
from lsml_cli.schema.predictions import Failure, Outcome, Prediction, Stage
from lsml_cli.schema.tasks import Task, describe_json_type
from lsml_cli.transient import is_transient

PREFETCH_BATCHES = 2  # batches that wait for a replica while it works on another
MAX_CACHED_BINDINGS = 64  # per replica; a server gets a new label config whenever one is edited

T = TypeVar("T")


class Replica:
    """One loaded model on one device, in this process.

    With threads, some fetch and encode items ahead, one owns the device and takes the batches in the order in which
    they were submitted, and one decodes the outputs. Without threads a batch is done when `submit` returns.

    Args:
        model: The model, loaded.
        binding_key: What to bind it to by default; None: every batch brings its own.
        fetch: Returns the bytes of a media reference.
        encode_threads: Threads that encode, 0 for none at all.
        fetch_threads: Threads that wait for media: many, since they only wait.
    """

    def __init__(
        self,
        model: Model,
        binding_key: BindingKey | None = None,
        *,
        fetch: FetchMedia | None = None,
        encode_threads: int = 0,
        fetch_threads: int = DEFAULT_FETCH_THREADS,
    ) -> None:
        self.model = model
        self.binding_key = binding_key
        self.fetch = fetch
        self.prefetch = PREFETCH_BATCHES if encode_threads else 0
        self.pending_count = 0
        self._has_media_refs = type(model).media_refs is not Model.media_refs
        self._retrier = Retrier(model.retry_delays)
        self._bindings: dict[tuple[object, ...], Binding] = {}
        self._encode_pool = ThreadPoolExecutor(encode_threads, "encode") if encode_threads else None
        self._forward_pool = ThreadPoolExecutor(1, "forward") if encode_threads else None
        self._decode_pool = ThreadPoolExecutor(1, "decode") if encode_threads else None
        self._fetch_pool = (
            ThreadPoolExecutor(fetch_threads, "fetch") if encode_threads and self._has_media_refs else None
        )
        if binding_key is not None:
            self.get_binding(binding_key)

    def get_binding(self, binding_key: BindingKey) -> Binding:
        """Return the model's binding for a key; the `MAX_CACHED_BINDINGS` used last are cached."""
        key = binding_key.cache_key()
        binding = self._bindings.pop(key, None) or self._bind(binding_key)
        self._bindings[key] = binding  # the most recent one comes last
        if len(self._bindings) > MAX_CACHED_BINDINGS:
            del self._bindings[next(iter(self._bindings))]
        return binding

    def _bind(self, binding_key: BindingKey) -> Binding:
        binding = binding_key.bind(self.model)
        binding.fetch = self.fetch
        return binding

    def predict(self, tasks: Sequence[Task], binding_key: BindingKey | None = None) -> list[Outcome]:
        """Return one outcome per task, in order. A single task is a batch of one."""
        results: list[tuple[Task, Outcome]] = self.submit(tasks, binding_key, TaskCodec()).result()
        return [outcome for _, outcome in results]

    def encode_items(self, items: Sequence[Any], binding_key: BindingKey, codec: RecordCodec) -> list[Any]:
        """Return the encoded inputs of items; those that fail are left out."""
        binding = self.get_binding(binding_key)
        work_items = [self._prepare(item, binding, codec) for item in items]
        return [work.input for work in work_items if work.task is not None and work.outcome is None]

    def submit(self, batch: Sequence[Any], binding_key: BindingKey | None, codec: RecordCodec) -> Future[list[Any]]:
        """Start to predict a batch; the future holds one result per item, in order."""
        binding_key = binding_key or self.binding_key
        if binding_key is None:
            raise ModelError("This replica was bound to nothing, and the batch does not say what to bind it to.")
        binding = self.get_binding(binding_key)
        done: Future[list[Any]] = Future()
        if self._encode_pool is None or self._forward_pool is None or self._decode_pool is None:
            work_items = [self._prepare(item, binding, codec) for item in batch]
            done.set_result(self._decode_all(self._forward_all(work_items, binding), binding, codec))
            return done
        encoded = []
        for item in batch:
            if self._fetch_pool is None:
                encoded.append(self._encode_pool.submit(self._prepare, item, binding, codec))
            else:
                read = self._fetch_pool.submit(self._read, item, binding, codec)
                encoded.append(self._encode_pool.submit(self._encode_read, read, binding))
        forwarded = self._forward_pool.submit(lambda: self._forward_all([work.result() for work in encoded], binding))
        return self._decode_pool.submit(lambda: self._decode_all(forwarded.result(), binding, codec))

    def close(self) -> None:
        """Drop what is waiting. Running work is not waited for: after ctrl-C that could take minutes."""
        self._retrier.cancel()
        for pool in (self._fetch_pool, self._encode_pool, self._forward_pool, self._decode_pool):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, item: Any, binding: Binding, codec: RecordCodec) -> _WorkItem:
        return self._encode(self._read(item, binding, codec), binding)

    def _encode_read(self, read: Future[_WorkItem], binding: Binding) -> _WorkItem:
        return self._encode(read.result(), binding)

    def _attempt(self, stage: Stage, step: Callable[[], T]) -> T | Failure:
        """Return what `step` returns, or a Failure where it raises: one bad task costs one task."""
        try:
            return self._retrier.call(step, stage)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # foreign code, which may even call sys.exit
            return Failure(stage, error_reason(error), transient=is_transient(error))

    def _read(self, item: Any, binding: Binding, codec: RecordCodec) -> _WorkItem:
        """Read the task in an item, and fetch the media that it points to."""
        read = self._attempt("read", lambda: codec.read(item))
        if isinstance(read, Failure):
            return _WorkItem(item, None, read)
        task, outcome = read
        work = _WorkItem(item, task, outcome)
        if task is not None and outcome is None and self._has_media_refs:
            media = self._attempt("fetch", lambda: self._fetch_all(task, binding))
            if isinstance(media, Failure):
                work.outcome = media
            else:
                work.media = media
        return work

    def _encode(self, work: _WorkItem, binding: Binding) -> _WorkItem:
        task, media = work.task, work.media
        if task is None or work.outcome is not None:
            return work
        encoded = self._attempt("encode", lambda: self.model.encode(task, binding, media))
        work.media = {}  # the bytes are no longer needed
        if isinstance(encoded, Failure):
            work.outcome = encoded
        else:
            work.input = encoded
        return work

    def _fetch_all(self, task: Task, binding: Binding) -> dict[str, bytes]:
        """Return the bytes of everything that a task points to, by reference."""
        media_refs = self.model.media_refs(task, binding)
        if media_refs and self.fetch is None:
            raise ValueError(f"nothing here can fetch {media_refs[0]}")
        return {media_ref: self.fetch(media_ref, task.id) for media_ref in media_refs} if self.fetch else {}

    def _forward_all(self, batch: list[_WorkItem], binding: Binding) -> list[_WorkItem]:
        """Run the model on the items that have an input, and store their outputs."""
        ready = [work for work in batch if work.outcome is None]
        for work, output in zip(ready, self._forward(ready, binding), strict=True):
            work.input = None
            if isinstance(output, Failure):
                work.outcome = output
            else:
                work.output = output
        return batch

    def _decode_all(self, batch: list[_WorkItem], binding: Binding, codec: RecordCodec) -> list[Any]:
        for work in batch:
            if work.outcome is None:
                work.outcome = self._decode(work.output, work, binding)
        return [self._write(work, codec) for work in batch]

    def _forward(self, ready: list[_WorkItem], binding: Binding) -> Sequence[Any]:
        """Return one output or one Failure per input.

        A failing batch is tried again one by one, one that is too large for the memory in halves.
        """
        if not ready:
            return []
        inputs = [work.input for work in ready]
        outputs = self._attempt("forward", lambda: self._forward_checked(inputs, binding))
        if not isinstance(outputs, Failure):
            return outputs
        if len(ready) == 1:
            return [outputs]
        if _is_out_of_memory(outputs):
            half = len(ready) // 2
            return [*self._forward(ready[:half], binding), *self._forward(ready[half:], binding)]
        return [self._forward([work], binding)[0] for work in ready]

    def _forward_checked(self, inputs: list[Any], binding: Binding) -> Sequence[Any]:
        """Call the model's forward; raise ValueError unless it returns one output per input."""
        outputs = self.model.forward(inputs, binding)
        if not hasattr(outputs, "__len__"):
            raise ValueError(f"the model's forward returned {describe_json_type(outputs)}, expected a list of outputs")
        if len(outputs) != len(inputs):
            raise ValueError(f"the model returned {len(outputs)} outputs for {len(inputs)} inputs")
        return outputs

    def _decode(self, output: Any, work: _WorkItem, binding: Binding) -> Outcome:
        """Decode an output, apply the threshold, and check the prediction against the label config."""
        task = work.task
        assert task is not None
        prediction: Any = self._attempt("decode", lambda: self.model.decode(output, task, binding))
        if isinstance(prediction, Failure):
            return prediction
        if not isinstance(prediction, Prediction):
            return Failure(
                "decode", f"the model's decode returned {describe_json_type(prediction)}, expected a Prediction"
            )
        keeps_all = binding.threshold is None or binding.applies_threshold
        kept = prediction if keeps_all else prediction.drop_low_scores(binding.threshold or 0.0)
        problem = self._attempt("check", lambda: binding.config.check(kept, task.data))
        if problem is None:
            return kept
        return problem if isinstance(problem, Failure) else Failure("check", problem)

    def _write(self, work: _WorkItem, codec: RecordCodec) -> Any:
        """Return the result of an item; where prediction or task cannot be written, that of a failure."""
        assert work.outcome is not None
        outcome: Outcome = work.outcome
        result = self._attempt("check", lambda: codec.write(work.item, work.task, outcome))
        if not isinstance(result, Failure):
            return result
        failure = result
        result = self._attempt("check", lambda: codec.write(work.item, work.task, failure))
        return codec.write(work.item, None, failure) if isinstance(result, Failure) else result


@dataclass(slots=True)
class _WorkItem:
    """An item on its way through a replica, which fills one field after the other."""

    item: Any
    task: Task | None
    outcome: Outcome | None
    media: Mapping[str, bytes] = field(default_factory=dict)
    input: Any = None
    output: Any = None


def _is_out_of_memory(failure: Failure) -> bool:
    """Return whether a batch was too large for the memory of the device or the machine."""
    return "OutOfMemory" in failure.reason or "out of memory" in failure.reason or "MemoryError" in failure.reason
