"""An ONNX model behind Triton's Python backend: one run of ONNX Runtime for all requests that come at once."""

import json
import os
import sys

sys.path.insert(0, os.environ["PACKAGES"])

import numpy  # noqa: E402 (the backend looks nowhere else)
import onnxruntime  # noqa: E402
import triton_python_backend_utils as pb  # noqa: E402


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["threads"]["string_value"])
        self.session = onnxruntime.InferenceSession(parameters["path"]["string_value"], options)

    def execute(self, requests):
        asked = [pb.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        rows = asked[0] if len(asked) == 1 else numpy.concatenate(asked)
        found, at, responses = self.session.run(["y"], {"x": rows})[0], 0, []
        for one in asked:
            responses.append(pb.InferenceResponse([pb.Tensor("y", found[at : at + len(one)])]))
            at += len(one)
        return responses
