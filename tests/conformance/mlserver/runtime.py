"""An ONNX model, MODEL, as a runtime of MLServer, which has none of its own for them."""

import os

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

OUTPUTS = ("probs", "logits")


class Onnx(MLModel):
    async def load(self) -> bool:
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        images = NumpyCodec.decode_input(payload.inputs[0])
        found = zip(OUTPUTS, self.session.run(OUTPUTS, {"x": images}))
        outputs = [NumpyCodec.encode_output(name, values) for name, values in found]
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=outputs)
