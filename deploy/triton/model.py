"""A model of Triton's Python backend that runs `model.onnx` beside it with ONNX Runtime.

All requests of one call are joined into one run and split again. A request whose input does not fit is answered with an
error on its own.
"""

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Triton makes one of these for each instance."""

    def initialize(self, args):
        """Load the graph from the version's folder."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        # Spinning threads would take the cores from the decoders between two batches.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    def execute(self, requests):
        """Answer requests, in their order."""
        tensors = [pb_utils.get_input_tensor_by_name(request, self._input).as_numpy() for request in requests]
        try:
            results = self._session.run(self._outputs, {self._input: np.concatenate(tensors)})
        except Exception as error:  # noqa: BLE001 - whatever ONNX Runtime says goes to the client
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))) for _ in requests]
        responses, start = [], 0
        for tensor in tensors:
            end = start + len(tensor)
            outputs = [
                pb_utils.Tensor(name, np.ascontiguousarray(result[start:end]))
                for name, result in zip(self._outputs, results, strict=True)
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
            start = end
        return responses
