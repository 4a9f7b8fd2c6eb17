"""One picture through decode, letterbox, Triton and NMS in this thread, with cv2 and tritonclient: what both neighbours do."""

import os
import threading

import cv2
import numpy as np
import tritonclient.grpc as grpcclient

SIDES = {"small": 300, "echo": 640}
"""Input side in pixels of each model."""

GREY = (114, 114, 114)
CONFIDENCE, IOU, MOST = 0.4, 0.45, 300

cv2.setNumThreads(1)  # a request per core is more work done than a core per row of pixels

_local = threading.local()


def detect(data, model):
    """The detections of one encoded picture, in the predecessor's form."""
    side = SIDES[model]
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError("not a picture")
    height, width = picture.shape[:2]
    tensor, ratio, left, top = letterbox(picture, side)
    asked = grpcclient.InferInput("images", [1, side, side, 3], "UINT8")
    asked.set_data_from_numpy(tensor[None])
    output = _client().infer(model, [asked]).as_numpy("output0")[0]
    return _found(output, ratio, left, top, width, height)


def letterbox(picture, side):
    """Ultralytics' letterbox: RGB [side, side, 3], the ratio, and the border's left and top pixels."""
    height, width = picture.shape[:2]
    ratio = min(side / height, side / width)
    new_width, new_height = round(width * ratio), round(height * ratio)
    if (new_width, new_height) != (width, height):
        picture = cv2.resize(picture, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    x, y = (side - new_width) / 2, (side - new_height) / 2
    left, right, top, bottom = round(x - 0.1), round(x + 0.1), round(y - 0.1), round(y + 0.1)
    picture = cv2.copyMakeBorder(picture, top, bottom, left, right, cv2.BORDER_CONSTANT, value=GREY)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), ratio, left, top


def _found(output, ratio, left, top, width, height):
    scores = output[4:].max(axis=0)
    few = np.flatnonzero(scores >= CONFIDENCE)
    output, scores = output[:, few], scores[few]
    classes = output[4:].argmax(axis=0) if len(few) else np.empty(0, int)
    corners = np.stack([output[0] - output[2] / 2, output[1] - output[3] / 2, output[2], output[3]], axis=1)
    kept = cv2.dnn.NMSBoxesBatched(corners.tolist(), scores.tolist(), classes.tolist(), CONFIDENCE, IOU) if len(few) else ()
    detections = []
    for index in list(kept)[:MOST]:
        x, y, w, h = corners[index].tolist()
        detections.append(
            {
                "x1": min(max((x - left) / ratio, 0), width),
                "y1": min(max((y - top) / ratio, 0), height),
                "x2": min(max((x + w - left) / ratio, 0), width),
                "y2": min(max((y + h - top) / ratio, 0), height),
                "confidence": float(scores[index]),
                "class": int(classes[index]),
            }
        )
    return detections


def _client():
    # A connection of its own for each thread: one that is shared saturates.
    if not hasattr(_local, "client"):
        arguments = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        _local.client = grpcclient.InferenceServerClient(os.environ["PEER_TRITON_URL"], channel_args=arguments)
    return _local.client
