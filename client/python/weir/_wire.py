"""numpy arrays and the wire's tensors, requests and answers."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import capnp
import numpy as np

from ._errors import BadInput
from ._types import DTYPES, Answer, Array, EndpointInfo, Judged, TensorSpec, Timings, Trace, Visit

_FOLDER = Path(__file__).parent / "schema"
predict_capnp: Any = capnp.SchemaParser().load(os.fspath(_FOLDER / "predict.capnp"))

_WORDS = {dtype: word for word, dtype in DTYPES.items() if word not in ("bf16", "string")}


def to_bytes(array: Array) -> tuple[str, tuple[int, ...], bytes]:
    """The wire's word for its type, its shape, and its elements, row-major and little-endian."""
    if array.dtype.kind in "OUST":
        return "string", array.shape, b"".join(_text(item) for item in array.ravel(order="C"))
    little = array.dtype.newbyteorder("<")
    word = _WORDS.get(little)
    if word is None:
        raise BadInput(
            f"weir has no type for numpy's {array.dtype}; convert the array first, as with .astype(numpy.float32)"
        )
    return word, array.shape, np.ascontiguousarray(array, dtype=little).tobytes()


def _text(item: object) -> bytes:
    if not isinstance(item, str | bytes):
        shown = repr(item)[:40]
        raise BadInput(f"an array of objects holds texts (str) and byte strings (bytes) alone; {shown} is neither")
    data = encode(item) if isinstance(item, str) else item
    return len(data).to_bytes(4, "little") + data


def encode(text: str) -> bytes:
    """A text in UTF-8."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{text[:40]!r} has no form in UTF-8: {error.reason}") from error


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
        trace=_trace(answer.trace) if answer._has("trace") else None,
    )


def _trace(record: Any) -> Trace:
    outcome = str(record.outcome)
    return Trace(
        endpoint=str(record.endpoint) or None,
        class_=str(getattr(record, "class")),  # type: ignore[arg-type]
        deadline=record.deadlineUs / 1e6 if record.deadlineUs else None,
        total=record.totalUs / 1e6,
        outcome=outcome,  # type: ignore[arg-type]
        rejection=str(record.rejection) if outcome == "rejected" else None,
        message=str(record.message),
        stage=str(record.stage) or None,
        degraded=bool(record.degraded),
        visits=[_visit(visit) for visit in record.visits],
    )


def _visit(visit: Any) -> Visit:
    end = str(visit.end.which())
    ran = visit.end.answered if end == "answered" else None
    batch = ran if ran is not None and ran.batchRows > 0 else None
    return Visit(
        stage=str(visit.stage),
        model=str(visit.model),
        node=str(visit.node),
        device=str(visit.device) or None,
        after=visit.afterUs / 1e6,
        took=None if end == "none" else visit.tookUs / 1e6,
        outcome=None if end == "none" else end,  # type: ignore[arg-type]
        rejection=str(visit.end.rejected) if end == "rejected" else None,
        queue=ran.queueUs / 1e6 if ran is not None else None,
        execute=ran.executeUs / 1e6 if ran is not None else None,
        batch_rows=int(batch.batchRows) if batch is not None else None,
        batch_closed=str(batch.closed) if batch is not None and str(batch.closed) != "untold" else None,
        gate=_judged(visit.gate.asked) if str(visit.gate.which()) == "asked" else None,
    )


def _judged(judged: Any) -> Judged:
    rule = str(judged.rule.which())
    number = getattr(judged.rule, rule)
    signal = float(judged.signal)
    return Judged(
        rule={
            "confidenceBelow": "confidence_below",
            "entropyAbove": "entropy_above",
            "marginBelow": "margin_below",
        }.get(rule, rule),
        signal=None if math.isnan(signal) else signal,
        threshold=float(number.least if rule == "gain" else number),
        gain=float(number.value) if rule == "gain" else None,
        cost=float(judged.cost),
        deeper=bool(judged.deeper),
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
