"""Asks a weir cluster: numpy arrays in, numpy arrays out, over Cap'n Proto.

    client = weir.Client("127.0.0.1:7300", token_file="weir-data/c1/admin.token")
    for answer in client.predict("fashion", images, deadline=0.05):
        print(answer.outcome, answer.stage, answer.outputs["probs"].argmax())

A query always ends in one of five ways, told by ``Answer.outcome``: that is data, not an exception. Exceptions are for what keeps a
query from being asked at all: no coordinator, a token that opens nothing, a name that does not exist.
"""

from ._async import AsyncClient
from ._errors import BadInput, NotFound, Refused, Unreachable, WeirError
from ._sync import Client
from ._types import Answer, EndpointInfo, Judged, Outcome, TensorSpec, Timings, Trace, Visit

__all__ = [
    "Answer",
    "AsyncClient",
    "BadInput",
    "Client",
    "EndpointInfo",
    "Judged",
    "NotFound",
    "Outcome",
    "Refused",
    "TensorSpec",
    "Timings",
    "Trace",
    "Unreachable",
    "Visit",
    "WeirError",
]
