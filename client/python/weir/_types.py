"""What is asked and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: How a query ends. ``rejected``: it did not run, and may be asked again. ``expired``: its deadline passed first. ``failed``: it ran and
#: failed. ``unknown``: a connection broke, and it may have run.
Outcome = Literal["answered", "rejected", "expired", "failed", "unknown"]

#: How important a query is when not all can be served: the last is shed first.
Class = Literal["critical", "default", "sheddable"]


@dataclass(frozen=True)
class Timings:
    """Where the time of a query went, as its home node saw it, in seconds."""

    total: float = 0.0
    queue: float = 0.0
    execute: float = 0.0


@dataclass(frozen=True)
class Judged:
    """What a gate was asked, and what it said."""

    #: ``confidence_below``, ``entropy_above``, ``margin_below`` or ``gain``.
    rule: str
    #: What it looks at; none where the stage gave none.
    signal: float | None
    #: Where it parts; of ``gain`` the least gain, in units of value.
    threshold: float
    #: That was expected of the next stage, in units of value; only of ``gain``.
    gain: float | None
    #: Of the next stage, in units of value, at the price that held.
    cost: float
    deeper: bool


@dataclass(frozen=True)
class Visit:
    """One model that a query was sent to. Spans are in seconds."""

    stage: str
    #: ``name@version``.
    model: str
    node: str
    #: None on another node than the query's home, which chooses.
    device: str | None
    #: When it was sent, from the query's arrival.
    after: float
    #: Until it came back; none where the query ended first, as of all that follows.
    took: float | None
    outcome: Literal["answered", "rejected", "expired", "failed", "lost"] | None
    rejection: str | None
    queue: float | None
    execute: float | None
    #: Queries in the batch that it ran in, and why that was not larger, where the node tells.
    batch_rows: int | None
    batch_closed: str | None
    #: What the gate behind it said, where it was asked.
    gate: Judged | None


@dataclass(frozen=True)
class Trace:
    """How an answer came about, as its home node saw it and as ``weir why`` tells it. Spans are in seconds."""

    #: None where the call was refused before that was known.
    endpoint: str | None
    class_: Class
    #: From its arrival, where that was known.
    deadline: float | None
    total: float
    outcome: Outcome
    rejection: str | None
    message: str
    #: That gave the answer.
    stage: str | None
    degraded: bool
    #: In the order in which they were sent.
    visits: list[Visit]


@dataclass(frozen=True)
class Answer:
    """What became of one row (of all arrays together, where they were asked ``whole``)."""

    id: str
    outcome: Outcome
    #: Why it did not run, where it was rejected: ``tooLate``, ``queueFull``, ``noReplica``, …
    rejection: str | None = None
    #: What went wrong and what to do; empty where a stage answered.
    message: str = ""
    #: By name, without the dimension of the rows.
    outputs: dict[str, Array] = field(default_factory=dict)
    #: ``name@version`` that answered.
    model: str = ""
    stage: str = ""
    #: A deeper stage was wanted, and could not be had or was too dear for what it gains.
    degraded: bool = False
    node: str = ""
    timings: Timings = Timings()
    #: Of a second of computing time, in units of value: the highest that a gate met.
    price: float = 0.0
    #: What the next stage would have gained, where that was worth running and did not.
    expected_loss: float = 0.0
    #: How likely the answer is to be right, by calibration; ``None`` where that is not known.
    expected_right: float | None = None
    #: How it came about, where that was asked for and the query got as far as a home node.
    trace: Trace | None = None

    @property
    def answered(self) -> bool:
        """Whether there is an answer."""
        return self.outcome == "answered"


@dataclass(frozen=True)
class TensorSpec:
    """An input or output; ``None`` is a dimension that is open."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class EndpointInfo:
    """What an endpoint takes and gives, the dimension of the rows included."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    #: The output whose arg-max is the answer.
    label_output: str | None
    #: In seconds, of a query that brings none.
    deadline: float
    #: Why no query could be answered now, as far as the node knows that was asked.
    unready: str | None


#: numpy's types by the wire's words. There is no bfloat16 in numpy: its bits come as uint16. Strings are objects.
DTYPES: dict[str, np.dtype[Any]] = {
    "bool": np.dtype(np.bool_),
    "u8": np.dtype("<u1"),
    "u16": np.dtype("<u2"),
    "u32": np.dtype("<u4"),
    "u64": np.dtype("<u8"),
    "i8": np.dtype("<i1"),
    "i16": np.dtype("<i2"),
    "i32": np.dtype("<i4"),
    "i64": np.dtype("<i8"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),
    "f32": np.dtype("<f4"),
    "f64": np.dtype("<f8"),
    "string": np.dtype(object),
}
