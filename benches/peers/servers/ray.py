"""Ray Serve: a deployment for each model, without FastAPI. See handlers/ray_app.py."""

import secrets

import scenarios
from processes import Processes

from .common import HANDLERS, ONE_THREAD, Place, Running, Wanted, free_ports, write_asked, write_metadata

NAME = "ray"
PACKAGES = ["ray[serve]==2.60.0", "onnxruntime==1.32.0"]
DOORS = ("http",)
CUTS_QUEUES = True


def settings(group: str) -> list[dict]:
    return scenarios.SETTINGS[group]


def start(place: Place, wanted: Wanted) -> Running:
    (port,) = free_ports(1)
    asked = write_asked(
        place,
        wanted,
        port=port,
        queue=wanted.queue,
        deadline_ms=wanted.deadline_ms,
        folder=str(place.scratch / "ray"),
    )
    env = ONE_THREAD | asked | {
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
    return Running(processes, {"http": f"oip-http://{address}"}, address, flags=write_metadata(place, wanted))
