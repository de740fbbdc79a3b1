"""MLServer with a runtime of a few lines, since it has none for ONNX. It has no binary extension: HTTP carries JSON."""

import json

import scenarios
from processes import Processes

from .common import HANDLERS, ONE_THREAD, Place, Running, Wanted, free_ports

NAME = "mlserver"
# With a newer uvloop its worker processes do not start.
PACKAGES = ["mlserver==1.7.1", "uvloop==0.21.0", "onnxruntime==1.32.0"]
DOORS = ("http", "grpc")
# It queues without a limit, and drops nothing.
CUTS_QUEUES = False


def settings(group: str) -> list[dict]:
    return scenarios.SETTINGS[group]


def start(place: Place, wanted: Wanted) -> Running:
    http, grpc, metrics = free_ports(3)
    chosen = wanted.settings
    folder = place.scratch / "models"
    folder.mkdir(exist_ok=True)
    # One worker is the server's own process; more are processes of their own.
    workers = 0 if chosen["workers"] == 1 else chosen["workers"]
    (folder / "settings.json").write_text(
        json.dumps({"host": "127.0.0.1", "parallel_workers": workers, "debug": False, "metrics_port": metrics})
    )
    for model in wanted.models:
        (folder / model.name).mkdir(exist_ok=True)
        told = {"implementation": "mlserver_runtime.Onnx", **model.metadata()}
        if chosen["batch"] > 1:
            # Without a wait it does not batch at all.
            told |= {"max_batch_size": chosen["batch"], "max_batch_time": max(1, chosen["wait_ms"]) / 1000}
        extra = {"path": str(place.models / f"{model.name}.onnx"), "threads": chosen["threads"]}
        told["parameters"] = {"version": "1", "extra": extra}
        (folder / model.name / "model-settings.json").write_text(json.dumps(told))
    env = ONE_THREAD | {"PYTHONPATH": str(HANDLERS), "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"MLSERVER_HTTP_PORT": str(http), "MLSERVER_GRPC_PORT": str(grpc)}
    command = [str(place.installed / "bin" / "mlserver"), "start", str(folder)]
    processes = Processes(command, env, place.log, cwd=folder)
    doors = {"http": f"oip-http://127.0.0.1:{http}", "grpc": f"oip-grpc://127.0.0.1:{grpc}"}
    return Running(processes, doors, f"127.0.0.1:{http}", binary=False)
