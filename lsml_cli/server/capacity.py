"""Limit how many projects' models are in memory, and queue loads that exceed the limit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from lsml_cli.server.served_model import ServedModel


class Capacity:
    """Room in memory for `max_models` models; a load beyond that waits until another model is unloaded.

    Args:
        unload_one: Retires a loaded model and returns it; None when none can be unloaded now.
    """

    def __init__(self, max_models: int, unload_one: Callable[[], ServedModel | None]) -> None:
        self._max_models = max_models
        self._unload_one = unload_one
        self._occupied = 0  # including models that are being loaded or unloaded
        self._unloading = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> None:
        """Wait for room for one model, in order of arrival."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(turn)
        self.admit_waiters()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # admitted and cancelled in the same iteration of the event loop
                self.release()
            raise

    def release(self) -> None:
        """Give back the room of one model that was not loaded; an unloaded one's is released by itself."""
        self._occupied -= 1
        self.admit_waiters()

    def admit_waiters(self) -> None:
        """Admit loads that there is room for, and unload models for the others.

        Call it whenever a model may have become free to be unloaded.
        """
        self._waiters = deque(turn for turn in self._waiters if not turn.cancelled())
        while self._waiters and self._occupied < self._max_models:
            self._occupied += 1
            self._waiters.popleft().set_result(None)
        while self._unloading < len(self._waiters) and (leaving := self._unload_one()) is not None:
            self._unloading += 1
            leaving.unloaded.add_done_callback(self._on_unloaded)

    def _on_unloaded(self, _: asyncio.Future[None]) -> None:
        self._unloading -= 1
        self.release()
