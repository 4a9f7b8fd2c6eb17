"""From tensors to detections: batches into Triton, heads, NMS, boxes back to the picture."""
