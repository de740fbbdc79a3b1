"""Triton's own clients, as they are, against a server of the open inference protocol: what they ask, and what came back.

    triton_clients.py SERVER HTTP GRPC IMAGES.npy     (host:port each; the model is `fashion`)

SERVER is `weir`, or one of the others in `differences.json`, which holds what they answer otherwise. Exit code 1 where anything differs from
what weir has to do, or, of the others, from what is written down.
"""

import asyncio
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http
import tritonclient.http.aio as http_aio
from tritonclient.utils import InferenceServerException

SERVER, HTTP, GRPC, IMAGES = sys.argv[1:5]
MODEL = "fashion"
X = np.load(IMAGES)[:4].astype(np.float32).reshape(4, 1, 28, 28)
KNOWN: dict[str, str] = json.loads((Path(__file__).parent / "differences.json").read_text()).get(SERVER, {})
told: dict[str, str] = {}


def short(error: BaseException) -> str:
    if isinstance(error, InferenceServerException):
        return f"{error.status()} {error.message()}".replace("\n", " ")[:90]
    return f"{type(error).__name__} {error}".replace("\n", " ")[:90]


def check(name: str, ask: Callable[[], Any]) -> Any:
    """Whether what is asked is as weir does it: what `ask` gives is true."""
    try:
        got = ask()
    except Exception as error:  # noqa: BLE001 (whatever a server makes a client do is a result)
        told[name] = short(error)
        return None
    told[name] = "" if got else "otherwise"
    return got


def refused(name: str, ask: Callable[[], Any]) -> None:
    try:
        ask()
    except InferenceServerException:
        told[name] = ""
    except Exception as error:  # noqa: BLE001
        told[name] = short(error)
    else:
        told[name] = "answered"


def inputs(library: Any, binary: bool = True) -> list[Any]:
    asked = library.InferInput("x", list(X.shape), "FP32")
    if library in (http, http_aio):
        asked.set_data_from_numpy(X, binary_data=binary)
    else:
        asked.set_data_from_numpy(X)
    return [asked]


wanted: Any = None


def same(result: Any) -> bool:
    """The answer of the first call that was answered, bit by bit."""
    global wanted
    got = result.as_numpy("probs")
    if wanted is None:
        wanted = got
    return got.shape == (4, 10) and np.array_equal(got, wanted)


# A server that closes a connection without a word makes a client wait.
WITHIN = 10.0
over_http = http.InferenceServerClient(HTTP, network_timeout=WITHIN, connection_timeout=WITHIN)
over_grpc = grpc.InferenceServerClient(GRPC)
for name, client in (("http", over_http), ("grpc", over_grpc)):
    of = (lambda told, field: told[field]) if name == "http" else getattr
    inner = (lambda told, _: told) if name == "http" else getattr
    check(f"{name} live, ready", lambda: client.is_server_live() and client.is_server_ready())
    check(f"{name} model ready", lambda: client.is_model_ready(MODEL) and client.is_model_ready(MODEL, "1"))
    check(f"{name} unknown model is not ready", lambda: not client.is_model_ready("nobody"))
    check(f"{name} server metadata", lambda: of(client.get_server_metadata(), "name"))
    check(f"{name} model metadata", lambda: of(of(client.get_model_metadata(MODEL), "inputs")[0], "name") == "x")
    check(f"{name} model config", lambda: of(inner(client.get_model_config(MODEL), "config"), "max_batch_size") > 0)
    index = lambda: inner(client.get_model_repository_index(), "models")[0]  # noqa: E731
    check(f"{name} repository index", lambda: of(index(), "state") == "READY")
    refused(f"{name} metadata of an unknown model", lambda: client.get_model_metadata("nobody"))

check("http JSON in", lambda: same(over_http.infer(MODEL, inputs(http, False))))
check("http binary", lambda: same(over_http.infer(MODEL, inputs(http))))
as_json = [http.InferRequestedOutput("probs", binary_data=False)]
check("http JSON in and out", lambda: same(over_http.infer(MODEL, inputs(http, False), outputs=as_json)))
for kind in ("gzip", "deflate"):
    packed = {"request_compression_algorithm": kind, "response_compression_algorithm": kind}
    check(f"http binary, {kind}", lambda: same(over_http.infer(MODEL, inputs(http), **packed)))
    check(f"http JSON, {kind}", lambda: same(over_http.infer(MODEL, inputs(http, False), **packed)))
    check(f"grpc, {kind}", lambda: same(over_grpc.infer(MODEL, inputs(grpc), compression_algorithm=kind)))


def with_everything() -> bool:
    options = {"request_id": "seven", "model_version": "1", "timeout": 500_000, "priority": 1}
    result = over_http.infer(MODEL, inputs(http), **options)
    return result.get_response()["id"] == "seven" and same(result)


check("http id, version, timeout, priority", with_everything)
check("http async", lambda: same(over_http.async_infer(MODEL, inputs(http)).get_result()))
check("grpc", lambda: same(over_grpc.infer(MODEL, inputs(grpc))))
check("grpc client_timeout", lambda: same(over_grpc.infer(MODEL, inputs(grpc), client_timeout=1.0, request_id="q")))
answers: queue.Queue[Any] = queue.Queue()


def answered() -> Any:
    result, error = answers.get(timeout=5)
    if error is not None:
        raise error
    return result


def asynchronous() -> bool:
    over_grpc.async_infer(MODEL, inputs(grpc), lambda result, error: answers.put((result, error)))
    return same(answered())


def in_order() -> bool:
    over_grpc.start_stream(lambda result, error: answers.put((result, error)))
    for i in range(5):
        over_grpc.async_stream_infer(MODEL, inputs(grpc), request_id=str(i))
    got = [answered() for _ in range(5)]
    return [result.get_response().id for result in got] == list("01234") and all(map(same, got))


def stream_error() -> bool:
    over_grpc.async_stream_infer("nobody", inputs(grpc))
    return answers.get(timeout=5)[1] is not None


def final() -> bool:
    over_grpc.async_stream_infer(MODEL, inputs(grpc), enable_empty_final_response=True)
    is_final = answered().get_response().parameters["triton_final_response"].bool_param
    try:
        more = answers.get(timeout=0.5)
    except queue.Empty:
        more = None
    return is_final and more is None


check("grpc async", asynchronous)
check("grpc stream, in order", in_order)
check("grpc stream, an error", stream_error)
check("grpc stream goes on, the only response is the final one", final)
# Where the server has ended the stream itself, the client waits for ever.
stopping = threading.Thread(target=over_grpc.stop_stream, daemon=True)
stopping.start()
stopping.join(WITHIN)
for name, client, library in (("http", over_http, http), ("grpc", over_grpc, grpc)):
    for what, options in (
        ("unknown model", {"model_name": "nobody"}),
        ("another version", {"model_version": "7"}),
        ("no such output", {"outputs": [library.InferRequestedOutput("nothing")]}),
        ("a deadline that cannot be met", {"timeout": 1}),
        ("a sequence", {"sequence_id": 5}),
        ("classification", {"outputs": [library.InferRequestedOutput("probs", class_count=3)]}),
    ):
        asked = {"model_name": MODEL, "inputs": inputs(library), **options}
        refused(f"{name} {what} is refused", lambda: client.infer(**asked))

    def counted() -> bool:
        of_one = client.get_inference_statistics(MODEL)
        of_one = of_one["model_stats"][0] if name == "http" else of_one.model_stats[0]
        if name == "http":
            return int(of_one["inference_stats"]["success"]["count"]) > 5
        return of_one.inference_stats.success.count > 5

    check(f"{name} statistics", counted)
    check(f"{name} statistics of all", lambda: client.get_inference_statistics() is not None)


def asyncio_http() -> bool:
    async def ask() -> bool:
        async with http_aio.InferenceServerClient(HTTP) as client:
            return same(await client.infer(MODEL, inputs(http_aio))) and await client.is_model_ready(MODEL)

    return asyncio.run(asyncio.wait_for(ask(), WITHIN))


def asyncio_grpc() -> bool:
    async def ask() -> bool:
        async with grpc_aio.InferenceServerClient(GRPC) as client:
            return same(await client.infer(MODEL, inputs(grpc_aio))) and await client.is_model_ready(MODEL)

    return asyncio.run(asyncio.wait_for(ask(), WITHIN))


def asyncio_stream() -> bool:
    async def asks() -> Any:
        for i in range(3):
            yield {"model_name": MODEL, "inputs": inputs(grpc_aio), "request_id": str(i)}

    async def ask() -> bool:
        async with grpc_aio.InferenceServerClient(GRPC) as client:
            got = [result async for result in client.stream_infer(asks())]
            return len(got) == 3 and all(error is None and same(result) for result, error in got)

    return asyncio.run(asyncio.wait_for(ask(), WITHIN))


check("http asyncio", asyncio_http)
check("grpc asyncio", asyncio_grpc)
check("grpc asyncio stream", asyncio_stream)

strangers = sorted(KNOWN.keys() - told.keys())
for name in strangers:
    print("??  ", name, "is written down and not asked")
bad = len(strangers)
for name, what in told.items():
    known = KNOWN.get(name)
    as_known = (what == "") == (known is None)
    bad += not as_known
    mark = "ok  " if what == "" else "diff"
    print(mark if as_known else "FAIL", name, what, "" if as_known else f"(written down: {known})")
print(f"{SERVER}: {sum(what == '' for what in told.values())} of {len(told)} as weir has to do it")
sys.stdout.flush()
os._exit(1 if bad else 0)
