"""What is served, what is asked, and which settings are tried: plain data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """A model of make_models.py: shapes without the dimension for rows."""

    name: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    deadline_ms: int

    def row_bytes(self) -> int:
        size = 4
        for width in self.input:
            size *= width
        return size

    def metadata(self) -> dict:
        """As `GET /v2/models/NAME` answers."""
        tensor = lambda name, shape: {"name": name, "datatype": "FP32", "shape": [-1, *shape]}  # noqa: E731
        return {"name": self.name, "inputs": [tensor("x", self.input)], "outputs": [tensor("y", self.output)]}


IMAGE = (3, 64, 64)
IDENTITY = Model("identity", (1024,), (1024,), 1000)
MLP = Model("mlp", (784,), (10,), 50)
CONV = Model("conv", IMAGE, (10,), 100)
THREE = tuple(Model(f"conv-{which}", IMAGE, (10,), 100) for which in "abc")

# Models that one start of a server has. Who measures one has not the others in memory.
GROUPS: dict[str, tuple[Model, ...]] = {"identity": (IDENTITY,), "mlp": (MLP,), "conv": (CONV,), "three": THREE}

# Callers of a closed loop, each with one row.
CALLERS = 64

# Settings that the search tries for each of the others: processes or instances that compute, threads of ONNX Runtime in
# each, rows of a batch at most, and how long a batch waits for more of them. By throughput with CALLERS in flight;
# identity by p50 of one in flight. What is best for conv serves its three siblings too.
SETTINGS: dict[str, list[dict]] = {
    "identity": [
        {"workers": 1, "threads": 1, "batch": 1, "wait_ms": 0},
        {"workers": 1, "threads": 1, "batch": 64, "wait_ms": 0},
    ],
    "mlp": [
        {"workers": 1, "threads": 1, "batch": 64, "wait_ms": 0},
        {"workers": 1, "threads": 1, "batch": 32, "wait_ms": 1},
        {"workers": 2, "threads": 1, "batch": 32, "wait_ms": 0},
        {"workers": 2, "threads": 1, "batch": 32, "wait_ms": 2},
    ],
    "conv": [
        {"workers": 2, "threads": 1, "batch": 1, "wait_ms": 0},
        {"workers": 2, "threads": 1, "batch": 4, "wait_ms": 1},
        {"workers": 1, "threads": 2, "batch": 4, "wait_ms": 1},
    ],
}

# weir sets batches and waits itself; what is left is how many batches run at once.
WEIR_SETTINGS: list[dict] = [{"slots": 1}, {"slots": 2}]

# Then, for open loops, how long a queue may be, as a share of what can be done within the deadline, by answers in time
# at twice the capacity; None is the server's own limit. Servers that can drop what is past its deadline are told to in
# each case.
QUEUES: list[float | None] = [None, 1.0, 0.5, 0.25]

# The knee: first try and upper end as shares of the own capacity, which share of answers must be in time, and when the
# search ends.
KNEE_FIRST, KNEE_MOST = 0.8, 1.3
KNEE_ATTAINS = 0.99
KNEE_RUNS, KNEE_PRECISION = 7, 0.08

OVERLOADS = (0.5, 1.0, 2.0, 3.0)
# Share of the own capacity on average, of bursts and of the trace.
BURSTS_AT = 0.5
BURSTS = "gamma:cv=4"
TRACE = "azure_conversation_15min.csv.gz"
# By group: at tens of thousands a second as it is, each of its queries would stand for more than a thousand.
TRACE_SPEED = {"mlp": 8, "conv": 1}
# Queries a second of the scenario that compares processor time at equal load.
EQUAL_RATE = 500.0
# Share of the total that three models get; how long one of them bursts, and with which share of all queries.
THREE_AT = 0.8
TURN_S = 0.5
TURN_SHARE = 0.8


@dataclass(frozen=True)
class Scenario:
    name: str
    group: str
    # With queues cut to the deadline (open loops), or as they are for the most throughput.
    cut: bool
    says: str


SCENARIOS: tuple[Scenario, ...] = (
    Scenario("overhead", "identity", False, "4 KB through identity, 1 in flight"),
    Scenario("start", "mlp", False, "from its start to the first answer, and resident memory then"),
    Scenario("mlp", "mlp", False, f"MLP 784-512-512-10, closed loop of {CALLERS}"),
    Scenario("cpu", "mlp", False, f"processor time a query at {EQUAL_RATE:.0f} queries a second of the MLP"),
    Scenario("knee", "mlp", True, "highest Poisson rate of the MLP with 99 % within 50 ms"),
    Scenario("overload-mlp", "mlp", True, "0.5 to 3 times the own capacity, 50 ms"),
    Scenario("bursts-mlp", "mlp", True, f"{BURSTS} and a real trace at {BURSTS_AT} of the own capacity, 50 ms"),
    Scenario("conv", "conv", False, f"conv, some 6 ms a row, closed loop of {CALLERS}"),
    Scenario("overload-conv", "conv", True, "0.5 to 3 times the own capacity, 100 ms"),
    Scenario("bursts-conv", "conv", True, f"{BURSTS} and a real trace at {BURSTS_AT} of the own capacity, 100 ms"),
    Scenario("three", "three", True, f"three conv models that burst by turns, {THREE_AT} of their total, 100 ms"),
)
