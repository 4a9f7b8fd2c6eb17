"""What is wrong with a detector that was to be served, apart from what reads it: whoever tells the error needs no ONNX."""


class ExportError(Exception):
    """The ONNX file cannot be served. The message is one line."""


class ParityError(Exception):
    """What would be served does not find what the detector finds. The message is one line."""
