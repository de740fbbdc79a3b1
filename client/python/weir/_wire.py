"""numpy arrays and the wire's tensors, requests and answers."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import capnp
import numpy as np

from ._errors import BadInput
from ._types import DTYPES, Answer, Array, Class, EndpointInfo, TensorSpec, Timings

_FOLDER = Path(__file__).parent / "schema"
predict_capnp: Any = capnp.SchemaParser().load(os.fspath(_FOLDER / "predict.capnp"))

_WORDS = {dtype: word for word, dtype in DTYPES.items() if word not in ("bf16", "string")}
_SIXTY_FOUR = (1 << 64) - 1


def to_bytes(array: Array) -> tuple[str, tuple[int, ...], bytes]:
    """The wire's word for its type, its shape, and its elements, row-major and little-endian."""
    if array.dtype.kind in "OUS":
        return "string", array.shape, b"".join(_text(item) for item in array.ravel(order="C"))
    little = array.dtype.newbyteorder("<")
    word = _WORDS.get(little)
    if word is None:
        raise BadInput(
            f"weir has no type for numpy's {array.dtype}; convert the array first, as with .astype(numpy.float32)"
        )
    return word, array.shape, np.ascontiguousarray(array, dtype=little).tobytes()


def _text(item: object) -> bytes:
    data = item if isinstance(item, bytes) else str(item).encode()
    return len(data).to_bytes(4, "little") + data


def from_bytes(word: str, shape: Sequence[int], data: bytes) -> Array:
    """An array of its own; strings are ``str`` where they are UTF-8, else ``bytes``."""
    if word != "string":
        return np.frombuffer(data, dtype=DTYPES[word]).reshape(tuple(shape)).copy()
    items: list[str | bytes] = []
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        raw = data[at + 4 : at + 4 + length]
        at += 4 + length
        try:
            items.append(raw.decode())
        except UnicodeDecodeError:
            items.append(raw)
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(tuple(shape))


def write_request(
    request: Any,
    endpoint: str,
    inputs: Mapping[str, Array],
    *,
    number: int,
    whole: bool,
    left_us: int,
    class_: Class | None,
    outputs: Sequence[str],
    min_stage: str | None,
    max_stage: str | None,
) -> None:
    """Fills a PredictRequest; ``left_us`` 0 means the endpoint's own deadline."""
    request.idHigh, request.idLow = number >> 64, number & _SIXTY_FOUR
    request.endpoint = endpoint
    request.whole = whole
    request.deadlineLeftUs = left_us
    if class_ is not None:
        setattr(request, "class", class_)
        request.classGiven = True
    request.minStage, request.maxStage = min_stage or "", max_stage or ""
    request.init("outputs", len(outputs))
    for i, name in enumerate(outputs):
        request.outputs[i] = name
    tensors = request.init("inputs", len(inputs))
    for tensor, (name, array) in zip(tensors, inputs.items()):
        word, shape, data = to_bytes(array)
        tensor.name, tensor.dtype, tensor.data = name, word, data
        tensor.init("shape", len(shape))
        for i, dim in enumerate(shape):
            tensor.shape[i] = dim


def new_number() -> int:
    """A query id that nobody has had before."""
    return secrets.randbits(128)


def row_id(number: int, row: int) -> str:
    """The id of a row, as ``weir why`` takes it."""
    return f"{(number + row) % (1 << 128):032x}"


def read_answer(answer: Any, number: int, row: int) -> Answer:
    """One row's."""
    outcome = str(answer.outcome)
    outputs = {}
    for tensor in answer.outputs:
        outputs[str(tensor.name)] = from_bytes(str(tensor.dtype), list(tensor.shape), bytes(tensor.data))
    return Answer(
        id=row_id(number, row),
        outcome=outcome,  # type: ignore[arg-type]
        rejection=str(answer.rejection) if outcome == "rejected" else None,
        message=str(answer.message),
        outputs=outputs,
        model=str(answer.model),
        stage=str(answer.stage),
        degraded=bool(answer.degraded),
        node=str(answer.node),
        timings=Timings(answer.totalUs / 1e6, answer.queueUs / 1e6, answer.executeUs / 1e6),
        price=float(answer.price),
        expected_loss=float(answer.expectedLoss),
        expected_right=float(answer.expectedRight) or None,
    )


def read_info(signature: Any) -> EndpointInfo:
    """What an endpoint takes and gives."""

    def spec(told: Any) -> TensorSpec:
        return TensorSpec(str(told.name), str(told.dtype), tuple(None if dim < 0 else int(dim) for dim in told.shape))

    return EndpointInfo(
        inputs=[spec(told) for told in signature.inputs],
        outputs=[spec(told) for told in signature.outputs],
        label_output=str(signature.labelOutput) or None,
        deadline=signature.deadlineUs / 1e6,
        unready=str(signature.unready) or None,
    )
