"""What the tests of the store share: settings on a real, emptied Redis, a model, and a job taken through its stages."""

import msgspec
import pytest

from shared import models
from shared.messages import ImageInfo, Job, JobOptions, Outcome, Placement, Ticket
from shared.settings import Settings, read
from shared.store import Store

MODEL = models.load().get("small")
BODY = b"picture"


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return read({"MESH_REDIS_URL": redis_url, "MESH_LEASE_S": "0.2", "MESH_JOB_DEADLINE_S": "30"})


async def accepted(store: Store, **changes: object) -> Job:
    arguments = {"model": MODEL, "options": JobOptions(), "body": BODY, "upload_bytes": len(BODY)} | changes
    job_id = arguments.pop("job_id", None) or store.jobs.new_id(arguments.get("idempotency_key"))  # type: ignore[arg-type]
    return await store.jobs.accept(job_id, **arguments)  # type: ignore[arg-type]


async def decoded(store: Store, ticket: Ticket) -> bool:
    return await store.claims.decoded(
        ticket,
        image=ImageInfo(640, 480, "jpeg"),
        placement=Placement(0.5, 0.5, 0, 30),
        tensor=b"\x72" * MODEL.tensor_bytes,
        timings_ms={"preprocess": 2.0},
    )


async def finished(store: Store, ticket: Ticket) -> bool:
    (kept,) = await store.endings.finish([(ticket, Outcome(detections=[], batch_size=1, timings_ms={"inference": 3.0}))])
    return kept


def changed(settings: Settings, **changes: object) -> Settings:
    return msgspec.structs.replace(settings, **changes)
