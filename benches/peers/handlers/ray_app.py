"""ONNX models behind Ray Serve, by the infer path of the open inference protocol with its binary extension."""

import json
import os
import signal
import threading
from pathlib import Path

import ray
from ray import serve

ASKED = json.loads(Path(os.environ["ASKED"]).read_text())
SETTINGS = ASKED["settings"]


def application(model: dict, settings: dict, queue: int | None) -> serve.Application:
    import numpy
    from starlette.requests import Request
    from starlette.responses import Response

    shape = tuple(model["input"])
    output = {"name": "y", "datatype": "FP32", "shape": [1, *model["output"]]}
    output["parameters"] = {"binary_data_size": 4 * int(numpy.prod(model["output"]))}
    head = json.dumps({"model_name": model["name"], "outputs": [output]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}

    @serve.deployment(
        name=model["name"],
        num_replicas=settings["workers"],
        # Two batches, so that one is at hand when the other is done.
        max_ongoing_requests=2 * settings["batch"],
        max_queued_requests=-1 if queue is None else queue,
        ray_actor_options={"num_cpus": 0},
    )
    class Onnx:
        def __init__(self) -> None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = settings["threads"]
            self.session = onnxruntime.InferenceSession(model["path"], options)

        async def __call__(self, request: Request) -> Response:
            body = await request.body()
            row = body[int(request.headers["inference-header-content-length"]) :]
            found = await self.batched(row) if settings["batch"] > 1 else self.found([row])[0]
            return Response(head + found, media_type="application/octet-stream", headers=headers)

        @serve.batch(max_batch_size=settings["batch"], batch_wait_timeout_s=settings["wait_ms"] / 1000)
        async def batched(self, rows: list) -> list:
            return self.found(rows)

        def found(self, rows: list) -> list:
            x = numpy.frombuffer(b"".join(rows), numpy.float32).reshape(len(rows), *shape)
            return [row.tobytes() for row in self.session.run(["y"], {"x": x})[0]]

    return Onnx.bind()


ray.init(
    address="local",
    _node_ip_address="127.0.0.1",
    _temp_dir=ASKED["folder"],
    include_dashboard=False,
    object_store_memory=100 << 20,
    log_to_driver=False,
)
timeout_s = None if ASKED["deadline_ms"] is None else ASKED["deadline_ms"] / 1000
serve.start(http_options={"host": "127.0.0.1", "port": ASKED["port"], "request_timeout_s": timeout_s})
for listed in ASKED["models"]:
    app = application(listed, SETTINGS, ASKED["queue"])
    serve.run(app, name=listed["name"], route_prefix=f"/v2/models/{listed['name']}")
ended = threading.Event()
for sent in (signal.SIGTERM, signal.SIGINT):
    signal.signal(sent, lambda *_: ended.set())
ended.wait()
ray.shutdown()
