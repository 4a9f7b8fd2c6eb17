"""The events of one job, as server-sent events, without a network: what to ask, what was heard, when to ask again.

The stream is asked for again, from the last event heard, whenever it breaks off before the job has ended. A mesh that has no
such endpoint is long-polled instead.
(https://html.spec.whatwg.org/multipage/server-sent-events.html)
"""

from collections.abc import Iterator

import msgspec

from shared.errors import MethodNotAllowed, NotFound
from shared.messages import TERMINAL
from visionmesh.errors import MeshError, Unreachable
from visionmesh.exchange import RETRIED, Request, Retries
from visionmesh.flows import job_path
from visionmesh.results import Result

QUIET_S = 60.0
"""A stream that says nothing for so long, not even a comment, is taken for broken."""

_decode = msgspec.json.Decoder(Result).decode


class Following:
    """How far a job's events have been followed."""

    def __init__(self, job_id: str, retries: Retries) -> None:
        self.job_id = job_id
        self.ended = False
        self.by_polling = False
        """Whether the mesh has no events to send, so that the job must be read."""
        self._retries = retries
        self._failures = 0
        self._last_event_id, self._event_id = "", ""
        self._seen: tuple[str, str | None] | None = None
        self._buffer = b""
        self._data: list[bytes] = []

    def request(self) -> Request:
        """Ask for the events that have not been heard."""
        self._buffer, self._data, self._event_id = b"", [], self._last_event_id
        headers = {"accept": "text/event-stream"}
        if self._last_event_id:
            headers["last-event-id"] = self._last_event_id
        return Request(method="GET", path=f"{job_path(self.job_id)}/events", headers=headers, read_timeout_s=QUIET_S)

    def hear(self, chunk: bytes) -> Iterator[Result]:
        """The events that a piece of the stream completes."""
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        for line in lines:
            event = self._line(line.removesuffix(b"\r"))
            if event is not None and self.is_news(event):
                yield event

    def is_news(self, result: Result) -> bool:
        """Whether the job is not where it was when it was last seen. Its end is the last news there is."""
        state = (result.status, result.stage)
        if self.ended or state == self._seen:
            return False
        self._failures, self._seen = 0, state
        self.ended = result.status in TERMINAL
        return True

    def lost(self, error: MeshError | None) -> float:
        """The stream broke off; how long to wait before asking again, in seconds.

        Raises:
            MeshError: asking again would not help, or has not.
        """
        if isinstance(error, NotFound | MethodNotAllowed):
            self.by_polling = True
            return 0.0
        self._failures += 1
        error = error or Unreachable("the mesh ended the events before the job had ended")
        if not isinstance(error, RETRIED) or self._failures > self._retries.at_most:
            raise error
        return self._retries.pause_s(self._failures, error.retry_after_s)

    def _line(self, line: bytes) -> Result | None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"id":
            self._event_id = value.decode("utf-8", "replace")
        elif not line:
            self._last_event_id = self._event_id  # only now: an event that is cut off was not heard
            if not self._data:
                return None
            data, self._data = b"\n".join(self._data), []
            try:
                return _decode(data)
            except msgspec.DecodeError:
                return None  # an event of a kind that this client does not know
        return None
