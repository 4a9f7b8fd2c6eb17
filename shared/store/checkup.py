"""A look at a Redis from outside, for `visionmesh doctor`: how it is configured and what its clock says. Changes nothing.

INFO tells it all; CONFIG is closed at many hosted ones.
"""

import time
from typing import Any

import msgspec
from redis import Redis
from redis.exceptions import RedisError

from shared.errors import StoreUnavailable
from shared.settings import Settings
from shared.store.connection import with_authority

TIMEOUT_S = 2.0


class Checkup(msgspec.Struct, frozen=True):
    """What matters to the mesh. `maxmemory_bytes` is 0 where there is no limit; `skew_s` is Redis' clock less ours."""

    eviction: str
    maxmemory_bytes: int
    has_append_only_file: bool
    skew_s: float


def look(settings: Settings) -> Checkup:
    """Ask the Redis that the settings name.

    Raises:
        StoreUnavailable: it does not answer, does not let us in, or its URL is none.
    """
    try:
        with Redis.from_url(
            with_authority(settings.redis_url, settings.redis_ca), socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        ) as client:
            client.ping()  # so that what follows is no connection's making
            before_s = time.time()
            answer: Any = client.time()
            after_s = time.time()
            said: Any = client.info()
    except (RedisError, OSError, ValueError) as error:
        raise StoreUnavailable(str(error)) from None
    seconds, microseconds = answer
    return Checkup(
        eviction=str(said.get("maxmemory_policy", "noeviction")),
        maxmemory_bytes=int(said.get("maxmemory", 0)),
        has_append_only_file=bool(int(said.get("aof_enabled", 0))),
        skew_s=seconds + microseconds / 1e6 - (before_s + after_s) / 2,
    )
