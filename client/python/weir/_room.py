"""As many calls at once on a connection, and as many bytes of them, as the node at its other end reads."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque


class Room:
    """Who comes first enters first. What is beyond waits here, where its deadline is seen, not unread in a socket."""

    def __init__(self, calls: int, size: int) -> None:
        """``calls`` at once, of ``size`` bytes together."""
        self.calls_max = max(1, calls)
        self.bytes_max = max(1, size)
        self.calls = 0
        self.bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def enter(self, size: int) -> int:
        """Waits until a call of so many bytes may be sent, and tells what to give back: a node reads one that is larger than all that
        it reads at once, alone."""
        size = min(size, self.bytes_max)
        if not self._waiting and self._has_room(size):
            self._take(size)
            return size
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append((size, waiting))
        try:
            await waiting
        except BaseException:
            if waiting.done() and not waiting.cancelled():
                # It was let in, and does not come.
                self.leave(size)
            else:
                with contextlib.suppress(ValueError):
                    self._waiting.remove((size, waiting))
                self._let_in()
            raise
        return size

    def leave(self, size: int) -> None:
        """A call has ended."""
        self.calls -= 1
        self.bytes -= size
        self._let_in()

    def _has_room(self, size: int) -> bool:
        return self.calls < self.calls_max and self.bytes + size <= self.bytes_max

    def _take(self, size: int) -> None:
        self.calls += 1
        self.bytes += size

    def _let_in(self) -> None:
        while self._waiting:
            size, waiting = self._waiting[0]
            if not waiting.done():
                if not self._has_room(size):
                    return
                self._take(size)
                waiting.set_result(None)
            self._waiting.popleft()
