"""A model of Triton's Python backend that runs `model.onnx` beside it with ONNX Runtime.

    pictures ─┬─ as many as there are cores ─▶ each on a core of its own, with all the others
              └─ the rest, or fewer ─────────▶ together, on all cores

One by one is what costs the least: the layers of one picture fit a core's cache, those of eight do not, and no thread waits
for another at the end of a layer (docs/decisions/0007 has the figures). A request whose input does not fit is answered with
an error on its own.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Triton makes one of these for each instance."""

    def initialize(self, args):
        """Load the graph from the version's folder."""
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._cores = len(os.sched_getaffinity(0))
        self._together = _session(path, self._cores)
        most = json.loads(args["model_config"])["max_batch_size"]
        # One core needs no other session, and a batch of fewer pictures than cores is never taken apart.
        self._alone = _session(path, 1) if most >= self._cores > 1 else self._together
        self._threads = ThreadPoolExecutor(self._cores)
        self._input = self._together.get_inputs()[0].name
        self._outputs = [output.name for output in self._together.get_outputs()]

    def execute(self, requests):
        """Answer requests, in their order."""
        tensors = [pb_utils.get_input_tensor_by_name(request, self._input).as_numpy() for request in requests]
        try:
            results = self._run(np.concatenate(tensors) if len(tensors) > 1 else tensors[0])
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

    def _run(self, images):
        """The graph's outputs for `images` [pictures, ...], each with the pictures first."""
        alone = len(images) - len(images) % self._cores
        runs = [self._threads.submit(self._outputs_of, self._alone, images[at : at + 1]) for at in range(alone)]
        wait(runs)  # of all, though one fails: Triton takes the input's memory back when it has an answer
        parts = [run.result() for run in runs]
        if alone < len(images):
            parts.append(self._outputs_of(self._together, images[alone:]))
        return parts[0] if len(parts) == 1 else [np.concatenate(results) for results in zip(*parts, strict=True)]

    def _outputs_of(self, session, images):
        return session.run(self._outputs, {self._input: images})


def _session(path, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would take the cores from the decoders between two batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
