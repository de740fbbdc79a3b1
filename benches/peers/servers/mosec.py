"""Mosec. It hands a handler the body of a POST and no more, and lets it set no header: see handlers/mosec_server.py."""

import scenarios
from processes import Processes

from .common import HANDLERS, ONE_THREAD, Place, Running, Wanted, free_ports, write_asked, write_metadata

NAME = "mosec"
PACKAGES = ["mosec==0.9.8", "onnxruntime==1.32.0"]
DOORS = ("http",)
CUTS_QUEUES = True


def settings(group: str) -> list[dict]:
    return scenarios.SETTINGS[group]


def start(place: Place, wanted: Wanted) -> Running:
    (port,) = free_ports(1)
    socket = place.scratch / "socket"
    command = [place.python(), str(HANDLERS / "mosec_server.py"), "--address", "127.0.0.1", "--port", str(port)]
    command += ["--path", str(socket), "--log-level", "warning"]
    if wanted.queue is not None:
        command += ["--capacity", str(wanted.queue)]
    if wanted.deadline_ms is not None:
        command += ["--timeout", str(wanted.deadline_ms)]
    processes = Processes(command, ONE_THREAD | write_asked(place, wanted), place.log)
    address = f"127.0.0.1:{port}"
    return Running(processes, {"http": f"oip-http://{address}"}, address, flags=write_metadata(place, wanted))
