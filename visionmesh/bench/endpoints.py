"""Where a benchmark sends its pictures: the bytes of a request, and what its answer means. A row for each endpoint."""

from collections.abc import Callable

import msgspec

from visionmesh.bench.connection import Address, Answer

BOUNDARY = b"visionmesh-bench"
WAIT_S = 30


class Outcome(msgspec.Struct, frozen=True):
    """What became of a picture. `error` is empty when all is well; a job's answer also tells its stages and its batch."""

    error: str = ""
    timings_ms: dict[str, float] = {}
    batch_size: int | None = None


class _Problem(msgspec.Struct):
    code: str = ""


class _Job(msgspec.Struct):
    status: str = ""
    timings_ms: dict[str, float] = {}
    batch_size: int | None = None
    error: _Problem | None = None


class Endpoint(msgspec.Struct, frozen=True):
    """`path` with `{model}` in it, header fields, whether the picture is a multipart's part, and how an answer is read."""

    path: str
    fields: tuple[str, ...]
    is_multipart: bool
    read: Callable[[Answer], Outcome]


_job = msgspec.msgpack.Decoder(_Job).decode
_problem = msgspec.json.Decoder(_Problem).decode


def _read_job(answer: Answer) -> Outcome:
    if answer.status != 200:
        return Outcome(error="unfinished") if answer.status == 202 else _refused(answer)
    job = _job(answer.body)
    if job.status == "succeeded":
        return Outcome(timings_ms=job.timings_ms, batch_size=job.batch_size)
    return Outcome(error=f"{job.status} {job.error.code if job.error else ''}".strip())


def _read_status(answer: Answer) -> Outcome:
    return Outcome() if 200 <= answer.status < 300 else _refused(answer)


def _refused(answer: Answer) -> Outcome:
    try:
        return Outcome(error=f"{answer.status} {_problem(answer.body).code}".strip())
    except msgspec.DecodeError:
        return Outcome(error=str(answer.status))


_RAW = "content-type: application/octet-stream"

ENDPOINTS = {
    "jobs": Endpoint(
        "/v1/jobs?model={model}", (_RAW, "accept: application/msgpack", f"prefer: wait={WAIT_S}"), False, _read_job
    ),
    "predict": Endpoint("/predict/{model}", (), True, _read_status),
    "submit": Endpoint("/v1/jobs?model={model}", (_RAW, "prefer: respond-async"), False, _read_status),
}
"""`jobs` waits for the job and reads its stages, `predict` is the predecessor's, `submit` does not wait for the job."""


def request(endpoint: Endpoint, address: Address, model: str, picture: bytes, *, key: str = "") -> bytes:
    """The bytes of the request that sends a picture to a model."""
    fields = list(endpoint.fields)
    if endpoint.is_multipart:
        head = b'--%b\r\ncontent-disposition: form-data; name="image"; filename="picture"\r\n' % BOUNDARY
        picture = b"%bcontent-type: application/octet-stream\r\n\r\n%b\r\n--%b--\r\n" % (head, picture, BOUNDARY)
        fields.append(f"content-type: multipart/form-data; boundary={BOUNDARY.decode()}")
    if key:
        fields.append(f"authorization: Bearer {key}")
    lines = [
        f"POST {endpoint.path.format(model=model)} HTTP/1.1",
        f"host: {address.host}:{address.port}",
        f"content-length: {len(picture)}",
        *fields,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + picture


def get(address: Address, path: str, *, key: str = "") -> bytes:
    """The bytes of a request that reads something as JSON."""
    lines = [f"GET {path} HTTP/1.1", f"host: {address.host}:{address.port}", "accept: application/json"]
    if key:
        lines.append(f"authorization: Bearer {key}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n"
