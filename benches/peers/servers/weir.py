"""weir: `weir up` with one node, asked over its own protocol, HTTP and gRPC."""

import json
import subprocess
import time

import scenarios
from processes import Processes, clean_environment

from .common import Place, Running, Wanted

NAME = "weir"
PACKAGES: list[str] = []
DOORS = ("native", "http", "grpc")
CUTS_QUEUES = False


def settings(_group: str) -> list[dict]:
    return scenarios.WEIR_SETTINGS


def start(place: Place, wanted: Wanted) -> Running:
    data, ports = place.scratch / "cluster", place.scratch / "ports.json"
    log = place.log
    command = [str(place.weir), "up", "--free-ports", "--data-dir", str(data), "--ports-file", str(ports)]
    command += ["--cpu-slots", str(wanted.settings["slots"])]
    known = data.exists()
    ports.unlink(missing_ok=True)
    processes, until = Processes(command, {}, log), time.monotonic() + 60
    try:
        while not ports.exists():
            if not processes.alive() or time.monotonic() > until:
                raise RuntimeError(f"weir up: {processes.last_lines()}")
            time.sleep(0.005)
        told = json.loads(ports.read_text())
        node, coordinator = told["nodes"][0], told["coordinators"][0]["rpc"]
        env = {"WEIR_COORDINATORS": coordinator, "WEIR_TOKEN_FILE": str(data / "c1" / "admin.token")}
        if not known:
            apply(place, wanted, env)
    except BaseException:
        processes.stop()
        raise
    return Running(
        processes,
        {"native": f"weir://{coordinator}", "http": f"oip-http://{node['http']}", "grpc": f"oip-grpc://{node['grpc']}"},
        node["http"],
        env=env,
    )


def apply(place: Place, wanted: Wanted, env: dict[str, str]) -> None:
    """Deploys the models; a cluster that is started again on its folder knows them."""
    file = place.scratch / "models.toml"
    tables = []
    for model in wanted.models:
        path = json.dumps(str(place.models / f"{model.name}.onnx"))
        tables.append(f'[[model]]\nname = "{model.name}"\nversion = "1"\npath = {path}\n')
        endpoint = f'[[endpoint]]\nname = "{model.name}"\nmodel = "{model.name}@1"\n'
        tables.append(f'{endpoint}deadline = "{model.deadline_ms}ms"\nlabel_output = "y"\n')
    file.write_text("".join(tables))
    command = [str(place.weir), "apply", "-f", str(file)]
    env = clean_environment() | env
    told = subprocess.run(command, env=env, capture_output=True, text=True, timeout=90, check=False)
    if told.returncode:
        raise RuntimeError(f"weir apply: {told.stderr.strip()}")
