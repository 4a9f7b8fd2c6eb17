"""Answers every picture with the same three objects (and thirteen anchors of nothing) and does not look at it."""

import numpy as np
import triton_python_backend_utils as pb_utils

CLASSES, ANCHORS = 80, 16
OBJECTS = ((0, 0.9, (200, 320, 120, 300)), (5, 0.8, (420, 300, 200, 180)), (16, 0.7, (320, 500, 90, 90)))
"""Class, score, and centre x, centre y, width, height in pixels of the input."""


class TritonPythonModel:
    """Triton makes one of these for each instance."""

    def initialize(self, args):  # noqa: ARG002 - Triton's interface
        """Prepare the answer."""
        self._answer = np.zeros((1, 4 + CLASSES, ANCHORS), np.float32)
        for anchor, (class_id, score, box) in enumerate(OBJECTS):
            self._answer[0, :4, anchor] = box
            self._answer[0, 4 + class_id, anchor] = score

    def execute(self, requests):
        """Answer requests, in their order."""
        responses = []
        for request in requests:
            count = pb_utils.get_input_tensor_by_name(request, "images").shape()[0]
            output = pb_utils.Tensor("output0", np.repeat(self._answer, count, axis=0))
            responses.append(pb_utils.InferenceResponse(output_tensors=[output]))
        return responses
