"""A cluster that serves the demo's `mid` and `big`, for benches/guard and benches/flame."""

import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def release() -> Path:
    """The folder of release builds."""
    command = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--locked"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return Path(json.loads(told.stdout)["target_directory"]) / "release"


def images(path: Path, rows: int) -> None:
    """So many images of numbers between 0 and 1, as .npy."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 1, 28, 28), }}"
    header += " " * (63 - (10 + len(header)) % 64) + "\n"
    values = [(i * 37 % 256) / 255 for i in range(rows * 784)]
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + struct.pack(f"<{len(values)}f", *values))


class Cluster:
    """`weir up` in a folder of its own, until the end of a `with`."""

    def __init__(self, weir: Path) -> None:
        self.weir = weir
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        ports = self.folder / "ports.json"
        command = [weir, "up", "--free-ports", "--data-dir", self.folder / "cluster", "--ports-file", ports]
        self.process = subprocess.Popen(command, stdout=(self.folder / "log").open("w"), stderr=subprocess.STDOUT)
        try:
            self.begin(ports)
        except BaseException:
            self.stop()
            raise

    def begin(self, ports: Path) -> None:
        """Waits until it is there, and applies the models."""
        for _ in range(600):
            if ports.exists() or self.process.poll() is not None:
                break
            time.sleep(0.1)
        if not ports.exists():
            sys.exit(f"weir up does not get ready:\n{(self.folder / 'log').read_text()}")
        told = json.loads(ports.read_text())
        node, coordinator = told["nodes"][0], told["coordinators"][0]["rpc"]
        self.doors = {"native": f"weir://{coordinator}", "http": f"oip-http://{node['http']}", "grpc": f"oip-grpc://{node['grpc']}"}
        self.environment = os.environ | {"WEIR_COORDINATORS": coordinator, "WEIR_TOKEN_FILE": told["token_file"]}
        models = "".join(
            f'[[model]]\nname = "{name}"\npath = "{ROOT}/demo/{name}.onnx"\n[[endpoint]]\nname = "{name}"\nmodel = "{name}"\ndeadline = "100ms"\n'
            for name in ("mid", "big")
        )
        (self.folder / "models.toml").write_text(models)
        images(self.folder / "x.npy", 256)
        apply = [self.weir, "apply", "-f", self.folder / "models.toml"]
        subprocess.run(apply, env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def load(self, endpoint: str, door: str, seconds: int, *flags: str) -> subprocess.Popen:
        """A load on it that runs."""
        command = [self.weir, "load", "run", "--endpoint", endpoint, "--data", self.folder / "x.npy", "--target", self.doors[door]]
        command += ["--duration", f"{seconds}s", "--deadline", "100ms", "--seed", "7", "-o", "json", *flags]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def result(self, load: subprocess.Popen) -> dict:
        """What a load found."""
        try:
            result = json.loads(load.communicate(timeout=60)[0])
        finally:
            load.kill()
        if "error" in result:
            sys.exit(result["error"]["message"])
        return result

    def stop(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait(timeout=60)
        self.temporary.cleanup()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
