"""The FastAPI service: uvicorn takes the request, a thread of its pool does all of the work, orjson writes the answer."""

import os
import sys
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, File
from fastapi.responses import ORJSONResponse

sys.path.insert(0, str(Path(__file__).parent))

import work

app = FastAPI(default_response_class=ORJSONResponse)


@app.get("/livez")
async def live():
    """Whether it serves."""
    return {"live": True, "pid": os.getpid()}


@app.post("/predict/{model}")
def predict(model: str, image: Annotated[bytes, File()]):
    """The detections of a picture."""
    return {
        "detections": work.detect(image, model),
        "status": "success",
        "track": "B",
        "preprocessing": "cpu",
        "nms_location": "cpu",
    }
