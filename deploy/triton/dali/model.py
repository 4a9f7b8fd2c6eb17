"""A model of Triton's Python backend that stands for the DALI backend where there is no GPU: the same pipeline, on the CPU.

Requests of one call may have pictures padded to different lengths; all of them make one batch. A picture that cannot be decoded
fails the batch, so each request is then run on its own, and only the one that holds the picture fails.
"""

import json
import os

import letterbox
import numpy as np
import triton_python_backend_utils as pb_utils

NAMES = ("encoded", "length", "affine")


class TritonPythonModel:
    """Triton makes one of these for each instance."""

    def initialize(self, args):
        """Build the pipeline for the size that the configuration names."""
        config = json.loads(args["model_config"])
        self._height, self._width, _ = (int(side) for side in config["output"][0]["dims"])
        self._max_batch = config["max_batch_size"]
        self._build()

    def execute(self, requests):
        """Answer requests, in their order."""
        inputs = [[pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in NAMES] for request in requests]
        try:
            return self._answers(inputs)
        except Exception as error:  # noqa: BLE001 - DALI raises many kinds
            return [self._alone(each, error) if len(requests) > 1 else self._failed(error) for each in inputs]

    def _answers(self, inputs):
        for position, name in enumerate(NAMES):
            self._pipeline.feed_input(name, [sample for each in inputs for sample in each[position]])
        (images,) = self._pipeline.run()
        images = images.as_array()
        responses, start = [], 0
        for encoded, *_ in inputs:
            end = start + len(encoded)
            output = pb_utils.Tensor("images", np.ascontiguousarray(images[start:end]))
            responses.append(pb_utils.InferenceResponse(output_tensors=[output]))
            start = end
        return responses

    def _alone(self, each, _error):
        self._build()
        try:
            return self._answers([each])[0]
        except Exception as error:  # noqa: BLE001 - as above
            return self._failed(error)

    def _failed(self, error):
        self._build()  # a DALI pipeline that has failed is no longer valid
        said = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(said[:500]))

    def _build(self):
        threads = len(os.sched_getaffinity(0))
        self._pipeline = letterbox.on_cpu(self._width, self._height, self._max_batch, threads)
