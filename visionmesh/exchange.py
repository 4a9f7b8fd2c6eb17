"""Requests and their retries without a network: what both clients do, written once.

    flow (a generator) ──yields Request or Pause──▶ Client or AsyncClient ──▶ httpx, sleep
                       ◀──sent an Answer, or thrown a ClientError──

A flow decides; a client only performs. `exchange` is the flow of one request with its retries, and the flows of
`visionmesh.flows` are made of it.
"""

import random
import time
from collections.abc import Generator, Mapping
from typing import NamedTuple, TypeAlias, TypeVar

import msgspec

from shared.errors import Overloaded, StillAccepting, StoreUnavailable, TooManyRequests
from visionmesh import errors
from visionmesh.errors import MeshError, TimedOut, Unreachable

READ_TIMEOUT_S = 15.0

T = TypeVar("T")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request. `read_timeout_s` is how long the answer may keep quiet."""

    method: str
    path: str
    params: dict[str, str] = {}
    headers: dict[str, str] = {}
    content: bytes | None = None
    read_timeout_s: float = READ_TIMEOUT_S


class Pause(msgspec.Struct, frozen=True):
    """A time in which to do nothing."""

    seconds: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP answer; `headers` by lower-case name."""

    status: int
    headers: Mapping[str, str]
    content: bytes


NOTHING = Answer(status=204, headers={}, content=b"")
"""What a `Pause` is answered with."""

Flow: TypeAlias = Generator[Request | Pause, Answer, T]
"""A course of requests that ends with a `T`."""


class Retries(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how long to try again: at most `at_most` times and `within_s` altogether.

    Pauses are drawn with full jitter, uniformly from 0 to a bound that doubles from `first_pause_s` to `longest_pause_s`; a
    Retry-After comes on top, so that clients sent away at the same time do not come back at the same time.
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/)
    """

    at_most: int = 6
    within_s: float = 60.0
    first_pause_s: float = 0.2
    longest_pause_s: float = 10.0

    def pause_s(self, failures: int, retry_after_s: float | None = None) -> float:
        """How long to wait after so many failures in a row, in seconds."""
        bound_s = min(self.first_pause_s * 2 ** (failures - 1), self.longest_pause_s)
        return (retry_after_s or 0.0) + random.uniform(0, bound_s)  # noqa: S311 - jitter needs no secrecy


class Deadline:
    """A moment after which nothing is begun any more."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._at_s = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """The time left, never below zero."""
        return max(self._at_s - time.monotonic(), 0.0)


class Terms(NamedTuple):
    """How long and how often a call may try."""

    retries: Retries
    deadline: Deadline


RETRIED: tuple[type[MeshError], ...] = (
    Unreachable,
    TimedOut,
    TooManyRequests,
    Overloaded,
    StoreUnavailable,
    StillAccepting,  # a first try whose answer was lost is still on its way into the mesh
)
"""What another try may mend. Every request that we send can be repeated: a submission carries its idempotency key."""


def exchange(request: Request, terms: Terms) -> Flow[Answer]:
    """Send a request until it is answered well.

    Raises:
        MeshError: it was refused, or no try got through in time.
    """
    retries, deadline = terms
    patience = Deadline(retries.within_s)
    failures = 0
    while True:
        try:
            answer = yield request
            if answer.status < 400:
                return answer
            raise errors.of_answer(answer.status, answer.headers, answer.content)
        except RETRIED as error:
            failures += 1
            pause_s = retries.pause_s(failures, error.retry_after_s)
            if failures > retries.at_most or pause_s > min(patience.left_s(), deadline.left_s()):
                raise
        yield Pause(pause_s)
