"""What the client promises, against two nodes that serve the synthetic models `echo` (two f32 numbers a row, given back after 2 ms) and
`slow` (the same after 200 ms).

python3 client/python/tests/check.py COORDINATORS TOKEN_FILE
"""

import asyncio
import sys
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import weir
from weir import _async
from weir._balance import Balancer
from weir._query import ROWS_MAX, Query, check
from weir._room import Room
from weir._types import DTYPES
from weir._wire import from_bytes, predict_capnp, read_answer, to_bytes

COORDINATORS, TOKEN_FILE = sys.argv[1:3]
ROWS = np.arange(20, dtype=np.float32).reshape(10, 2)


class Wire(unittest.TestCase):
    def test_arrays_come_back_as_they_were(self) -> None:
        for word, dtype in DTYPES.items():
            if word in ("bf16", "string"):
                continue
            array = np.arange(6).astype(dtype).reshape(2, 3)
            told, shape, data = to_bytes(array)
            self.assertEqual((told, shape), (word, (2, 3)))
            np.testing.assert_array_equal(from_bytes(word, shape, data), array)
        for array, wanted in (
            (np.array(["", "ä", "abc"]), ["", "ä", "abc"]),
            (np.array([b"\xff", b"x"]), [b"\xff", "x"]),
            (np.array([["a"], ["b"]], dtype=object), ["a", "b"]),
            (np.array(["a", b"\xfe", np.str_("c")], dtype=object), ["a", b"\xfe", "c"]),
        ):
            word, shape, data = to_bytes(array)
            back = from_bytes(word, shape, data)
            self.assertEqual((back.shape, list(back.ravel())), (array.shape, wanted))

    def test_what_gates_said_and_how_visits_ended_is_read(self) -> None:
        message = predict_capnp.Answer.new_message(outcome="answered")
        record = message.init("trace")
        record.endpoint, record.outcome, record.stage, record.totalUs = "fashion", "answered", "mid", 5000
        setattr(record, "class", "sheddable")
        ends = ("none", "answered", "rejected", "expired", "failed", "lost")
        rules = ("confidenceBelow", "entropyAbove", "marginBelow", "gain", None, None)
        visits = record.init("visits", len(ends))
        for visit, end, rule in zip(visits, ends, rules):
            visit.stage, visit.model, visit.node, visit.afterUs, visit.tookUs = "mid", "mid@1", "n1", 250, 4000
            if end == "answered":
                ran = visit.end.init("answered")
                ran.queueUs, ran.executeUs, ran.batchRows, ran.closed = 1000, 2000, 4, "full"
            else:
                setattr(visit.end, end, "queueFull" if end == "rejected" else None)
            if rule is not None:
                judged = visit.gate.init("asked")
                judged.signal, judged.cost, judged.deeper = 0.25 if rule != "marginBelow" else float("nan"), 0.5, True
                if rule == "gain":
                    gain = judged.rule.init("gain")
                    gain.value, gain.least = 0.75, 0.125
                else:
                    setattr(judged.rule, rule, 0.5)
        trace = read_answer(message.as_reader(), 7, 0).trace
        assert trace is not None
        self.assertEqual((trace.class_, trace.stage, trace.deadline, trace.total), ("sheddable", "mid", None, 0.005))
        self.assertEqual([visit.outcome for visit in trace.visits], [None, *ends[1:]])
        self.assertEqual([visit.took for visit in trace.visits], [None] + [0.004] * 5)
        ran = trace.visits[1]
        told = (ran.after, ran.queue, ran.execute, ran.batch_rows, ran.batch_closed, ran.device)
        self.assertEqual(told, (0.00025, 0.001, 0.002, 4, "full", None))
        self.assertEqual([visit.rejection for visit in trace.visits], [None, None, "queueFull", None, None, None])
        gates = [visit.gate for visit in trace.visits if visit.gate is not None]
        wanted = (
            ("confidence_below", 0.25, 0.5, None),
            ("entropy_above", 0.25, 0.5, None),
            ("margin_below", None, 0.5, None),
        )
        for gate, said in zip(gates, (*wanted, ("gain", 0.25, 0.125, 0.75)), strict=True):
            self.assertEqual((gate.rule, gate.signal, gate.threshold, gate.gain), said)
            self.assertEqual((gate.cost, gate.deeper), (0.5, True))

    def test_order_and_endianness_do_not_matter(self) -> None:
        array = np.arange(6, dtype=">f4").reshape(2, 3).T
        np.testing.assert_array_equal(from_bytes(*to_bytes(array)), array)

    def test_a_type_that_weir_has_not_is_named(self) -> None:
        with self.assertRaisesRegex(weir.BadInput, "complex"):
            to_bytes(np.zeros(2, dtype=complex))

    def test_what_is_no_text_is_not_sent_as_one(self) -> None:
        for item in (None, 1, 1.5, ["a"], np.float32(2)):
            array = np.array(["a", None], dtype=object)
            array[1] = item
            with self.assertRaisesRegex(weir.BadInput, "texts"):
                to_bytes(array)
            with self.assertRaisesRegex(weir.BadInput, "texts"):
                query({"x": array})
        # numpy itself would make the text "1" of this.
        with self.assertRaisesRegex(weir.BadInput, "1 is neither"):
            query(["a", 1])
        with self.assertRaisesRegex(weir.BadInput, "UTF-8"):
            query(np.array(["\ud800"]))
        self.assertEqual(query([b"a\0", b"b"]).tensors[0][3], b"\2\0\0\0a\0\1\0\0\0b")


def query(inputs: Any = ROWS, **options: Any) -> Query:
    """A query as a caller would ask it."""
    defaults: dict[str, Any] = dict.fromkeys(("deadline", "class_", "min_stage", "max_stage"))
    return check("echo", inputs, **{**defaults, "outputs": (), "whole": False, "trace": False, **options})


class Queries(unittest.TestCase):
    def test_what_no_query_can_be_is_told_before_anything_is_sent(self) -> None:
        for options, why in (
            ({"class_": "best"}, "'best' is no class; there are critical, default, sheddable"),
            ({"class_": ["critical"]}, "no class"),
            ({"deadline": float("inf")}, "seconds"),
            ({"deadline": float("nan")}, "seconds"),
            ({"deadline": -1.0}, "seconds"),
            ({"deadline": 0}, "seconds"),
            ({"deadline": 1e300}, "a century at most"),
            ({"deadline": "1s"}, "seconds"),
            ({"outputs": "probs"}, r"write \['probs'\]"),
            ({"outputs": [1]}, "name of an output"),
            ({"min_stage": 3}, "min_stage is a text"),
            ({"max_stage": b"tiny"}, "max_stage is a text"),
            ({"inputs": {1: ROWS}}, "name of an input"),
            ({"inputs": {}}, "no inputs"),
            ({"inputs": np.float32(1)}, "no rows"),
            ({"inputs": [[1.0], [2.0, 3.0]]}, "numpy"),
            ({"inputs": np.zeros((10**10, 0))}, f"at most {ROWS_MAX} rows"),
            ({"inputs": {"x": ROWS, "z": np.zeros((2**59, 0))}}, f"at most {ROWS_MAX} rows"),
        ):
            with self.assertRaisesRegex(weir.BadInput, why, msg=options):
                query(**options)
        self.assertEqual(query(np.zeros((10**10, 0), np.float32), whole=True).rows, 1)
        self.assertEqual(query(np.zeros((ROWS_MAX, 0), np.float32)).rows, ROWS_MAX)
        self.assertEqual(query(deadline=np.float32(0.5), class_="critical").deadline, 0.5)

    def test_as_many_bytes_are_counted_as_a_message_has_at_least(self) -> None:
        for asked in (
            query(),
            query(np.zeros((1, 100_003), np.uint8)),
            query({f"input{i}": np.zeros((2,) * 10, np.uint8) for i in range(100)}, outputs=["ä" * 9] * 1000),
            query(class_="critical", min_stage="a" * 64, max_stage="b" * 64, trace=True, deadline=1.0),
        ):
            message = predict_capnp.PredictRequest.new_message()
            asked.write(message, 0.5)
            size = len(message.to_bytes())
            self.assertTrue(size <= asked.message_bytes() <= 1.25 * size + 1200, (size, asked.message_bytes()))
            self.assertEqual(message.deadlineLeftUs, 500_000 if asked.deadline else 0)


class Rooms(unittest.TestCase):
    def test_who_comes_first_enters_first_and_no_more_than_there_is_room_for(self) -> None:
        async def check() -> None:
            room, entered = Room(3, 100), list[int]()

            async def enter(size: int) -> None:
                await room.enter(size)
                entered.append(size)

            def waiting(*sizes: int) -> list[asyncio.Task[None]]:
                return [asyncio.create_task(enter(size)) for size in sizes]

            async def settle() -> None:
                for _ in range(5):
                    await asyncio.sleep(0)

            tasks = waiting(60, 50, 1, 2, 3)
            await settle()
            # The small ones would fit, and do not pass by the one that came first.
            self.assertEqual(entered, [60])
            tasks[1].cancel()
            await settle()
            self.assertEqual((entered, room.calls, room.bytes), ([60, 1, 2], 3, 63))
            room.leave(60)
            await settle()
            self.assertEqual(entered, [60, 1, 2, 3])
            # Larger than all: alone.
            tasks += waiting(1000, 4)
            for size in (1, 2, 3):
                self.assertEqual(entered[-1], 3)
                room.leave(size)
                await settle()
            self.assertEqual((entered[-1], room.bytes), (1000, 100))
            # Let in and cancelled at once: its room is given on.
            room.leave(100)
            tasks[-1].cancel()
            await settle()
            self.assertEqual((room.calls, room.bytes), (0, 0))
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(check())


class Balance(unittest.TestCase):
    def test_retries_are_a_part_of_calls(self) -> None:
        balancer = Balancer(seed=7)
        balancer.set_nodes(["n1", "n2"])
        granted = 0
        for _ in range(1000):
            balancer.on_sent("n1", 1)
            granted += balancer.may_retry(1, "unknown", None, 10.0) is not None
        self.assertTrue(100 <= granted <= 125, granted)
        self.assertIsNone(balancer.may_retry(1, "rejected", "tooLate", 10.0))
        self.assertIsNone(balancer.may_retry(1, "failed", None, 10.0))

    def test_a_node_that_fails_is_left_out_and_probed(self) -> None:
        balancer = Balancer(seed=7)
        balancer.set_nodes(["n1", "n2"])
        for _ in range(5):
            balancer.on_sent("n1", 1)
            balancer.on_outcome(0.0, "n1", "unknown", None, 0.1)
        self.assertEqual({balancer.pick(0.5, [], []) for _ in range(50)}, {"n2"})
        self.assertEqual(balancer.pick(1.0, [], []), "n1")
        balancer.on_sent("n1", 1)
        balancer.on_outcome(1.0, "n1", "answered", None, 0.001)
        self.assertEqual({balancer.pick(1.1, [], []) for _ in range(50)}, {"n1", "n2"})

    def test_calls_go_to_hosts_while_one_is_there(self) -> None:
        balancer = Balancer(seed=7)
        balancer.set_nodes(["n1", "n2", "n3", "n4"])
        hosts = ["n2", "n4", "n9"]
        for tried, wanted in (([], {"n2", "n4"}), (["n2"], {"n4"}), (["n2", "n4"], {"n1", "n3"})):
            self.assertEqual({balancer.pick(0.0, hosts, tried) for _ in range(50)}, wanted)


class Sync(unittest.TestCase):
    def setUp(self) -> None:
        self.client = weir.Client(COORDINATORS, token_file=TOKEN_FILE)
        self.addCleanup(self.client.close)

    def test_rows_come_back_to_their_places(self) -> None:
        answers = self.client.predict("echo", ROWS, deadline=5.0)
        self.assertEqual([answer.outcome for answer in answers], ["answered"] * 10)
        np.testing.assert_array_equal(np.stack([answer.outputs["y"] for answer in answers]), ROWS)
        self.assertEqual(len({answer.id for answer in answers}), 10)
        self.assertTrue(all(answer.model == "echo@1" and answer.timings.total > 0 for answer in answers))

    def test_arrays_by_name_and_whole(self) -> None:
        (answer,) = self.client.predict("echo", {"x": ROWS}, deadline=5.0, whole=True, outputs=["y"])
        np.testing.assert_array_equal(answer.outputs["y"], ROWS)

    def test_what_goes_wrong_is_an_outcome(self) -> None:
        # A node that was not met yet has to be dialled, which half a millisecond may not be enough for: "noReplica".
        with ThreadPoolExecutor(32) as threads:
            list(threads.map(lambda _: self.client.predict("echo", ROWS[:1], deadline=5.0), range(128)))
        nodes = self.client._client._balancer.nodes
        self.assertTrue(len(nodes) == 2 and all(node.delay > 0 for node in nodes.values()), nodes)
        cases = [
            (self.client.predict("nobody", ROWS[:1]), "unknownEndpoint"),
            (self.client.predict("echo", ROWS[:1].astype(np.float64)), "badInput"),
            (self.client.predict("echo", {"z": ROWS[:1]}), "badInput"),
            # Half of what it takes, and 100 ms more than it takes to say so.
            (self.client.predict("slow", ROWS[:1], deadline=0.1), "tooLate"),
        ]
        for (answer,), rejection in cases:
            self.assertEqual((answer.outcome, answer.rejection), ("rejected", rejection), answer)
            self.assertTrue(answer.message)

    def test_how_an_answer_came_about_is_told_to_who_asks(self) -> None:
        answers = self.client.predict("echo", ROWS, deadline=5.0, class_="critical", trace=True)
        for answer in answers:
            trace = answer.trace
            assert trace is not None
            self.assertEqual((trace.endpoint, trace.class_, trace.outcome), ("echo", "critical", "answered"))
            self.assertEqual((trace.stage, trace.degraded, trace.rejection), ("echo", False, None))
            self.assertTrue(4.0 < (trace.deadline or 0) <= 5.0 and trace.total > 0.002, trace)
            (visit,) = trace.visits
            self.assertEqual((visit.stage, visit.model, visit.outcome), ("echo", "echo@1", "answered"))
            self.assertEqual((visit.node, visit.gate, visit.rejection), (answer.node, None, None))
            self.assertTrue(
                (visit.took or 0) >= (visit.execute or 0) >= 0.002 and 1 <= (visit.batch_rows or 0) <= 10, visit
            )
            self.assertIn(visit.batch_closed, ("full", "target", "deadline", "idle", "timer"))
        (answer,) = self.client.predict("slow", ROWS[:1], deadline=0.1, trace=True)
        assert answer.trace is not None
        self.assertEqual((answer.trace.outcome, answer.trace.rejection), ("rejected", "tooLate"))
        (answer,) = self.client.predict("echo", ROWS[:1], deadline=5.0)
        self.assertIsNone(answer.trace)

    def test_what_cannot_be_asked_is_an_exception(self) -> None:
        for inputs, options in ((np.float32(1), {}), ({}, {}), (ROWS, {"class_": "best"}), (np.zeros(2, complex), {})):
            with self.assertRaises(weir.BadInput):
                self.client.predict("echo", inputs, **options)
        with self.assertRaises(weir.NotFound):
            self.client.describe("nobody")
        with self.assertRaises(weir.Refused):
            weir.Client(COORDINATORS, token="0" * 64)
        with self.assertRaises(weir.Refused):
            weir.Client(COORDINATORS, token="no token")
        with self.assertRaises(weir.Unreachable):
            weir.Client("127.0.0.1:1", token="0" * 64)
        self.client.close()
        with self.assertRaises(weir.WeirError):
            self.client.predict("echo", ROWS)

    def test_what_an_endpoint_takes_is_told(self) -> None:
        info = self.client.describe("echo")
        self.assertEqual((info.inputs[0].dtype, info.inputs[0].shape, info.deadline), ("f32", (None, 2), 1.0))
        self.assertIsNone(info.unready)
        self.assertEqual(self.client.endpoints(), ["echo", "slow"])


class Async(unittest.TestCase):
    def test_many_calls_at_once(self) -> None:
        async def ask() -> None:
            async with weir.AsyncClient(COORDINATORS, token_file=TOKEN_FILE) as client:
                rows = [np.full((1, 2), i, dtype=np.float32) for i in range(200)]
                answers = await asyncio.gather(*(client.predict("echo", row, deadline=10.0) for row in rows))
                for row, (answer,) in zip(rows, answers):
                    self.assertEqual(answer.outcome, "answered", answer)
                    np.testing.assert_array_equal(answer.outputs["y"], row[0])

        asyncio.run(ask())

    def test_a_request_too_large_for_a_message_is_refused_here_and_harms_no_other(self) -> None:
        async def ask() -> None:
            async with weir.AsyncClient(COORDINATORS, token_file=TOKEN_FILE) as client:
                others = [asyncio.create_task(client.predict("slow", ROWS[:1], deadline=30.0)) for _ in range(8)]
                await asyncio.sleep(0.1)
                (answer,) = await client.predict("echo", np.zeros((17 << 17, 2), np.float32), whole=True, deadline=5.0)
                self.assertEqual((answer.outcome, answer.rejection), ("rejected", "badInput"), answer)
                self.assertRegex(answer.message, "more than the 16777216 of a message; send fewer rows at once")
                for (other,) in await asyncio.gather(*others):
                    self.assertEqual(other.outcome, "answered", other)
                # It says nothing of the nodes.
                nodes = client._balancer.nodes.values()
                self.assertTrue(all(node.in_flight == 0 and node.failures == 0 for node in nodes), nodes)
                nearly = np.zeros(((16 << 17) - 256, 2), np.float32)
                (answer,) = await client.predict("echo", nearly, whole=True, deadline=30.0, outputs=["none"])
                self.assertNotEqual(answer.outcome, "unknown", answer)

        asyncio.run(ask())

    def test_no_more_bytes_are_sent_than_nodes_read(self) -> None:
        async def ask() -> None:
            async with weir.AsyncClient(COORDINATORS, token_file=TOKEN_FILE) as client:
                lines = [await client._line(node) for node in client._addresses]
                for line in lines:
                    self.assertEqual((line.room.calls_max, line.room.bytes_max), (64, 16 << 20))
                    await line.room.enter(line.room.bytes_max)
                for node in client._balancer.nodes.values():
                    node.failures = 3
                (answer,) = await client.predict("echo", ROWS[:1], deadline=0.1)
                self.assertEqual(answer.outcome, "expired", answer)
                self.assertRegex(answer.message, "too many calls are in flight")
                # It says nothing of the node, neither good nor bad.
                self.assertEqual([node.failures for node in client._balancer.nodes.values()], [3, 3])
                for line in lines:
                    line.room.leave(line.room.bytes_max)
                (answer,) = await client.predict("echo", ROWS[:1], deadline=5.0)
                self.assertEqual(answer.outcome, "answered", answer)
                self.assertEqual([line.room.bytes for line in lines], [0, 0])

        asyncio.run(ask())

    def test_a_node_that_does_not_answer_keeps_nobody_from_what_another_tells(self) -> None:
        async def ask() -> None:
            hung = asyncio.Event()

            async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                hung.set()
                await reader.read()
                writer.close()

            # Lets everybody in and says nothing, as a process that was stopped does.
            silent = await asyncio.start_server(hang, "127.0.0.1", 0)
            address = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
            async with weir.AsyncClient(COORDINATORS, token_file=TOKEN_FILE) as client:
                client._addresses = {"a0": address, "a1": address, **client._addresses}
                began = time.monotonic()
                info = await client.describe("echo")
                took = time.monotonic() - began
                self.assertTrue(info.deadline == 1.0 and hung.is_set() and took < _async.ASKED_WITHIN / 2, took)
            silent.close()

        asyncio.run(ask())

    def test_a_call_that_is_cancelled_leaves_the_client_whole(self) -> None:
        async def ask() -> None:
            async with weir.AsyncClient(COORDINATORS, token_file=TOKEN_FILE) as client:
                for _ in range(20):
                    call = asyncio.create_task(client.predict("echo", ROWS, deadline=5.0))
                    await asyncio.sleep(0.001)
                    call.cancel()
                    with self.assertRaises(asyncio.CancelledError):
                        await call
                self.assertTrue(all(node.in_flight == 0 for node in client._balancer.nodes.values()))
                began = time.monotonic()
                (answer, *_) = await client.predict("echo", ROWS, deadline=5.0)
                self.assertTrue(answer.answered and time.monotonic() - began < 5.0)

        asyncio.run(ask())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
