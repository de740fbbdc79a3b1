"""Ray Serve: a deployment for each model, without FastAPI. See handlers/ray_app.py."""

import json
import secrets

import scenarios
from processes import Processes

from .common import HANDLERS, ONE_THREAD, Place, Running, Wanted, free_ports

NAME = "ray"
PACKAGES = ["ray[serve]==2.60.0", "onnxruntime==1.32.0"]
DOORS = ("http",)
CUTS_QUEUES = True


def settings(group: str) -> list[dict]:
    return scenarios.SETTINGS[group]


def start(place: Place, wanted: Wanted) -> Running:
    (port,) = free_ports(1)
    metadata = place.scratch / "metadata.json"
    models = [model.metadata() for model in wanted.models]
    metadata.write_text(json.dumps({"extensions": ["binary_tensor_data"], "models": models}))
    asked = {
        "models": [
            {
                "name": model.name,
                "path": str(place.models / f"{model.name}.onnx"),
                "input": model.input,
                "output": model.output,
            }
            for model in wanted.models
        ],
        "settings": wanted.settings,
        "port": port,
        "queue": wanted.queue,
        "deadline_ms": wanted.deadline_ms,
        "folder": str(place.scratch / "ray"),
    }
    file = place.scratch / "asked.json"
    file.write_text(json.dumps(asked))
    env = ONE_THREAD | {
        "ASKED": str(file),
        "RAY_USAGE_STATS_ENABLED": "0",
        # By its name for other systems; here too it makes all of its processes listen on loopback only.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Else it writes one into the user's folder.
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_DEDUP_LOGS": "0",
        # What its documentation names for throughput: user code and router on the replica's and the proxy's own loops.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_memory_monitor_refresh_ms": "0",
    }
    processes = Processes([place.python(), str(HANDLERS / "ray_app.py")], env, place.log)
    address = f"127.0.0.1:{port}"
    return Running(processes, {"http": f"oip-http://{address}"}, address, flags=["--metadata", str(metadata)])
