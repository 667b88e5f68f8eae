"""A batch on its way through a replica, and what becomes of it when the replica's process dies or hangs."""

from __future__ import annotations

from collections import deque
from typing import Any

from lsml_cli.errors import ModelError
from lsml_cli.inference.record_codec import BindingKey, RecordCodec
from lsml_cli.inference.replica import Replica
from lsml_cli.inference.replica_process import ReplicaDied, ReplicaProcess
from lsml_cli.schema.predictions import Failure

MAX_CONSECUTIVE_LOSSES = 3  # single tasks in a row that kill a replica or hang in it; then the model is to blame


class BatchTimeout(Exception):
    """A batch took too long; its process was killed and started again."""


def timeout_message(seconds: float) -> str:
    """Return the reason of a failure for a task in which the model hung."""
    return f"the model was stuck for {seconds:.0f} s, and was started again"


class InFlightBatch:
    """A batch that was submitted to a replica.

    Attributes:
        results: Done when the batch is back, or lost with its process; `collect` it then.
    """

    def __init__(
        self, replica: Replica | ReplicaProcess, batch: list[Any], binding_key: BindingKey | None, codec: RecordCodec
    ) -> None:
        self.replica = replica
        self.batch = batch
        self.binding_key = binding_key
        self.codec = codec
        self.results = replica.submit(batch, binding_key, codec)

    def collect(self, timeout: float | None = None) -> list[Any]:
        """Wait for the results; a batch that was lost with its process is submitted again.

        The batch that the process was working on is submitted item by item, so that only the items that kill it fail.

        Args:
            timeout: Seconds that a batch (or item) that is submitted again may take; then it fails for good. None: no
                limit, for a caller that waits for nothing else.

        Raises:
            ModelError: `MAX_CONSECUTIVE_LOSSES` items in a row were lost, or the model does not load again.
        """
        try:
            return self.results.result()
        except ReplicaDied as death:
            assert isinstance(self.replica, ReplicaProcess)
            with self.replica.recovery_lock:
                return self._resubmit(self.replica, death, timeout)

    def _resubmit(self, replica: ReplicaProcess, death: ReplicaDied, timeout: float | None) -> list[Any]:
        replica.restart()
        while not death.is_suspect:
            try:
                return self._submit_and_wait(replica, self.batch, timeout)
            except ReplicaDied as next_death:
                replica.restart()
                death = next_death
            except BatchTimeout as stuck:
                return [self._failure_result(item, str(stuck)) for item in self.batch]
        return self._submit_one_by_one(replica, timeout)

    def _submit_one_by_one(self, replica: ReplicaProcess, timeout: float | None) -> list[Any]:
        results: list[Any] = []
        pending = deque(self.batch)
        losses = 0
        while pending:
            try:
                results += self._submit_and_wait(replica, [pending[0]], timeout)
                losses = 0
            except ReplicaDied as death:
                if not death.is_only_batch:  # another caller's batch may have killed it
                    replica.restart()
                    continue
                losses += 1
                if losses == MAX_CONSECUTIVE_LOSSES:
                    raise ModelError(
                        f"The model's process dies again and again ({death.cause}).",
                        "Look at the memory of the machine, and try a smaller --batch-size.",
                    ) from None
                replica.restart()
                results.append(self._failure_result(pending[0], f"the model's process died: {death.cause}"))
            except BatchTimeout as stuck:
                losses += 1
                if losses == MAX_CONSECUTIVE_LOSSES:
                    raise ModelError(f"One task after the other is in vain: {stuck}.") from None
                results.append(self._failure_result(pending[0], str(stuck)))
            pending.popleft()
        return results

    def _submit_and_wait(self, replica: ReplicaProcess, batch: list[Any], timeout: float | None) -> list[Any]:
        """Raise BatchTimeout when the batch itself hangs, ReplicaDied when it was lost for another reason."""
        results = replica.submit(batch, self.binding_key, self.codec)
        while True:
            try:
                return results.result(timeout)
            except TimeoutError:  # of this wait; a replica raises none
                assert timeout is not None
                if replica.kill_if_stuck(results):
                    raise BatchTimeout(timeout_message(timeout)) from None

    def _failure_result(self, item: Any, reason: str) -> Any:
        task, _ = self.codec.read(item)
        return self.codec.write(item, task, Failure("forward", reason))
