"""An ONNX model, MODEL, behind Triton's Python backend: what its wheel on PyPI has."""

import os
import sys

sys.path.insert(0, os.environ["PACKAGES"])

import onnxruntime  # noqa: E402 (the backend looks nowhere else)
import triton_python_backend_utils as pb  # noqa: E402

OUTPUTS = ("probs", "logits")


class TritonPythonModel:
    def initialize(self, args):
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"])

    def execute(self, requests):
        def response(request):
            images = pb.get_input_tensor_by_name(request, "x").as_numpy()
            found = self.session.run(OUTPUTS, {"x": images})
            return pb.InferenceResponse([pb.Tensor(*named) for named in zip(OUTPUTS, found)])

        return [response(request) for request in requests]
