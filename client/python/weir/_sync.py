"""The client, for programs without an event loop: a thread of its own has one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ._async import AsyncClient
from ._errors import WeirError
from ._types import Answer, Array, Class, EndpointInfo

T = TypeVar("T")


class Client:
    """Asks a cluster from any thread. Its connections end with ``close()``, or with the ``with`` that it is used in.

    ``coordinators``: ``host:port`` of some, with commas between them. ``token``: 64 hex digits; or ``token_file``, which holds them.
    """

    def __init__(
        self,
        coordinators: str = "127.0.0.1:7300",
        *,
        token: str | None = None,
        token_file: str | Path | None = None,
    ) -> None:
        self._client = AsyncClient(coordinators, token=token, token_file=token_file)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None
        self._failed: BaseException | None = None
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), name="weir-client", daemon=True)
        self._thread.start()
        ready.wait()
        if self._failed is not None:
            raise self._failed

    async def _serve(self, ready: threading.Event) -> None:
        try:
            async with self._client:
                self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
                ready.set()
                await self._ended.wait()
        except BaseException as error:  # noqa: BLE001
            # It is raised where the client is made.
            self._failed = error
        finally:
            self._loop = None
            ready.set()

    def _ask(self, asked: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            asked.close()
            raise WeirError("the client was closed")
        waiting = asyncio.run_coroutine_threadsafe(asked, self._loop)
        try:
            return waiting.result()
        except BaseException:
            # Whoever interrupts a call takes it along.
            waiting.cancel()
            raise

    def predict(
        self,
        endpoint: str,
        inputs: Array | Mapping[str, Array],
        *,
        deadline: float | None = None,
        class_: Class | None = None,
        outputs: Sequence[str] = (),
        whole: bool = False,
        min_stage: str | None = None,
        max_stage: str | None = None,
        trace: bool = False,
    ) -> list[Answer]:
        """As ``AsyncClient.predict``."""
        return self._ask(
            self._client.predict(
                endpoint,
                inputs,
                deadline=deadline,
                class_=class_,
                outputs=outputs,
                whole=whole,
                min_stage=min_stage,
                max_stage=max_stage,
                trace=trace,
            )
        )

    def describe(self, endpoint: str) -> EndpointInfo:
        """What an endpoint takes and gives."""
        return self._ask(self._client.describe(endpoint))

    def endpoints(self) -> list[str]:
        """Names of the endpoints that there are, whether this client may query them or not."""
        return self._client.endpoints()

    def close(self) -> None:
        """Ends its connections and its thread."""
        loop, ended = self._loop, self._ended
        if loop is not None and ended is not None:
            loop.call_soon_threadsafe(ended.set)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
