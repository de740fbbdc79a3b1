"""What was found, as Markdown."""

from collections.abc import Callable

import scenarios


def markdown(results: dict) -> str:
    """Tables of all servers and doors; `*` marks what the generator itself was late for."""
    lines = [
        f"Measured {results['began']} on {results['cores']} cores with the generator on the same ones, "
        f"{results['weir']} (checkout {results['commit']}), {results['seconds']:g} s a run, open loops "
        f"{'with' if results['precedence'] else 'without'} precedence.",
        "",
    ]
    for heading, columns in TABLES:
        asked = [(title, column) for title, column in columns if any(column[0] in found for _, found in _rows(results))]
        if asked:
            lines += _table(results, heading, asked)
    lines += _settings(results) + _notes(results)
    return "\n".join(lines) + "\n"


def _rows(results: dict) -> list[tuple[str, dict]]:
    rows = []
    for server, kept in results["servers"].items():
        for door, found in kept["doors"].items():
            rows.append((f"{server}, {door}", found))
    return rows


Cell = Callable[[dict], str]
# A column: the scenario, and what its cell says of what was found.
Column = tuple[str, Cell]


def _table(results: dict, heading: str, columns: list[tuple[str, Column]]) -> list[str]:
    lines = [f"### {heading}", "", "| server, door | " + " | ".join(title for title, _ in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, found in _rows(results):
        cells = []
        for _, (scenario, cell) in columns:
            if scenario not in found:
                cells.append("")
            elif "error" in found[scenario]:
                cells.append("failed")
            else:
                cells.append(cell(found[scenario]))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _late(run: dict) -> str:
    return "" if run["valid"] else "*"


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _p50(run: dict) -> str:
    return f"{_number(run['latency_us']['p50'])}{_late(run)}"


def _p99(run: dict) -> str:
    return f"{_number(run['latency_us']['p99'])}{_late(run)}"


def _rate(run: dict) -> str:
    return _number(run["answered_per_s"])


def _cpu(run: dict) -> str:
    return _number(run["cpu_ms"], 3)


def _equal_cpu(run: dict) -> str:
    """Who cannot keep up is no longer at equal load."""
    late = "" if run["attainment"] >= scenarios.KNEE_ATTAINS else f" ({100 * run['attainment']:.0f} % in time)"
    return _cpu(run) + late


def _knee(found: dict) -> str:
    if found["best"] is None:
        return f"< {_number(found['missed_at'])}"
    share = found["met_at"] / found["own_per_s"]
    return f"{_number(found['met_at'])} ({share:.2f} of its own){_late(found['best'])}"


def _over(times: float) -> Cell:
    def cell(found: dict) -> str:
        run = found["runs"][str(times)]
        return f"{run['goodput_per_s'] / found['own_per_s']:.2f}{_late(run)}"

    return cell


def _bursts(which: str) -> Cell:
    def cell(found: dict) -> str:
        run = found[which]
        p99 = run["latency_us"]["p99"]
        return f"{100 * run['attainment']:.1f} %, {'-' if p99 is None else f'{p99 / 1000:.1f}'} ms{_late(run)}"

    return cell


def _attained(which: str) -> Cell:
    return lambda found: f"{100 * found[which]['attainment']:.1f} %{_late(found[which])}"


OVER = [(f"{times:g}×", _over(times)) for times in scenarios.OVERLOADS]
TABLES: list[tuple[str, list[tuple[str, Column]]]] = [
    (
        "One at a time, many at a time, and what it costs",
        [
            ("4 KB, 1 in flight: p50 us", ("overhead", _p50)),
            ("p99 us", ("overhead", _p99)),
            ("MLP, 64 in flight: answers/s", ("mlp", _rate)),
            ("CPU ms an answer", ("mlp", _cpu)),
            (f"at {scenarios.EQUAL_RATE:.0f} queries/s", ("cpu", _equal_cpu)),
            ("conv, 64 in flight: answers/s", ("conv", _rate)),
            ("start to first answer, s", ("start", lambda found: _number(found["start_s"], 2))),
            ("memory then, MB", ("start", lambda found: _number(found["memory_mb"]))),
            ("memory after load, MB", ("mlp", lambda run: _number(run["memory_mb"]))),
        ],
    ),
    (
        "Open loop: answers within the deadline (MLP 50 ms, conv 100 ms) over the own capacity, 64 in flight",
        [
            ("knee of the MLP, queries/s", ("knee", _knee)),
            ("MLP: own capacity", ("overload-mlp", lambda found: _number(found["own_per_s"]))),
            *((f"MLP {title}", ("overload-mlp", cell)) for title, cell in OVER),
            ("conv: own capacity", ("overload-conv", lambda found: _number(found["own_per_s"]))),
            *((f"conv {title}", ("overload-conv", cell)) for title, cell in OVER),
        ],
    ),
    (
        f"Bursts at {scenarios.BURSTS_AT} of the own capacity, and models that burst by turns at {scenarios.THREE_AT} "
        "of their total: answered in time, p99",
        [
            (f"MLP, {scenarios.BURSTS}", ("bursts-mlp", _bursts("gamma"))),
            ("MLP, trace", ("bursts-mlp", _bursts("trace"))),
            (f"conv, {scenarios.BURSTS}", ("bursts-conv", _bursts("gamma"))),
            ("conv, trace", ("bursts-conv", _bursts("trace"))),
            ("three: total/s", ("three", lambda found: _number(found["total_per_s"]))),
            ("three by turns", ("three", _attained("three"))),
            ("one with all", ("three", _attained("one"))),
        ],
    ),
]


def _settings(results: dict) -> list[str]:
    lines = [
        "### Settings that the search chose",
        "",
        "| server | models | setting | queue, of capacity × deadline |",
        "|---|---|---|---|",
    ]
    for server, kept in results["servers"].items():
        for group, chosen in kept["settings"].items():
            told = ", ".join(f"{name} {value}" for name, value in chosen["settings"].items())
            queue = "its own" if chosen["queue"] is None else f"{chosen['queue']:g}"
            lines.append(f"| {server} | {group} | {told} | {queue} |")
    return [*lines, ""]


def _notes(results: dict) -> list[str]:
    notes = []
    for name, found in _rows(results):
        for scenario, cell in found.items():
            if "error" in cell:
                notes.append(f"- {name}, {scenario}: {' '.join(cell['error'].split())[:300]}")
            for which, run in _runs(cell):
                if run["wrong"]:
                    notes.append(f"- {name}, {scenario} {which}: **wrong answers**, accuracy {run['accuracy']:.3f}")
                if run["failed"] or run["unknown"]:
                    told = f"{run['failed']} failed, {run['unknown']} unknown of {run['offered']}"
                    notes.append(f"- {name}, {scenario} {which}: {told}")
    if any(not run["valid"] for _, found in _rows(results) for cell in found.values() for _, run in _runs(cell)):
        notes.append(
            "- `*`: the generator itself was late (p99 of its send lag over 5 % of the deadline); "
            "the server is charged with it."
        )
    return ["### Notes", "", *notes, ""] if notes else []


def _runs(cell: dict) -> list[tuple[str, dict]]:
    if "valid" in cell:
        return [("", cell)]
    named = {"": cell["best"]} if cell.get("best") else {}
    named |= {
        **cell.get("runs", {}),
        **{which: cell[which] for which in ("gamma", "trace", "three", "one") if which in cell},
    }
    return list(named.items())
