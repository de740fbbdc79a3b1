"""Triton's own clients, as they are, against an endpoint of the demo: what they ask, and what came back.

    triton_clients.py HTTP GRPC IMAGES.npy      (host:port each; the endpoint is `fashion`)
"""

import asyncio
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http
import tritonclient.http.aio as http_aio
from tritonclient.utils import InferenceServerException

HTTP, GRPC, IMAGES = sys.argv[1:4]
MODEL = "fashion"
X = np.load(IMAGES)[:4].astype(np.float32).reshape(4, 1, 28, 28)
told: list[bool] = []


def note(name: str, good: bool, what: object = "") -> None:
    told.append(bool(good))
    print("ok  " if good else "FAIL", name, what)


def inputs(library: Any, binary: bool = True) -> list[Any]:
    asked = library.InferInput("x", list(X.shape), "FP32")
    if library in (http, http_aio):
        asked.set_data_from_numpy(X, binary_data=binary)
    else:
        asked.set_data_from_numpy(X)
    return [asked]


def refused(name: str, ask: Any) -> None:
    try:
        ask()
    except InferenceServerException as error:
        note(name, True, f"{error.status()} {error.message()[:70]}")
    else:
        note(name, False, "it was answered")


over_http, over_grpc = http.InferenceServerClient(HTTP), grpc.InferenceServerClient(GRPC)
for name, client in (("http", over_http), ("grpc", over_grpc)):
    of = (lambda told, field: told[field]) if name == "http" else getattr
    note(f"{name} live, ready", client.is_server_live() and client.is_server_ready())
    note(f"{name} model ready", client.is_model_ready(MODEL) and client.is_model_ready(MODEL, "1"))
    note(f"{name} unknown model is not ready", not client.is_model_ready("nobody"))
    note(f"{name} server metadata", of(client.get_server_metadata(), "name"), of(client.get_server_metadata(), "name"))
    note(f"{name} model metadata", of(of(client.get_model_metadata(MODEL), "inputs")[0], "name") == "x")
    config = client.get_model_config(MODEL)
    note(f"{name} model config", of(config if name == "http" else config.config, "max_batch_size") > 0)
    index = client.get_model_repository_index()
    note(f"{name} repository index", of((index if name == "http" else index.models)[0], "state") == "READY")
    refused(f"{name} metadata of an unknown model", lambda: client.get_model_metadata("nobody"))

wanted = over_http.infer(MODEL, inputs(http)).as_numpy("probs")
note("http binary", wanted.shape == (4, 10), wanted.argmax(1))


def same(result: Any) -> bool:
    return np.array_equal(result.as_numpy("probs"), wanted)


note("http JSON in", same(over_http.infer(MODEL, inputs(http, False))))
as_json = [http.InferRequestedOutput("probs", binary_data=False)]
note("http JSON out", same(over_http.infer(MODEL, inputs(http), outputs=as_json)))
for kind in ("gzip", "deflate"):
    packed = {"request_compression_algorithm": kind, "response_compression_algorithm": kind}
    note(f"http binary, {kind}", same(over_http.infer(MODEL, inputs(http), **packed)))
    note(f"http JSON, {kind}", same(over_http.infer(MODEL, inputs(http, False), **packed)))
    note(f"grpc, {kind}", same(over_grpc.infer(MODEL, inputs(grpc), compression_algorithm=kind)))
result = over_http.infer(MODEL, inputs(http), request_id="seven", model_version="1", timeout=500_000, priority=1)
note("http id, version, timeout, priority", result.get_response()["id"] == "seven" and same(result))
note("http async", same(over_http.async_infer(MODEL, inputs(http)).get_result()))
note("grpc", same(over_grpc.infer(MODEL, inputs(grpc))))
note("grpc client_timeout", same(over_grpc.infer(MODEL, inputs(grpc), client_timeout=1.0, request_id="q")))
answers: queue.Queue[Any] = queue.Queue()
over_grpc.async_infer(MODEL, inputs(grpc), lambda result, error: answers.put((result, error)))
result, error = answers.get(timeout=5)
note("grpc async", error is None and same(result))
over_grpc.start_stream(lambda result, error: answers.put((result, error)))
for i in range(5):
    over_grpc.async_stream_infer(MODEL, inputs(grpc), request_id=str(i))
got = [answers.get(timeout=5)[0] for _ in range(5)]
note("grpc stream, in order", [result.get_response().id for result in got] == list("01234") and all(map(same, got)))
over_grpc.async_stream_infer("nobody", inputs(grpc))
note("grpc stream, an error", answers.get(timeout=5)[1] is not None)
over_grpc.async_stream_infer(MODEL, inputs(grpc), enable_empty_final_response=True)
told_final = answers.get(timeout=5)[0].get_response().parameters["triton_final_response"].bool_param
try:
    more = answers.get(timeout=0.5)
except queue.Empty:
    more = None
note("grpc stream goes on, the only response is the final one", told_final and more is None)
over_grpc.stop_stream()
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
        refused(f"{name} {what}", lambda: client.infer(**asked))
    counted = client.get_inference_statistics(MODEL)
    counted = counted["model_stats"][0] if name == "http" else counted.model_stats[0]
    success = counted["inference_stats"]["success"]["count"] if name == "http" else counted.inference_stats.success.count
    note(f"{name} statistics", success > 5)
    client.get_inference_statistics()
    note(f"{name} statistics of all", True)


async def with_asyncio() -> None:
    async with http_aio.InferenceServerClient(HTTP) as client:
        note("http asyncio", same(await client.infer(MODEL, inputs(http_aio))) and await client.is_model_ready(MODEL))
    async with grpc_aio.InferenceServerClient(GRPC) as client:
        note("grpc asyncio", same(await client.infer(MODEL, inputs(grpc_aio))) and await client.is_model_ready(MODEL))

        async def asks() -> Any:
            for i in range(3):
                yield {"model_name": MODEL, "inputs": inputs(grpc_aio), "request_id": str(i)}

        got = [result async for result in client.stream_infer(asks())]
        note("grpc asyncio stream", len(got) == 3 and all(same(result) for result, _ in got))


asyncio.run(with_asyncio())
print(sum(told), "of", len(told))
sys.exit(0 if all(told) else 1)
