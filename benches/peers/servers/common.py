"""What the servers' modules share."""

import json
import socket
from dataclasses import dataclass, field
from pathlib import Path

from processes import Processes
from scenarios import Model

HANDLERS = Path(__file__).resolve().parent.parent / "handlers"


@dataclass
class Place:
    """Where things lie: an installed server, the models, a folder for what a start needs, and its log."""

    installed: Path
    models: Path
    scratch: Path
    log: Path
    weir: Path

    def python(self) -> str:
        return str(self.installed / "bin" / "python")

    def packages(self) -> Path:
        return next((self.installed / "lib").glob("python3*/site-packages"))


@dataclass
class Running:
    """A server that was started."""

    processes: Processes
    # Door -> what `weir load --target` takes, without a model's name.
    doors: dict[str, str]
    # host:port where the first answer is looked for.
    http: str
    binary: bool = True
    # More of what `weir load` needs.
    flags: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """Which models, by which settings; for open loops, how many may wait, and how long."""

    models: tuple[Model, ...]
    settings: dict
    queue: int | None = None
    deadline_ms: int | None = None


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def write_metadata(place: Place, wanted: Wanted) -> list[str]:
    """Of a server that can only infer, for `weir load`: its flags for that."""
    metadata = place.scratch / "metadata.json"
    models = [model.metadata() for model in wanted.models]
    metadata.write_text(json.dumps({"extensions": ["binary_tensor_data"], "models": models}))
    return ["--metadata", str(metadata)]


def write_asked(place: Place, wanted: Wanted, **more: object) -> dict[str, str]:
    """What a handler is to serve, and how: the variable that names the file."""
    listed = [
        {
            "name": model.name,
            "path": str(place.models / f"{model.name}.onnx"),
            "input": model.input,
            "output": model.output,
        }
        for model in wanted.models
    ]
    asked = place.scratch / "asked.json"
    asked.write_text(json.dumps({"models": listed, "settings": wanted.settings, **more}))
    return {"ASKED": str(asked)}


ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
