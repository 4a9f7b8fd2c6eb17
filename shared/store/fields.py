"""Between a job's hash in Redis and the messages: what its fields are as a job, and as a ticket."""

from typing import Any, get_args

import msgspec

from shared.errors import ExpiredJob
from shared.messages import (
    Affine,
    ImageInfo,
    Job,
    JobOptions,
    Placement,
    Stage,
    Ticket,
    job_from_msgpack,
    job_to_json,
    job_to_msgpack,
    timestamp,
)

PUBLIC = {"json": job_to_json, "msgpack": job_to_msgpack}
"""`MESH_EVENT_ENCODING` -> how a job is written for those who follow it."""

_STAGES = get_args(Stage)
"""What is known here; a newer worker may be at one that is not, and its job is read all the same."""

pack = msgspec.msgpack.Encoder().encode
options_of = msgspec.msgpack.Decoder(JobOptions).decode
_image = msgspec.msgpack.Decoder(ImageInfo).decode
_placement = msgspec.msgpack.Decoder(Placement).decode
_affine = msgspec.msgpack.Decoder(Affine).decode
_timings = msgspec.msgpack.Decoder(dict[str, float]).decode


def job_of(job_id: str, fields: dict[bytes, bytes]) -> Job:
    """The job that these fields of its hash are.

    Raises:
        ExpiredJob: there are none: its result is no longer kept.
    """
    if b"status" not in fields:
        raise ExpiredJob("this job has ended and its result is no longer kept", job_id=job_id)
    if b"result" in fields:
        return job_from_msgpack(fields[b"result"])
    state: dict[str, Any] = {
        "id": job_id,
        "status": fields[b"status"].decode(),
        "stage": stage if (stage := fields.get(b"stage", b"").decode()) in _STAGES else None,
        "model": fields[b"model"].decode(),
        "track": fields[b"track"].decode(),
        "created_at": timestamp(int(fields[b"created_ms"])),
        "attempts": int(fields[b"attempts"]),
        "timings_ms": _timings(fields[b"timings"]),
    }
    job = msgspec.convert(state, Job)
    if b"image" in fields:
        job.image = _image(fields[b"image"])
    return job


def ticket_of(partition: int, entry_id: str, job_id: str, fields: dict[bytes, bytes]) -> Ticket:
    """The ticket of a worker that has claimed the job with these fields."""
    return Ticket(
        id=job_id,
        partition=partition,
        entry_id=entry_id,
        fence=int(fields[b"fence"]),
        attempts=int(fields[b"attempts"]),
        model=fields[b"model"].decode(),
        served_as=fields.get(b"served_as", fields[b"model"]).decode(),
        track=fields[b"track"].decode(),
        options=options_of(fields[b"options"]),
        created_ms=int(fields[b"created_ms"]),
        claimed_ms=int(fields[b"claimed_ms"]),
        queued_ms=int(fields.get(b"decoded_ms", fields[b"created_ms"])),
        deadline_ms=int(fields[b"deadline_ms"]),
        upload_bytes=int(fields[b"upload_bytes"]),
        timings_ms=_timings(fields[b"timings"]),
        image=_image(fields[b"image"]) if b"image" in fields else None,
        placement=_placement(fields[b"placement"]) if b"placement" in fields else None,
        tensor=fields[b"tensor"].decode() if b"tensor" in fields else None,
        slot=fields.get(b"slot", b"").decode(),
        affine=_affine(fields[b"affine"]) if fields.get(b"affine") else None,
        reply_to=fields[b"reply_to"].decode(),
        traceparent=fields[b"traceparent"].decode(),
        tenant=fields.get(b"tenant", b"").decode(),
        crashes=int(fields.get(b"crashes", b"0")),
    )


def processing(ticket: Ticket) -> Job:
    """The job of a ticket, as it is while somebody works on it."""
    return Job(
        id=ticket.id,
        status="processing",
        stage="decoding" if ticket.tensor is None else "inferring",
        model=ticket.model,
        track=ticket.track,
        created_at=timestamp(ticket.created_ms),
        attempts=ticket.attempts,
        image=ticket.image,
        timings_ms=ticket.timings_ms,
    )
