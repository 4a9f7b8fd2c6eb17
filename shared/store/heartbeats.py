"""Heartbeats of all processes, in one hash; a process that has not beaten for a while is not alive."""

import msgspec

from shared.messages import Heartbeat
from shared.store import keys
from shared.store.clock import Clock
from shared.store.connection import Connection

HASH_TTL_S = 60
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Heartbeat).decode


class Heartbeats:
    """Writes and reads heartbeats. `alive_s` is how long one counts."""

    def __init__(self, connection: Connection, clock: Clock, alive_s: float) -> None:
        self._connection = connection
        self._clock = clock
        self._alive_ms = alive_s * 1000

    async def beat(self, beat: Heartbeat) -> None:
        """Say that this process lives."""
        beat.beat_at_ms = int(self._clock.now_ms())
        await self._connection.run(
            ("HSET", keys.WORKERS, f"{beat.kind}:{beat.name}", _encode(beat)),
            ("EXPIRE", keys.WORKERS, HASH_TTL_S),
        )

    async def leave(self, beat: Heartbeat) -> None:
        """Say that this process stops."""
        await self._connection.run(("HDEL", keys.WORKERS, f"{beat.kind}:{beat.name}"))

    async def live(self) -> list[Heartbeat]:
        """All processes that have beaten lately, by kind and name; the rest is forgotten."""
        (fields,) = await self._connection.run(("HGETALL", keys.WORKERS))
        beats = {name: beat for name, value in pairs(fields).items() if (beat := _known(value))}
        oldest_ms = self._clock.now_ms() - self._alive_ms
        dead = [name for name, beat in beats.items() if beat.beat_at_ms < oldest_ms]
        if dead:
            await self._connection.run(("HDEL", keys.WORKERS, *dead))
        return [beat for name, beat in sorted(beats.items()) if name not in dead]


def _known(value: bytes) -> Heartbeat | None:
    try:
        return _decode(value)
    except msgspec.ValidationError:  # of a process of another version, perhaps of a kind that is not known here
        return None


def pairs(answer: list[bytes]) -> dict[bytes, bytes]:
    """A flat list of fields and values as a dict."""
    return dict(zip(answer[::2], answer[1::2], strict=True))
