"""Results from the mesh's Redis as the client's own; needs the extra `store`."""

import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from visionmesh.errors import ClientError
from visionmesh.results import Result, of_job

if TYPE_CHECKING:
    from shared.store.subscriptions import Delivery

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to listen to. `group` or `after` ask for the durable stream, else it is pub/sub.

    `redis_url` is by default MESH_REDIS_URL; `model` leaves out all others; `group` shares the stream among its consumers and
    remembers what each was given; `after` is an entry's ID, `0` for all that is kept, `$` for what comes from now on.
    """

    redis_url: str = ""
    model: str = ""
    group: str = ""
    consumer: str = ""
    after: str = ""


@asynccontextmanager
async def results(wanted: Wanted) -> AsyncGenerator[AsyncIterator[Result]]:
    """The results, for as long as the block lasts; the subscription stands when it begins.

    Raises:
        StoreUnavailable, InvalidParameter: see `shared.store.subscriptions`.
        ClientError: the package redis is missing.
    """
    try:
        from shared.store import subscriptions
    except ImportError as error:
        raise ClientError(f"{error.name} is missing: pip install 'visionmesh[store]'") from None
    url = wanted.redis_url or os.environ.get("MESH_REDIS_URL") or DEFAULT_REDIS_URL
    if wanted.group or wanted.after:
        source = subscriptions.durable(url, group=wanted.group, consumer=wanted.consumer, after=wanted.after or "$")
    else:
        source = subscriptions.live(url, wanted.model)
    async with source as deliveries:
        found = _wanted(deliveries, wanted.model)
        async with contextlib.aclosing(found):
            yield found


async def _wanted(deliveries: AsyncIterator["Delivery"], model: str) -> AsyncGenerator[Result]:
    async for job, entry_id in deliveries:
        result = of_job(job, entry_id=entry_id)
        if not model or result.model == model:
            yield result
