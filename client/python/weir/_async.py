"""The client, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import capnp

from . import _query, _wire
from ._balance import Balancer
from ._errors import NotFound, Refused, Unreachable, WeirError
from ._query import Query
from ._room import Room
from ._types import Answer, Array, Class, EndpointInfo, Outcome
from ._wire import predict_capnp

#: Longest that a call without a deadline of its own is waited for.
PATIENCE = 60.0
#: How long after its deadline a call is given up: the node answers at the deadline, and that answer is on its way.
GRACE = 0.25
#: For dialling, and for questions that have no deadline.
ASKED_WITHIN = 2.0
#: Where any node can tell, how long one is waited for before the next is asked too.
NEXT_ASKED_AFTER = 0.02
#: How long a coordinator may hold the question for changes.
WATCH = 10.0


class _Line:
    """A connection that has logged in."""

    def __init__(self, client: Any, granted: Any) -> None:
        self.client = client
        self.role = granted.role
        # An older peer tells no limit.
        self.message_bytes = int(granted.messageBytes) or 1 << 62
        self.room = Room(int(granted.callsInFlight), int(granted.bytesInFlight) or 1 << 62)


class _End(Enum):
    """What the end of an attempt says of its node."""

    #: It was asked.
    ASKED = 1
    #: There is no connection to it: nothing was asked of it.
    UNASKED = 2
    #: It ended on this side, which says nothing of it.
    HERE = 3


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


def _is(error: Exception, kind: str) -> bool:
    return kind in str(getattr(error, "type", "")).lower()


def _is_broken(error: Exception) -> bool:
    """Whether the connection has ended."""
    return _is(error, "disconnected") or "disconnected" in _remote(error).lower()


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
        # Each with the nodes that have what its queries begin with.
        self._endpoints: dict[str, list[str]] = {}
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
        names = [str(node.name) for node in told.nodes]
        # Of a coordinator of an older build there are none.
        hosts = [[names[number] for number in numbers] for numbers in told.hosts] or [[] for _ in told.endpoints]
        self._endpoints = {str(name): here for name, here in zip(told.endpoints, hosts)}
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
        """What an endpoint takes and gives, from the first node that tells: one that is silent is not waited for alone."""
        _query.text(endpoint, "the name of an endpoint")
        last: WeirError = Unreachable("the cluster has no node; start one with `weir node`")
        nodes = iter(list(self._addresses))
        asked: set[asyncio.Task[EndpointInfo]] = set()
        try:
            while True:
                node = next(nodes, None)
                if node is not None:
                    asked.add(asyncio.create_task(self._describe_at(node, endpoint)))
                if not asked:
                    raise last
                patience = None if node is None else NEXT_ASKED_AFTER
                done, asked = await asyncio.wait(asked, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                for task, error in [(task, task.exception()) for task in done]:
                    if error is None:
                        return task.result()
                    if not isinstance(error, WeirError):
                        raise error
                    # What a node says weighs more than that another cannot be reached.
                    if not isinstance(error, Unreachable) or isinstance(last, Unreachable):
                        last = error
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _describe_at(self, node: str, endpoint: str) -> EndpointInfo:
        try:
            async with asyncio.timeout(ASKED_WITHIN):
                line = await self._line(node)
                try:
                    told = await line.role.predictor.describe(endpoint=endpoint)
                except capnp.KjException as error:
                    if _is_broken(error):
                        self._forget(node, line)
                        raise Unreachable(f"the connection to {node} broke") from error
                    raise NotFound(_remote(error)) from error
        except TimeoutError as error:
            raise Unreachable(f"{node} does not answer") from error
        return _wire.read_info(told.signature)

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
        trace: bool = False,
    ) -> list[Answer]:
        """Asks. There is one answer a row, whatever happens; one in all where the arrays are asked ``whole``.

        ``inputs``: an array, or arrays by name; their first dimension is the rows, each a query of its own, unless ``whole``.
        ``deadline``: seconds from now; the endpoint's own where absent. ``outputs``: which to send back; all where empty.
        ``min_stage``: no shallower stage may answer. ``max_stage``: no deeper one is asked. ``trace``: answers tell how they came about.
        """
        query = _query.check(
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
        until = time.monotonic() + (PATIENCE if query.deadline is None else query.deadline)
        tried: list[str] = []
        attempt, may_have_run = 1, False
        while True:
            node = self._balancer.pick(time.monotonic(), self._endpoints.get(query.endpoint, []), tried)
            if node is None:
                why = "the cluster has no node; start one with `weir node`"
                answers, end = _all(query, "rejected", "noReplica", why), _End.HERE
            else:
                answers, end = await self._attempt(node, query, until, attempt)
            outcome, rejection = _of_call(answers)
            may_have_run |= outcome == "unknown"
            left = until - time.monotonic()
            if end is _End.UNASKED and node is not None and len(tried) + 1 < len(self._addresses) and left > 0:
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

    async def _attempt(self, node: str, query: Query, until: float, attempt: int) -> tuple[list[Answer], _End]:
        """What one node says."""
        self._balancer.on_sent(node, attempt)
        began = time.monotonic()
        told = False
        try:
            try:
                async with asyncio.timeout(max(0.0, until - began) + GRACE):
                    answers, end = await self._call(node, query, until)
            except TimeoutError:
                why = f"{node} did not answer in time; it may have run"
                answers, end = _all(query, "unknown", None, why), _End.ASKED
            if end is _End.HERE:
                return answers, end
            outcome, rejection = _of_call(answers)
            now = time.monotonic()
            told = True
            if self._balancer.on_outcome(now, node, outcome, rejection, now - began):
                # What probes it later dials anew: this connection may be dead without a word.
                self._lines.pop(node, None)
            return answers, end
        finally:
            if not told:
                self._balancer.on_dropped(node)

    async def _call(self, node: str, query: Query, until: float) -> tuple[list[Answer], _End]:
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic()) / 2):
                line = await self._line(node)
        except TimeoutError:
            return _all(query, "rejected", "noReplica", f"there is no connection to {node} yet"), _End.UNASKED
        except Unreachable as error:
            return _all(query, "rejected", "noReplica", str(error)), _End.UNASKED
        except WeirError as error:
            return _all(query, "rejected", "forbidden", str(error)), _End.HERE
        size, limit = query.message_bytes(), line.message_bytes
        if size > limit:
            why = f"the request has {size} bytes, more than the {limit} of a message; send fewer rows at once"
            return _all(query, "rejected", "badInput", why), _End.HERE
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                held = await line.room.enter(size)
        except TimeoutError:
            why = "its deadline passed before it could be sent: too many calls are in flight"
            return _all(query, "expired", None, why), _End.HERE
        try:
            call = line.role.predictor.predict_request()
            # What goes wrong here is this client's mistake, not an answer of the node's.
            query.write(call.init("request"), until - time.monotonic())
            try:
                told = (await call.send()).response
            except capnp.KjException as error:
                self._forget(node, line)
                if _is_broken(error):
                    return _all(query, "unknown", None, f"the connection to {node} broke; it may have run"), _End.ASKED
                # What is refused is answered so; this went wrong on the way, and its answer is lost.
                outcome: Outcome = "unknown" if _is(error, "overloaded") else "failed"
                return _all(query, outcome, None, _remote(error)), _End.ASKED
        finally:
            line.room.leave(held)
        number, rows = query.number, query.rows
        if told._has("refused"):
            refused = _wire.read_answer(told.refused, number, 0)
            return _all(query, refused.outcome, refused.rejection, refused.message), _End.ASKED
        answers = [_wire.read_answer(answer, number, row) for row, answer in enumerate(told.answers)]
        if len(answers) != rows:
            return _all(query, "failed", None, f"{node} answers {len(answers)} of {rows} rows"), _End.ASKED
        return answers, _End.ASKED

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

    def _forget(self, node: str, line: _Line) -> None:
        """Lets go of a connection, unless another has taken its place."""
        dial = self._lines.get(node)
        if dial is not None and dial.done() and not dial.cancelled() and not dial.exception() and dial.result() is line:
            del self._lines[node]


def _all(query: Query, outcome: Outcome, rejection: str | None, message: str) -> list[Answer]:
    return [Answer(_wire.row_id(query.number, row), outcome, rejection, message) for row in range(query.rows)]


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
