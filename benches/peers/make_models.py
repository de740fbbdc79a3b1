"""The models that every server serves, and what they are asked: seeded, made with onnx and numpy.

    make_models.py FOLDER

Writes for each model NAME.onnx, NAME.npy (rows) and, where a row has a class, NAME.txt (the right one for each row, as
ONNX Runtime computes it). First dimension `N` free, opset 17, IR 8. Rows whose two best classes lie near each other are
left out, so that another batch size cannot change an answer.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

CLASSES = 10


class Graph:
    """Nodes one after the other, each on the last one's output."""

    def __init__(self, seed: int, shape: list[int]) -> None:
        self.random = np.random.default_rng(seed)
        self.shape, self.last = shape, "x"
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def add(self, kind: str, *weights: np.ndarray, **attributes: object) -> None:
        names = [f"w{len(self.weights) + i}" for i in range(len(weights))]
        self.weights |= dict(zip(names, weights, strict=True))
        output = f"h{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.last, *names], [output], **attributes))
        self.last = output

    def scaled(self, *shape: int) -> np.ndarray:
        """He's initialisation: what goes through keeps its size."""
        inputs = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
        return (self.random.standard_normal(shape) * np.sqrt(2 / inputs)).astype(np.float32)

    def dense(self, inputs: int, outputs: int) -> None:
        self.add("Gemm", self.scaled(inputs, outputs), np.zeros(outputs, np.float32))

    def model(self, output: list[int]) -> onnx.ModelProto:
        self.nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self.shape])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *output])],
            [numpy_helper.from_array(values, name) for name, values in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def identity() -> Graph:
    """4 KB in, 4 KB out."""
    graph = Graph(0, [1024])
    graph.add("Identity")
    return graph


def mlp() -> Graph:
    graph = Graph(1, [784])
    graph.dense(784, 512)
    graph.add("Relu")
    graph.dense(512, 512)
    graph.add("Relu")
    graph.dense(512, CLASSES)
    return graph


def conv(seed: int) -> Graph:
    """Some 430 million multiplications a row: 6 ms on one core of a Xeon with AVX-512."""
    graph = Graph(seed, [3, 64, 64])
    channels = 3
    for outputs, stride in ((32, 1), (96, 2), (96, 1), (96, 1), (192, 2), (192, 1), (192, 1)):
        graph.add("Conv", graph.scaled(outputs, channels, 3, 3), pads=[1, 1, 1, 1], strides=[stride, stride])
        graph.add("Relu")
        channels = outputs
    graph.add("GlobalAveragePool")
    graph.add("Flatten")
    graph.dense(channels, CLASSES)
    return graph


def run(graph: Graph, output: list[int], rows: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    session = onnxruntime.InferenceSession(graph.model(output).SerializeToString(), options)
    return np.concatenate(
        [session.run(["y"], {"x": some})[0] for some in np.array_split(rows, max(1, len(rows) // 16))]
    )


def write(folder: Path, name: str, graph: Graph, rows: int, classes: bool = True) -> None:
    data = graph.random.standard_normal((rows * 2 if classes else rows, *graph.shape)).astype(np.float32)
    output = [CLASSES] if classes else graph.shape
    if classes:
        # Balanced and spread: no class is the answer to everything.
        scores = run(graph, output, data)
        weights, bias = list(graph.weights)[-2:]
        spread = scores.std(axis=0)
        graph.weights[weights] /= spread
        graph.weights[bias] = -(scores.mean(axis=0) / spread)
        scores = np.sort(run(graph, output, data), axis=1)
        data = data[np.argsort(scores[:, -2] - scores[:, -1])[:rows]]
        labels = run(graph, output, data).argmax(axis=1)
        (folder / f"{name}.txt").write_text("".join(f"{label}\n" for label in labels))
    onnx.save(graph.model(output), folder / f"{name}.onnx")
    np.save(folder / f"{name}.npy", data)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, "identity", identity(), 64, classes=False)
    write(folder, "mlp", mlp(), 256)
    for i, name in enumerate(("conv", "conv-a", "conv-b", "conv-c")):
        write(folder, name, conv(2 + i), 32)


if __name__ == "__main__":
    main()
