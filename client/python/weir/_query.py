"""What is asked, checked: nothing of it can keep it from being written into a message any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, get_args

import numpy as np

from . import _wire
from ._errors import BadInput
from ._types import Array, Class

#: Rows of one call, as nodes and the Rust client have it (core/src/call).
ROWS_MAX = 65_536
#: Longest deadline, in seconds: a century, as for the Rust client.
DEADLINE_MAX = 3.2e9


@dataclass(frozen=True)
class Query:
    """A call: rows, each a query of its own, or arrays that are one query."""

    endpoint: str
    #: Name, the wire's word for the type, shape and bytes of each array.
    tensors: Sequence[tuple[str, str, tuple[int, ...], bytes]]
    #: Answers that it has.
    rows: int
    whole: bool
    #: In seconds; the endpoint's own where absent.
    deadline: float | None
    class_: Class | None
    outputs: Sequence[str]
    min_stage: str
    max_stage: str
    trace: bool
    number: int = field(default_factory=_wire.new_number)

    def message_bytes(self) -> int:
        """What it takes as a message: its arrays, and what is around them."""

        def word(size: int) -> int:
            return -(-size // 8) * 8

        def text(value: str) -> int:
            return word(len(value.encode()) + 1)

        tensors = (64 + text(name) + 8 * len(shape) + word(len(data)) for name, _, shape, data in self.tensors)
        # The call itself and the request without its lists; what stands in another segment than what points to it takes a word more.
        around = 1024 + text(self.endpoint) + text(self.min_stage) + text(self.max_stage)
        return around + sum(tensors) + sum(16 + text(name) for name in self.outputs)

    def write(self, request: Any, left: float) -> None:
        """Fills a PredictRequest; ``left``: seconds until its deadline, which only tell where it has one of its own."""
        request.idHigh, request.idLow = self.number >> 64, self.number & ((1 << 64) - 1)
        request.endpoint = self.endpoint
        request.whole = self.whole
        # 0 means the endpoint's own.
        request.deadlineLeftUs = 0 if self.deadline is None else max(1, int(left * 1e6))
        if self.class_ is not None:
            setattr(request, "class", self.class_)
            request.classGiven = True
        request.minStage, request.maxStage = self.min_stage, self.max_stage
        request.trace = self.trace
        outputs = request.init("outputs", len(self.outputs))
        for i, name in enumerate(self.outputs):
            outputs[i] = name
        tensors = request.init("inputs", len(self.tensors))
        for tensor, (name, dtype, shape, data) in zip(tensors, self.tensors):
            tensor.name, tensor.dtype, tensor.data = name, dtype, data
            dims = tensor.init("shape", len(shape))
            for i, dim in enumerate(shape):
                dims[i] = dim


def check(
    endpoint: str,
    inputs: Array | Mapping[str, Array],
    *,
    deadline: float | None,
    class_: Class | None,
    outputs: Sequence[str],
    whole: bool,
    min_stage: str | None,
    max_stage: str | None,
    trace: bool,
) -> Query:
    """The query; raises BadInput where no query can be like that."""
    arrays = {
        text(name, "the name of an input"): _array(array)
        for name, array in (inputs.items() if isinstance(inputs, Mapping) else [("", inputs)])
    }
    if not arrays:
        raise BadInput("there are no inputs")
    if not whole and any(array.ndim == 0 for array in arrays.values()):
        raise BadInput("an array without dimensions has no rows; ask whole=True, or add a first dimension")
    rows = 1 if whole else max(1, *(array.shape[0] for array in arrays.values()))
    if rows > ROWS_MAX:
        raise BadInput(f"a call has at most {ROWS_MAX} rows; this one has {rows}; send fewer rows at once")
    if deadline is not None and not (isinstance(deadline, Real) and 0 < deadline <= DEADLINE_MAX):
        raise BadInput(f"a deadline is a number of seconds above 0, a century at most; {deadline!r} is none")
    if class_ is not None and class_ not in get_args(Class):
        raise BadInput(f"{class_!r} is no class; there are {', '.join(get_args(Class))}")
    if isinstance(outputs, str | bytes):
        raise BadInput(f"outputs are a list of names; write [{outputs!r}]")
    return Query(
        endpoint=text(endpoint, "the name of an endpoint"),
        tensors=[(name, *_wire.to_bytes(array)) for name, array in arrays.items()],
        rows=rows,
        whole=bool(whole),
        deadline=None if deadline is None else float(deadline),
        class_=class_,
        outputs=[text(name, "the name of an output") for name in outputs],
        min_stage=text(min_stage or "", "min_stage"),
        max_stage=text(max_stage or "", "max_stage"),
        trace=bool(trace),
    )


def text(value: object, what: str) -> str:
    """A text that a message can hold."""
    if not isinstance(value, str):
        raise BadInput(f"{what} is a text (str); {value!r} is none")
    _wire.encode(value)
    return value


def _array(given: Array) -> Array:
    try:
        array = np.asarray(given)
        if array.dtype.kind in "US" and not isinstance(given, np.ndarray | np.generic):
            # Of what stands beside texts in a list numpy makes texts, and it cuts zeros off the ends of byte strings.
            array = np.asarray(given, dtype=object)
    except (TypeError, ValueError) as error:
        raise BadInput(f"numpy makes no array of that: {error}") from error
    return array
