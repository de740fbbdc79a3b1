"""An ONNX model as a runtime of MLServer, which puts the rows of a batch together by itself."""

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Onnx(MLModel):
    async def load(self) -> bool:
        extra = self.settings.parameters.extra
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = extra["threads"]
        self.session = onnxruntime.InferenceSession(extra["path"], options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        outputs = [NumpyCodec.encode_output("y", self.session.run(["y"], {"x": rows})[0])]
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=outputs)
