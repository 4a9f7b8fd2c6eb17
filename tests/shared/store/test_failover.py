"""One Redis with a replica behind a name that moves: the primary is demoted and keeps its connections, as some failovers do."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from deploy.local import ports
from deploy.local.valkey import Valkey
from shared.errors import StoreUnavailable
from shared.messages import Job
from shared.settings import read
from shared.store import Store, connect
from tests.chaos.proxy import Proxy
from tests.conftest import Background, _until
from tests.shared.store.conftest import accepted, decoded, finished


@pytest.fixture
def pair(background: Background, tmp_path: Path) -> Iterator[list[Valkey]]:
    servers = [Valkey(tmp_path / name, ports.free(), {"repl-diskless-sync-delay": "0"}) for name in ("first", "second")]
    for server in servers:
        background.run(server.start())
    for server in servers:
        background.run(_until(server.ready))
    yield servers
    for server in servers:
        background.run(server.stop(5))


def command(server: Valkey, *words: object) -> object:
    with contextlib.closing(redis.Redis.from_url(server.url)) as client:
        return client.execute_command(*words)


async def surely(store: Store) -> Job:
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(StoreUnavailable):
                return await accepted(store)
            await asyncio.sleep(0.05)


def test_a_demoted_primary_is_left_for_the_new_one(pair: list[Valkey]) -> None:
    first, second = pair

    async def scenario() -> None:
        async with Proxy(first.port) as name:
            settings = read({"MESH_REDIS_URL": f"redis://127.0.0.1:{name.port}/0", "MESH_LEASE_S": "0.5"})
            async with (
                connect(settings) as store,
                store.consumer("preprocess", "p") as preprocess,
                store.consumer("inference:small", "i") as inference,
            ):
                command(second, "REPLICAOF", "127.0.0.1", first.port)
                kept = await accepted(store)
                with contextlib.closing(redis.Redis.from_url(first.url)) as client:
                    client.set("replicated", "with all before it")
                    assert client.wait(1, 10_000) == 1
                waiting = asyncio.create_task(inference.take(1, 2))  # blocks at the old primary
                await asyncio.sleep(0.05)
                command(second, "REPLICAOF", "NO", "ONE")
                command(first, "REPLICAOF", "127.0.0.1", second.port)
                name.leads_to(second.port)  # whoever is connected stays so: only we can leave
                job = await surely(store)
                assert await waiting == []
                taken: set[str] = set()
                async with asyncio.timeout(20):
                    while taken != {kept.id, job.id}:
                        for ticket in await preprocess.take(2, 0.5):
                            assert await decoded(store, ticket)
                            preprocess.done(ticket)
                        for ticket in await inference.take(2, 0.5):
                            assert await finished(store, ticket)
                            inference.done(ticket)
                            taken.add(ticket.id)
                assert (await store.jobs.read(kept.id)).status == "succeeded"

    asyncio.run(scenario())
