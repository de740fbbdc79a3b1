"""What is asked of a running server, by `weir load`, and its first answer."""

import http.client
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from processes import clean_environment, cpu_between
from scenarios import Model
from servers.common import Running

# weir load waits so long for what is open when it stops sending.
PATIENCE_S = 2.0
SPARE_S = 20.0
# A closed loop is about throughput: an answer may take its time.
CLOSED_DEADLINE_MS = 2000
# The kernel shares the cores between sessions (its autogroups): by this much an open loop goes before a server that
# would take them all.
PRECEDENCE = "-10"


class NoResult(Exception):
    """`weir load` printed no result, or a server never answered."""


def may_go_first() -> bool:
    """Whether this process may give a session precedence, tried on its own group."""
    group = Path("/proc/self/autogroup")
    try:
        kept = group.read_text().rsplit(" ", 1)[1].strip()
        group.write_text(PRECEDENCE)
        group.write_text(kept)
    except (OSError, IndexError):
        return False
    return True


# Connections that an open loop over HTTP has from the start, as clients in production keep them. To open one costs server and generator as much as several
# queries do, and from few the first burst opens hundreds at once.
WARM = 500


def _go_first() -> None:
    os.setpriority(os.PRIO_PROCESS, 0, int(PRECEDENCE))
    Path("/proc/self/autogroup").write_text(PRECEDENCE)


class Asker:
    """Asks one server through one door, and keeps every result as it came."""

    def __init__(self, weir: Path, models: Path, running: Running, door: str, raw: Path, first: bool) -> None:
        self.weir, self.models, self.running, self.door, self.raw = weir, models, running, door, raw
        # Whether open loops go before the server where both want a core.
        self.first = first

    def run(self, what: str, model: Model, flags: list[str], seconds: float, closed: int | None = None) -> dict:
        """One run; an open loop has the model's deadline."""
        deadline_s = (CLOSED_DEADLINE_MS if closed else model.deadline_ms) / 1000
        asked = ["--target", self.running.doors[self.door], "--endpoint", model.name, *self.data(model)]
        asked += ["--deadline", f"{deadline_s * 1000:.0f}ms", "--duration", f"{seconds}s", "--seed", "7"]
        asked += ["--closed", str(closed)] if closed else []
        asked += ["--connections", str(WARM)] if self.door == "http" and not closed else []
        return self.load(what, ["run", *asked, *flags], seconds + deadline_s)

    def mixed(self, what: str, scenario: Path, seconds: float, flags: list[str]) -> dict:
        """Several models at once, as a scenario file says."""
        flags = ["--target", self.running.doors[self.door], "--scenario", str(scenario), "--seed", "7", *flags]
        return self.load(what, ["run", *flags], seconds + PATIENCE_S)

    def data(self, model: Model) -> list[str]:
        labels = self.models / f"{model.name}.txt"
        flags = ["--data", str(self.models / f"{model.name}.npy")]
        return flags + (["--labels", str(labels), "--label-output", "y"] if labels.exists() else [])

    def load(self, what: str, flags: list[str], seconds: float) -> dict:
        command = [str(self.weir), "load", *flags, *self.running.flags, "-o", "json"]
        processes = self.running.processes
        env = clean_environment() | self.running.env
        processes.settle()
        before = processes.cpu_s()
        asking = subprocess.Popen(
            command,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_go_first if self.first and "--closed" not in flags else None,
        )
        try:
            told, why = asking.communicate(timeout=seconds + SPARE_S)
        except subprocess.TimeoutExpired:
            # Asked to end, it tells what it has.
            asking.send_signal(signal.SIGINT)
            try:
                told, why = asking.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                told, why = "", "it did not end in time"
        finally:
            if asking.poll() is None:
                asking.kill()
                asking.wait()
        cpu_s = cpu_between(before, processes.cpu_s())
        try:
            result = json.loads(told)
        except json.JSONDecodeError:
            result = {"error": {"message": why.strip() or "no result"}}
        result["server_cpu_s"] = round(cpu_s, 4)
        result["server_memory_mb"] = round(processes.memory_mb(), 1)
        result["command"] = [Path(command[0]).name, *command[1:]]
        (self.raw / f"{what}.json").write_text(json.dumps(result, indent=1) + "\n")
        if not processes.alive():
            raise NoResult(f"the server ended: {processes.last_lines()[-300:]}")
        if "error" in result:
            raise NoResult(result["error"]["message"][:200])
        return result


def first_answer(running: Running, model: Model, within_s: float) -> None:
    """Returns once a row is answered."""
    until, path = time.monotonic() + within_s, f"/v2/models/{model.name}/infer"
    zeros = bytes(model.row_bytes())
    tensor: dict = {"name": "x", "datatype": "FP32", "shape": [1, *model.input]}
    if running.binary:
        tensor["parameters"] = {"binary_data_size": len(zeros)}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        body, headers = head + zeros, {"Inference-Header-Content-Length": str(len(head))}
        headers["Content-Type"] = "application/octet-stream"
    else:
        body = json.dumps({"inputs": [tensor | {"data": [0.0] * (len(zeros) // 4)}]}).encode()
        headers = {"Content-Type": "application/json"}
    why = "it does not listen"
    while time.monotonic() < until:
        if not running.processes.alive():
            raise NoResult(f"the server ended: {running.processes.last_lines()[-600:]}")
        connection = http.client.HTTPConnection(running.http, timeout=5)
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            answer = response.read()
            if response.status == 200:
                return
            why = f"{response.status} {answer[:200].decode(errors='replace')}"
        except (OSError, http.client.HTTPException) as error:
            why = str(error)
        finally:
            connection.close()
        time.sleep(0.005)
    raise NoResult(f"no answer in {within_s:.0f} s: {why}")
