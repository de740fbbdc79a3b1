"""Makes a cascade of two small ONNX models with a learned gate: python3 make_learned_models.py, with numpy and onnx installed.

A row x is two numbers a and b; it is of class 0 where they have the same sign, else of class 1.
learned_shallow.onnx looks at a alone, so it is right where b is positive, and as sure of the others: probs is no use to a gate. Its
other output, sure, is a head that has learned when it is right: sigmoid(4 b).
learned_deep.onnx looks at both, is always right, and has no such head.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h

HERE = Path(__file__).parent


def save(name, nodes, outputs, constants):
    info = h.make_tensor_value_info
    given = [onnx.numpy_helper.from_array(np.array(value), key) for key, value in constants.items()]
    shapes = [info(key, T.FLOAT, ["n", width]) for key, width in outputs.items()]
    graph = h.make_graph(nodes, "g", [info("x", T.FLOAT, ["n", 2])], shapes, given)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), HERE / f"{name}.onnx")


def f32(*rows):
    return np.array(rows, np.float32)


save(
    "learned_shallow",
    [
        h.make_node("MatMul", ["x", "by_a"], ["logits"]),
        h.make_node("Softmax", ["logits"], ["probs"], axis=1),
        h.make_node("MatMul", ["x", "by_b"], ["head"]),
        h.make_node("Sigmoid", ["head"], ["sure"]),
    ],
    {"probs": 2, "sure": 1},
    {"by_a": f32([3, -3], [0, 0]), "by_b": f32([0], [4])},
)
save(
    "learned_deep",
    [
        h.make_node("ReduceProd", ["x"], ["product"], axes=[1], keepdims=1),
        h.make_node("MatMul", ["product", "both"], ["logits"]),
        h.make_node("Softmax", ["logits"], ["probs"], axis=1),
    ],
    {"probs": 2},
    {"both": f32([9, -9])},
)
