"""A look at a Redis from outside, for `visionmesh doctor`: how it is configured and what its clock says. Changes nothing.

INFO tells it all; CONFIG is closed at many hosted ones. Of a Redis Cluster every primary is looked at.
"""

import time
from typing import Any
from urllib.parse import urlsplit

import msgspec
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from shared.errors import StoreUnavailable
from shared.settings import Settings
from shared.store import keys
from shared.store.cluster import SLOTS, slot_of
from shared.store.connection import with_authority

TIMEOUT_S = 2.0


class Checkup(msgspec.Struct, frozen=True):
    """What matters to the mesh. `maxmemory_bytes` is 0 where there is no limit; `skew_s` is Redis' clock less ours.

    `address` and `partitions`, those that lie on it, are told of a cluster's primary only.
    """

    eviction: str
    maxmemory_bytes: int
    has_append_only_file: bool
    skew_s: float
    address: str = ""
    partitions: tuple[int, ...] = ()


class Look(msgspec.Struct, frozen=True):
    """Each Redis that was looked at, and the partitions that none of them holds."""

    each: list[Checkup]
    is_cluster: bool = False
    homeless: tuple[int, ...] = ()


def look(settings: Settings) -> Look:
    """Ask the Redis that the settings name.

    Raises:
        StoreUnavailable: it does not answer, does not let us in, or its URL is none; or a primary of a cluster.
    """
    try:
        with _client(settings) as client:
            client.ping()  # so that what follows is no connection's making
            try:
                rows: Any = client.execute_command("CLUSTER SLOTS")
            except ResponseError:  # it is none, or not to be asked
                return Look([_checkup(client)])
            return _cluster(settings, rows)
    except (RedisError, OSError, ValueError) as error:
        raise StoreUnavailable(str(error)) from None


def _client(settings: Settings, **place: str | int) -> Redis:
    """A client of the Redis that the settings name, or of one elsewhere that is reached the same way."""
    url = with_authority(settings.redis_url, settings.redis_ca)
    client = Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
    client.connection_pool.connection_kwargs.update(place)
    return client


def _cluster(settings: Settings, rows: list[Any]) -> Look:
    named = urlsplit(settings.redis_url).hostname or ""
    owners: list[tuple[str, int] | None] = [None] * SLOTS
    for first, last, (host, port, *_), *_ in rows:
        place = (bytes(host or b"").decode().strip("?") or named, int(port))
        owners[first : last + 1] = [place] * (last + 1 - first)
    of_partition = {partition: owners[slot_of(keys.live(partition))] for partition in range(settings.partitions)}
    each: list[Checkup] = []
    for place in sorted({owner for owner in owners if owner}):
        with _client(settings, host=place[0], port=place[1]) as primary:
            primary.ping()
            held = tuple(partition for partition, owner in of_partition.items() if owner == place)
            each.append(msgspec.structs.replace(_checkup(primary), address=f"{place[0]}:{place[1]}", partitions=held))
    return Look(each, True, tuple(partition for partition, owner in of_partition.items() if owner is None))


def _checkup(client: Redis) -> Checkup:
    before_s = time.time()
    answer: Any = client.time()
    after_s = time.time()
    said: Any = client.info()
    seconds, microseconds = answer
    return Checkup(
        eviction=str(said.get("maxmemory_policy", "noeviction")),
        maxmemory_bytes=int(said.get("maxmemory", 0)),
        has_append_only_file=bool(int(said.get("aof_enabled", 0))),
        skew_s=seconds + microseconds / 1e6 - (before_s + after_s) / 2,
    )
