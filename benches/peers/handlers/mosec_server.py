"""ONNX models behind Mosec, by what of the open inference protocol it allows: POST of one row to /v2/models/NAME/infer.

A handler sees no headers, so the length of the request's JSON is unknown; one row of a known size follows it, so the
last bytes are the row, and the JSON isn't read. Nor can it set a header: the tensor follows the answer's JSON without
telling how long that is.
"""

import json
import os
from pathlib import Path

import numpy
import onnxruntime
from mosec import Runtime, Server, Worker

ASKED = json.loads(Path(os.environ["ASKED"]).read_text())
SETTINGS = ASKED["settings"]


def worker(model: dict) -> type[Worker]:
    shape, row_bytes = tuple(model["input"]), 4 * int(numpy.prod(model["input"]))
    output = {"name": "y", "datatype": "FP32", "shape": [1, *model["output"]]}
    output["parameters"] = {"binary_data_size": 4 * int(numpy.prod(model["output"]))}
    head = json.dumps({"model_name": model["name"], "outputs": [output]}).encode()

    class Onnx(Worker):
        resp_mime_type = "application/octet-stream"

        def __init__(self) -> None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = SETTINGS["threads"]
            self.session = onnxruntime.InferenceSession(model["path"], options)

        def deserialize(self, data: bytes) -> bytes:
            return data[-row_bytes:]

        def serialize(self, data: bytes) -> bytes:
            return head + data

        def forward(self, data):
            if SETTINGS["batch"] == 1:
                return self.found(data, 1).tobytes()
            return [row.tobytes() for row in self.found(b"".join(data), len(data))]

        def found(self, data: bytes, rows: int) -> numpy.ndarray:
            return self.session.run(["y"], {"x": numpy.frombuffer(data, numpy.float32).reshape(rows, *shape)})[0]

    # Workers are started as new processes, which find a class by its name in this module.
    Onnx.__name__ = Onnx.__qualname__ = f"Onnx{len(WORKERS)}"
    return Onnx


WORKERS: list[type[Worker]] = []
for listed in ASKED["models"]:
    WORKERS.append(worker(listed))
    globals()[WORKERS[-1].__name__] = WORKERS[-1]

if __name__ == "__main__":
    server = Server()
    runtimes = {
        f"/v2/models/{model['name']}/infer": [
            # 0 would be its default of 10 ms.
            Runtime(onnx, SETTINGS["workers"], SETTINGS["batch"], max(1, SETTINGS["wait_ms"]))
        ]
        for model, onnx in zip(ASKED["models"], WORKERS, strict=True)
    }
    server.register_runtime(runtimes)
    server.run()
