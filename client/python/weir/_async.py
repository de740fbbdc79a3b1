"""The client, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import capnp
import numpy as np

from . import _wire
from ._balance import Balancer
from ._errors import BadInput, NotFound, Refused, Unreachable, WeirError
from ._types import Answer, Array, Class, EndpointInfo, Outcome
from ._wire import predict_capnp

#: Longest that a call without a deadline of its own is waited for.
PATIENCE = 60.0
#: How long after its deadline a call is given up: the node answers at the deadline, and that answer is on its way.
GRACE = 0.25
#: For dialling, and for questions that have no deadline.
ASKED_WITHIN = 2.0
#: How long a coordinator may hold the question for changes.
WATCH = 10.0


class _Line:
    """A connection that has logged in, and as many calls at once as its node reads."""

    def __init__(self, client: Any, granted: Any) -> None:
        self.client = client
        self.role = granted.role
        self.message_bytes = int(granted.messageBytes) or 1 << 62
        self.calls = asyncio.Semaphore(max(1, int(granted.callsInFlight)))


async def _enter(address: str, token: bytes) -> _Line:
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(ASKED_WITHIN):
            stream = await capnp.AsyncIoStream.create_connection(host=host.strip("[]"), port=int(port))
            client = capnp.TwoPartyClient(stream)
            login = client.bootstrap().cast_as(predict_capnp.Login)
            request = login.login_request()
            request.request.token = token
            request.request.software = "weir-python 0.1.0"
            request.request.protocol = 1
            request.request.purpose = "predict"
            granted = (await request.send()).granted
    except (OSError, ValueError, TimeoutError) as error:
        raise Unreachable(f"{address} cannot be reached ({error or 'no answer'})") from error
    except capnp.KjException as error:
        raise Refused(_remote(error)) from error
    return _Line(client, granted)


def _remote(error: Exception) -> str:
    """What the other side said, without where its words came from."""
    text = str(getattr(error, "description", "") or error)
    return text.split("remote exception: ")[-1].strip()


def read_token(token: str | None, token_file: str | Path | None) -> bytes:
    """64 hex digits, from a text or a file."""
    if token is None:
        if token_file is None:
            return b""
        try:
            token = Path(token_file).read_text()
        except OSError as error:
            raise Refused(f"cannot read the token: {error}; name another file") from error
    try:
        data = bytes.fromhex(token.strip())
    except ValueError:
        data = b""
    if len(data) != 32:
        raise Refused("that is no token: a token is 64 hex digits")
    return data


class AsyncClient:
    """Asks a cluster from asyncio. Use it as ``async with``, inside one event loop.

    ``coordinators``: ``host:port`` of some, with commas between them. ``token``: 64 hex digits; or ``token_file``, which holds them.
    """

    def __init__(
        self,
        coordinators: str = "127.0.0.1:7300",
        *,
        token: str | None = None,
        token_file: str | Path | None = None,
    ) -> None:
        self._coordinators = [address.strip() for address in coordinators.split(",") if address.strip()]
        self._token = read_token(token, token_file)
        self._addresses: dict[str, str] = {}
        self._endpoints: list[str] = []
        self._index = 0
        self._lines: dict[str, asyncio.Task[_Line]] = {}
        self._balancer = Balancer()
        self._stack = contextlib.AsyncExitStack()
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        # One for all clients of a thread.
        with contextlib.suppress(RuntimeError):
            await self._stack.enter_async_context(capnp.kj_loop())
        try:
            await self._find()
        except BaseException:
            await self._stack.aclose()
            raise
        self._following = asyncio.create_task(self._follow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends its connections."""
        tasks = [task for task in (self._following, *self._lines.values()) if task is not None]
        self._following = None
        self._lines.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._stack.aclose()

    async def _find(self) -> None:
        last: WeirError = Unreachable("name at least one coordinator")
        for address in self._coordinators:
            try:
                line = await _enter(address, self._token)
                await self._take(line, 0.0)
                return
            except WeirError as error:
                last = error
        if isinstance(last, Unreachable):
            raise Unreachable(
                f"no coordinator of {', '.join(self._coordinators)} can be reached; last: {last}"
            ) from last
        raise last

    async def _take(self, line: _Line, wait: float) -> None:
        if line.role.which() != "directory":
            raise Unreachable("this is no coordinator")
        try:
            async with asyncio.timeout(wait + ASKED_WITHIN):
                asked = line.role.directory.nodes(known=self._index if wait else 0, waitUs=int(wait * 1e6))
                told = (await asked).directory
        except TimeoutError as error:
            raise Unreachable("a coordinator does not answer") from error
        except capnp.KjException as error:
            raise Unreachable(_remote(error)) from error
        self._index = int(told.index)
        self._addresses = {str(node.name): str(node.address) for node in told.nodes if not node.draining}
        self._endpoints = [str(name) for name in told.endpoints]
        known = [str(member.address) for member in told.coordinators]
        self._coordinators = known + [address for address in self._coordinators if address not in known]
        self._balancer.set_nodes(list(self._addresses))

    async def _follow(self) -> None:
        turn = 0
        while True:
            address = self._coordinators[turn % len(self._coordinators)]
            turn += 1
            with contextlib.suppress(WeirError):
                line = await _enter(address, self._token)
                while True:
                    await self._take(line, WATCH)
            await asyncio.sleep(0.2)

    def endpoints(self) -> list[str]:
        """Names of the endpoints that there are, whether this client may query them or not."""
        return list(self._endpoints)

    async def describe(self, endpoint: str) -> EndpointInfo:
        """What an endpoint takes and gives."""
        last: WeirError = Unreachable("the cluster has no node; start one with `weir node`")
        for node in list(self._addresses):
            try:
                line = await self._line(node)
                async with asyncio.timeout(ASKED_WITHIN):
                    return _wire.read_info((await line.role.predictor.describe(endpoint=endpoint)).signature)
            except (WeirError, TimeoutError) as error:
                last = error if isinstance(error, WeirError) else Unreachable(f"{node} does not answer")
            except capnp.KjException as error:
                last = NotFound(_remote(error))
        raise last

    async def predict(
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
    ) -> list[Answer]:
        """Asks. There is one answer a row, whatever happens; one in all where the arrays are asked ``whole``.

        ``inputs``: an array, or arrays by name; their first dimension is the rows, each a query of its own, unless ``whole``.
        ``deadline``: seconds from now; the endpoint's own where absent. ``outputs``: which to send back; all where empty.
        ``min_stage``: no shallower stage may answer. ``max_stage``: no deeper one is asked.
        """
        arrays = (
            {name: np.asarray(array) for name, array in inputs.items()}
            if isinstance(inputs, Mapping)
            else {"": np.asarray(inputs)}
        )
        if not arrays:
            raise BadInput("there are no inputs")
        if not whole and any(array.ndim == 0 for array in arrays.values()):
            raise BadInput("an array without dimensions has no rows; ask whole=True, or add a first dimension")
        if deadline is not None and not deadline > 0:
            raise BadInput("a deadline is a number of seconds above 0")
        rows = 1 if whole else max(1, next(iter(arrays.values())).shape[0])
        for array in arrays.values():
            _wire.to_bytes(array[:0] if array.ndim else array)
        number = _wire.new_number()
        until = time.monotonic() + (PATIENCE if deadline is None else deadline)
        tried: list[str] = []
        attempt, may_have_run = 1, False

        def fill(request: Any, left: float) -> None:
            left_us = 0 if deadline is None else max(1, int(left * 1e6))
            _wire.write_request(
                request,
                endpoint,
                arrays,
                number=number,
                whole=whole,
                left_us=left_us,
                class_=class_,
                outputs=outputs,
                min_stage=min_stage,
                max_stage=max_stage,
            )

        while True:
            node = self._balancer.pick(time.monotonic(), tried)
            if node is None:
                answers = _all(
                    number, rows, "rejected", "noReplica", "the cluster has no node; start one with `weir node`"
                )
                sent = True
            else:
                answers, sent = await self._attempt(node, fill, number, rows, until, attempt)
            outcome, rejection = _of_call(answers)
            may_have_run |= outcome == "unknown"
            left = until - time.monotonic()
            if not sent and node is not None and len(tried) + 1 < len(self._addresses) and left > 0:
                # Looking for a node that is there costs the cluster nothing, and no retry.
                tried.append(node)
                continue
            wait = self._balancer.may_retry(attempt, outcome, rejection, left)
            if wait is None:
                return [_may_have_run(answer) for answer in answers] if may_have_run else answers
            if node is not None:
                tried.append(node)
            attempt += 1
            await asyncio.sleep(wait)

    async def _attempt(
        self, node: str, fill: Any, number: int, rows: int, until: float, attempt: int
    ) -> tuple[list[Answer], bool]:
        """What one node says, and whether it was asked."""
        self._balancer.on_sent(node, attempt)
        began = time.monotonic()
        told = False
        try:
            try:
                async with asyncio.timeout(max(0.0, until - began) + GRACE):
                    answers, sent = await self._call(node, fill, number, rows, until)
            except TimeoutError:
                answers, sent = (
                    _all(number, rows, "unknown", None, f"{node} did not answer in time; it may have run"),
                    True,
                )
            outcome, rejection = _of_call(answers)
            now = time.monotonic()
            told = True
            if self._balancer.on_outcome(now, node, outcome, rejection, now - began):
                # What probes it later dials anew: this connection may be dead without a word.
                self._lines.pop(node, None)
            return answers, sent
        finally:
            if not told:
                self._balancer.on_dropped(node)

    async def _call(self, node: str, fill: Any, number: int, rows: int, until: float) -> tuple[list[Answer], bool]:
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic()) / 2):
                line = await self._line(node)
        except TimeoutError:
            return _all(number, rows, "rejected", "noReplica", f"there is no connection to {node} yet"), False
        except Unreachable as error:
            return _all(number, rows, "rejected", "noReplica", str(error)), False
        except WeirError as error:
            return _all(number, rows, "rejected", "forbidden", str(error)), True
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await line.calls.acquire()
        except TimeoutError:
            why = "its deadline passed before it could be sent: too many calls are in flight"
            return _all(number, rows, "expired", None, why), True
        try:
            call = line.role.predictor.predict_request()
            fill(call.init("request"), until - time.monotonic())
            told = (await call.send()).response
        except capnp.KjException as error:
            self._lines.pop(node, None)
            text = _remote(error)
            if "disconnected" in str(getattr(error, "type", "")).lower() or "disconnected" in text.lower():
                return _all(number, rows, "unknown", None, f"the connection to {node} broke; it may have run"), True
            return _all(number, rows, "failed", None, text), True
        finally:
            line.calls.release()
        if told._has("refused"):
            refused = _wire.read_answer(told.refused, number, 0)
            return _all(number, rows, refused.outcome, refused.rejection, refused.message), True
        answers = [_wire.read_answer(answer, number, row) for row, answer in enumerate(told.answers)]
        if len(answers) != rows:
            return _all(number, rows, "failed", None, f"{node} answers {len(answers)} of {rows} rows"), True
        return answers, True

    async def _line(self, node: str) -> _Line:
        """The connection to a node: one dial for all who wait for it."""
        address = self._addresses.get(node)
        if address is None:
            raise Unreachable(f"{node} left the cluster")
        dial = self._lines.get(node)
        if dial is None or (dial.done() and (dial.cancelled() or dial.exception() is not None)):
            dial = asyncio.create_task(_enter(address, self._token))
            self._lines[node] = dial
        line = await asyncio.shield(dial)
        if line.role.which() != "predictor":
            raise Unreachable(f"{node} is no node")
        return line


def _all(number: int, rows: int, outcome: Outcome, rejection: str | None, message: str) -> list[Answer]:
    return [Answer(_wire.row_id(number, row), outcome, rejection, message) for row in range(rows)]


def _of_call(answers: list[Answer]) -> tuple[Outcome, str | None]:
    """Of a call as far as another attempt goes: a rejection only where nothing of it ran."""
    ran = [answer for answer in answers if answer.outcome != "rejected"]
    of = ran[0] if ran else answers[0]
    return of.outcome, of.rejection


def _may_have_run(answer: Answer) -> Answer:
    if answer.outcome != "rejected":
        return answer
    message = f"an attempt broke and may have run; the last was refused: {answer.message}"
    return Answer(answer.id, "unknown", None, message)
