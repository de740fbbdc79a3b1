"""What the client promises, against a cluster that serves the synthetic model `echo` (two f32 numbers a row, given back after 2 ms).

python3 client/python/tests/check.py COORDINATORS TOKEN_FILE
"""

import asyncio
import sys
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import weir
from weir._balance import Balancer
from weir._types import DTYPES
from weir._wire import from_bytes, to_bytes

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
        ):
            word, shape, data = to_bytes(array)
            back = from_bytes(word, shape, data)
            self.assertEqual((back.shape, list(back.ravel())), (array.shape, wanted))

    def test_order_and_endianness_do_not_matter(self) -> None:
        array = np.arange(6, dtype=">f4").reshape(2, 3).T
        np.testing.assert_array_equal(from_bytes(*to_bytes(array)), array)

    def test_a_type_that_weir_has_not_is_named(self) -> None:
        with self.assertRaisesRegex(weir.BadInput, "complex"):
            to_bytes(np.zeros(2, dtype=complex))


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
        self.assertEqual({balancer.pick(0.5, []) for _ in range(50)}, {"n2"})
        self.assertEqual(balancer.pick(1.0, []), "n1")
        balancer.on_sent("n1", 1)
        balancer.on_outcome(1.0, "n1", "answered", None, 0.001)
        self.assertEqual({balancer.pick(1.1, []) for _ in range(50)}, {"n1", "n2"})


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
            (self.client.predict("nobody", ROWS[:1]), "rejected", "unknownEndpoint"),
            (self.client.predict("echo", ROWS[:1].astype(np.float64)), "rejected", "badInput"),
            (self.client.predict("echo", {"z": ROWS[:1]}), "rejected", "badInput"),
            (self.client.predict("echo", ROWS[:1], deadline=0.0005), "rejected", "tooLate"),
        ]
        for (answer,), outcome, rejection in cases:
            self.assertIn(answer.outcome, (outcome, "expired"), answer)
            if answer.outcome == outcome:
                self.assertEqual(answer.rejection, rejection, answer)
            self.assertTrue(answer.message)

    def test_what_cannot_be_asked_is_an_exception(self) -> None:
        for inputs, options in ((np.float32(1), {}), ({}, {}), (ROWS, {"deadline": 0.0}), (np.zeros(2, complex), {})):
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
        self.assertEqual(self.client.endpoints(), ["echo"])


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
