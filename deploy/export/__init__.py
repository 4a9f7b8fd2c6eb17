"""From ONNX exports to what Triton serves."""
