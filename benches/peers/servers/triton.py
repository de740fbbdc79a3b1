"""Triton's own server out of the wheel of nvidia-pytriton, which has no backend but Python's: it calls ONNX Runtime."""

import json
import os
import shutil
import sysconfig

import scenarios
from processes import Processes

from .common import HANDLERS, ONE_THREAD, Place, Running, Wanted, free_ports

NAME = "triton"
PACKAGES = ["nvidia-pytriton==0.7.0", "onnxruntime==1.32.0"]
DOORS = ("http", "grpc")
CUTS_QUEUES = True


def settings(group: str) -> list[dict]:
    return scenarios.SETTINGS[group]


def start(place: Place, wanted: Wanted) -> Running:
    packages = place.packages()
    wheel = packages / "pytriton" / "tritonserver"
    stub = wheel / "python_backend_stubs" / sysconfig.get_python_version() / "triton_python_backend_stub"
    shutil.copy(stub, wheel / "backends" / "python")
    repository = place.scratch / "repository"
    shutil.rmtree(repository, ignore_errors=True)
    for model in wanted.models:
        (repository / model.name / "1").mkdir(parents=True)
        shutil.copy(HANDLERS / "triton_model.py", repository / model.name / "1" / "model.py")
        (repository / model.name / "config.pbtxt").write_text(config(place, wanted, model))
    http, grpc = free_ports(2)
    command = [str(wheel / "bin" / "tritonserver"), "--model-repository", str(repository)]
    command += ["--backend-directory", str(wheel / "backends"), "--allow-metrics", "false"]
    command += ["--http-address", "127.0.0.1", "--http-port", str(http)]
    command += ["--grpc-address", "127.0.0.1", "--grpc-port", str(grpc)]
    libraries = [str(packages / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
    libraries += filter(None, [os.environ.get("LD_LIBRARY_PATH")])
    env = ONE_THREAD | {"PACKAGES": str(packages), "LD_LIBRARY_PATH": ":".join(libraries)}
    processes = Processes(command, env, place.log)
    doors = {"http": f"oip-http://127.0.0.1:{http}", "grpc": f"oip-grpc://127.0.0.1:{grpc}"}
    return Running(processes, doors, f"127.0.0.1:{http}")


def config(place: Place, wanted: Wanted, model: scenarios.Model) -> str:
    settings, dims = wanted.settings, lambda shape: json.dumps(list(shape))
    path = json.dumps(str(place.models / f"{model.name}.onnx"))
    lines = [
        'backend: "python"',
        f"max_batch_size: {settings['batch']}",
        f'input [{{ name: "x", data_type: TYPE_FP32, dims: {dims(model.input)} }}]',
        f'output [{{ name: "y", data_type: TYPE_FP32, dims: {dims(model.output)} }}]',
        f"instance_group [{{ kind: KIND_CPU, count: {settings['workers']} }}]",
        f'parameters: {{ key: "path", value: {{ string_value: {path} }} }}',
        f'parameters: {{ key: "threads", value: {{ string_value: "{settings["threads"]}" }} }}',
    ]
    batching = [f"max_queue_delay_microseconds: {settings['wait_ms'] * 1000}"]
    if wanted.deadline_ms is not None:
        # What waits past its deadline (the request's `timeout`) is refused.
        policy = ["timeout_action: REJECT", "allow_timeout_override: true"]
        policy.append(f"default_timeout_microseconds: {wanted.deadline_ms * 1000}")
        if wanted.queue is not None:
            policy.append(f"max_queue_size: {wanted.queue}")
        batching.append(f"default_queue_policy {{ {', '.join(policy)} }}")
    lines.append(f"dynamic_batching {{ {', '.join(batching)} }}")
    return "\n".join(lines) + "\n"
