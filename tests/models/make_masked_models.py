"""Makes two small ONNX models whose rows have several lengths: python3 make_masked_models.py, with numpy and onnx installed.

masked.onnx heeds its mask: hidden is 2 * tokens where the mask is 1, mean is the mean of the tokens there.
unmasked.onnx takes a mask and does not look at it.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h

HERE = Path(__file__).parent


def save(name, nodes):
    info = h.make_tensor_value_info
    inputs = [info("tokens", T.FLOAT, ["n", "l"]), info("mask", T.FLOAT, ["n", "l"])]
    outputs = [info("hidden", T.FLOAT, ["n", "l"]), info("mean", T.FLOAT, ["n", 1])]
    two = onnx.numpy_helper.from_array(np.array(2, np.float32), "two")
    axis = onnx.numpy_helper.from_array(np.array([1], np.int64), "axis")
    graph = h.make_graph(nodes, "g", inputs, outputs, [two, axis])
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), HERE / f"{name}.onnx")


hidden = [h.make_node("Mul", ["tokens", "two"], ["twice"]), h.make_node("Mul", ["twice", "mask"], ["hidden"])]
save(
    "masked",
    hidden
    + [
        h.make_node("Mul", ["tokens", "mask"], ["seen"]),
        h.make_node("ReduceSum", ["seen", "axis"], ["sum"]),
        h.make_node("ReduceSum", ["mask", "axis"], ["count"]),
        h.make_node("Div", ["sum", "count"], ["mean"]),
    ],
)
save("unmasked", hidden + [h.make_node("ReduceMean", ["tokens"], ["mean"], axes=[1])])
