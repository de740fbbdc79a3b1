"""Makes small ONNX models that are unusual in one way each, with what Python's onnxruntime answers on the same bytes.

python3 make_odd_models.py, with numpy, onnx and onnxruntime 1.32.0 installed. Writes NAME.onnx and expected.json here.
Tensors in expected.json: dtype, shape, data as hex of little-endian bytes (a string is its u32 length and its bytes).
"""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import helper as h

HERE = Path(__file__).parent
WORDS = {"float32": "f32", "float64": "f64", "float16": "f16", "int64": "i64", "int32": "i32", "int16": "i16", "int8": "i8"}
WORDS |= {"uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64", "bool": "bool", "object": "string"}

def encode(x: np.ndarray) -> dict:
    if x.dtype == object or x.dtype.kind in "US":
        data = b"".join(len(s := str(v).encode()).to_bytes(4, "little") + s for v in x.reshape(-1))
        return {"dtype": "string", "shape": list(x.shape), "data": data.hex()}
    x = np.asarray(x)
    return {"dtype": WORDS[x.dtype.name], "shape": list(x.shape), "data": np.ascontiguousarray(x).tobytes().hex()}

def model(name, nodes, inputs, outputs, initializers=(), opset=17, domains=()):
    graph = h.make_graph(nodes, "g", [h.make_tensor_value_info(*i) for i in inputs], outputs, list(initializers))
    opsets = [h.make_opsetid("", opset)] + [h.make_opsetid(d, 3) for d in domains]
    m = h.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.save(m, HERE / f"{name}.onnx")

def out(*args):
    return h.make_tensor_value_info(*args)

def const(name, values, dtype=np.int64):
    return onnx.numpy_helper.from_array(np.array(values, dtype), name)

rng = np.random.default_rng(1)
f32 = lambda *shape: rng.standard_normal(shape).astype(np.float32)
cases: dict[str, dict] = {}

def case(name, feeds, batching):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(HERE / f"{name}.onnx"), options)
    runs = []
    for feed in feeds:
        run = {"inputs": {k: encode(v) for k, v in feed.items()}}
        try:
            values = session.run(None, feed)
            run["outputs"] = {o.name: encode(np.asarray(v)) for o, v in zip(session.get_outputs(), values)}
        except Exception:
            run["error"] = True
        runs.append(run)
    cases[name] = {"batching": batching, "runs": runs}

def per_size(make, sizes=(1, 2, 3, 8)):
    return [make(n) for n in sizes]

model("linear", [h.make_node("MatMul", ["x", "w"], ["y"])], [("x", T.FLOAT, ["N", 4])], [out("y", T.FLOAT, ["N", 3])], [const("w", f32(4, 3), np.float32)])
case("linear", per_size(lambda n: {"x": f32(n, 4)}), "rows")

# A row of 4 KB that comes back as it is: what is measured with it is everything around the model.
model("identity_4k", [h.make_node("Identity", ["x"], ["y"])], [("x", T.FLOAT, ["N", 1024])], [out("y", T.FLOAT, ["N", 1024])])
cases["identity_4k"] = {"batching": "rows", "runs": []}

model("odd_names", [h.make_node("Add", ["in put:0", "ключ/α"], ["вых/од 🙂"])], [("ключ/α", T.FLOAT, ["N", 2]), ("in put:0", T.FLOAT, ["N", 2])], [out("вых/од 🙂", T.FLOAT, ["N", 2])])
case("odd_names", per_size(lambda n: {"in put:0": f32(n, 2), "ключ/α": f32(n, 2)}), "rows")

model("scalar_input", [h.make_node("Mul", ["x", "s"], ["y"])], [("x", T.FLOAT, ["N", 3]), ("s", T.FLOAT, [])], [out("y", T.FLOAT, ["N", 3])])
case("scalar_input", per_size(lambda n: {"x": f32(n, 3), "s": np.array(2.5, np.float32)}), "whole")

for word, kind, dtype in [("i64", T.INT64, np.int64), ("u8", T.UINT8, np.uint8), ("i8", T.INT8, np.int8), ("f16", T.FLOAT16, np.float16), ("f64", T.DOUBLE, np.float64), ("i32", T.INT32, np.int32), ("bool", T.BOOL, np.bool_)]:
    model(f"identity_{word}", [h.make_node("Identity", ["x"], ["y"])], [("x", kind, ["N", 3])], [out("y", kind, ["N", 3])])
    case(f"identity_{word}", per_size(lambda n: {"x": (rng.integers(0, 2, (n, 3))).astype(dtype)}), "rows")

model("strings", [h.make_node("Identity", ["x"], ["y"])], [("x", T.STRING, ["N"])], [out("y", T.STRING, ["N"])])
case("strings", [{"x": np.array(["a", "", "grün 🙂"][:n], dtype=object)} for n in (1, 2, 3)], "rows")

# The file says [N, 2], what comes out is [N, 3]; the other says one dimension, two come out.
model("wrong_shape", [h.make_node("Identity", ["x"], ["y"])], [("x", T.FLOAT, ["N", "K"])], [out("y", T.FLOAT, ["N", 2])])
case("wrong_shape", per_size(lambda n: {"x": f32(n, 3)}), "rows")

model("fixed_one", [h.make_node("MatMul", ["x", "w"], ["y"])], [("x", T.FLOAT, [1, 4])], [out("y", T.FLOAT, [1, 2])], [const("w", f32(4, 2), np.float32)])
case("fixed_one", [{"x": f32(1, 4)}], "unbatched")

model("fixed_four", [h.make_node("MatMul", ["x", "w"], ["y"])], [("x", T.FLOAT, [4, 4])], [out("y", T.FLOAT, [4, 2])], [const("w", f32(4, 2), np.float32)])
case("fixed_four", [{"x": f32(4, 4)}], "fixed")

model("free_image", [h.make_node("GlobalAveragePool", ["x"], ["y"])], [("x", T.FLOAT, ["N", 3, "H", "W"])], [out("y", T.FLOAT, ["N", 3, 1, 1])])
case("free_image", [{"x": f32(n, 3, size, size + 1)} for n, size in [(1, 5), (2, 9), (3, 16)]], "rows")

model("time_first", [h.make_node("CumSum", ["x", "axis"], ["y"])], [("x", T.FLOAT, ["T", 2])], [out("y", T.FLOAT, ["T", 2])], [const("axis", 0)])
case("time_first", per_size(lambda n: {"x": f32(n, 2)}), "unbatched")

model("softmax_over_rows", [h.make_node("Softmax", ["x"], ["y"], axis=0)], [("x", T.FLOAT, ["N", 2])], [out("y", T.FLOAT, ["N", 2])])
case("softmax_over_rows", per_size(lambda n: {"x": f32(n, 2)}), "unbatched")

# Like a voice detector: the state goes in and out with the batch on its second axis.
model(
    "state_on_axis_one",
    [h.make_node("ReduceMean", ["input"], ["m"], axes=[1], keepdims=1), h.make_node("Add", ["state", "m"], ["stateN"]), h.make_node("ReduceSum", ["stateN", "axes"], ["output"], keepdims=0)],
    [("input", T.FLOAT, ["N", "L"]), ("state", T.FLOAT, [2, "N", 4])],
    [out("output", T.FLOAT, ["N", 4]), out("stateN", T.FLOAT, [2, "N", 4])],
    [const("axes", [0])],
)
case("state_on_axis_one", [{"input": f32(1, 16), "state": f32(2, 1, 4)}], "whole")

# Works for an even number of rows only.
model("pairs", [h.make_node("Reshape", ["x", "shape"], ["a"]), h.make_node("Reshape", ["a", "back"], ["y"])], [("x", T.FLOAT, ["N", 3])], [out("y", T.FLOAT, ["N", 3])], [const("shape", [-1, 6]), const("back", [-1, 3])])
case("pairs", [{"x": f32(n, 3)} for n in (1, 2, 4)], "unbatched")

# One index out of range fails the whole batch.
model("gather", [h.make_node("Gather", ["table", "x"], ["y"])], [("x", T.INT64, ["N"])], [out("y", T.FLOAT, ["N", 2])], [const("table", f32(5, 2), np.float32)])
case("gather", [{"x": np.array(v, np.int64)} for v in ([1], [0, 4], [1, 2, 3])], "rows")

model("random", [h.make_node("RandomNormalLike", ["x"], ["y"])], [("x", T.FLOAT, ["N", 2])], [out("y", T.FLOAT, ["N", 2])])
cases["random"] = {"batching": "unbatched", "runs": []}

model("sequence_out", [h.make_node("SplitToSequence", ["x"], ["y"])], [("x", T.FLOAT, ["N", 2])], [h.make_tensor_sequence_value_info("y", T.FLOAT, None)])
cases["sequence_out"] = {"refused": "sequence"}

zipmap = h.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
maps = h.make_value_info("y", h.make_sequence_type_proto(h.make_map_type_proto(T.INT64, h.make_tensor_type_proto(T.FLOAT, None))))
model("map_out", [zipmap], [("x", T.FLOAT, ["N", 2])], [maps], domains=["ai.onnx.ml"])
cases["map_out"] = {"refused": "sequence"}

model("no_input", [h.make_node("Identity", ["c"], ["y"])], [], [out("y", T.FLOAT, [2])], [const("c", [1, 2], np.float32)])
cases["no_input"] = {"refused": "takes no input"}

external = onnx.load(HERE / "linear.onnx")
tensor = external.graph.initializer[0]
tensor.ClearField("raw_data")
tensor.data_location = T.EXTERNAL
for key, value in [("location", "../weights.bin"), ("offset", "0"), ("length", "48")]:
    entry = tensor.external_data.add()
    entry.key, entry.value = key, value
(HERE / "external.onnx").write_bytes(external.SerializeToString())
cases["external"] = {"refused": "another file"}

(HERE / "truncated.onnx").write_bytes((HERE / "linear.onnx").read_bytes()[:60])
cases["truncated"] = {"refused": "cut short"}

(HERE / "expected.json").write_text(json.dumps(cases, indent=1, sort_keys=True) + "\n")
