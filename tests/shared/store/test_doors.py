"""The doors to Redis: TLS, and a user per role that can do its work and nothing else."""

import asyncio
import contextlib
import hashlib
import os
import ssl
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
from redis.exceptions import NoPermissionError, ResponseError

from deploy.local import ports
from deploy.local.process import Process, python_module
from deploy.local.valkey import Valkey
from shared.access import Tenant
from shared.errors import CorruptImage, Internal, StoreUnavailable
from shared.heartbeat import beat_forever
from shared.messages import TERMINAL, JobOptions
from shared.models import load
from shared.settings import Settings, SettingsError, read
from shared.store import Store, connect
from tests.conftest import WEBHOOK_SECRET, Background, Certificates, _until
from tests.gateway.receiver import receiving
from tests.shared.store.conftest import BODY, accepted, changed, decoded, finished

USERS = Path(__file__).parents[3] / "deploy" / "redis" / "users.acl"
ROLES = ("gateway", "tasks", "preprocess", "inference", "subscriber")


# --- TLS ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def tls_in_front(port: int, certificates: Certificates) -> AsyncGenerator[int]:
    """TLS ends here and goes on to the Valkey, which is built without it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    pipes: set[asyncio.Task[None]] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while block := await reader.read(65536):
                writer.write(block)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", port)
        both = {asyncio.create_task(pipe(reader, there[1])), asyncio.create_task(pipe(there[0], writer))}
        pipes.update(both)
        await asyncio.gather(*both, return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in pipes:
            task.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)


def test_a_store_over_tls(settings: Settings, valkey: Valkey, certificates: Certificates) -> None:
    async def scenario() -> None:
        async with tls_in_front(valkey.port, certificates) as port:
            url = f"rediss://127.0.0.1:{port}/0"
            safe = changed(settings, redis_url=url, redis_ca=str(certificates.authority))
            async with connect(safe) as store, store.events, store.consumer("preprocess", "p") as preprocess:
                job = await accepted(store)
                async with store.events.watch(job.id) as waiter:
                    (ticket,) = await preprocess.take(1)
                    assert await store.endings.fail(ticket, CorruptImage("no"))
                    preprocess.done(ticket)
                    ended = await waiter.wait(5)
                    assert ended is not None
                    assert ended.status == "failed"
            stranger = Store(changed(settings, redis_url=url))  # trusts the system's authorities, of which ours is none
            with pytest.raises(StoreUnavailable, match="certificate"):
                await stranger.ping()
            await stranger.close()

    asyncio.run(scenario())


def test_authorities_that_are_no_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="MESH_REDIS_CA"):
        read({"MESH_REDIS_CA": str(tmp_path / "none.pem")})


# --- users ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(background: Background, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    folder = tmp_path_factory.mktemp("acl")
    text = USERS.read_text("utf-8")
    for role in ROLES:
        text = text.replace(f"{role.upper()}_SHA256", hashlib.sha256(f"{role}-password".encode()).hexdigest())
    acme = "user acme on >acme-password resetkeys resetchannels &mesh:tenant:acme:* -@all +subscribe +psubscribe +@connection\n"
    (folder / "users.acl").write_text(text + acme)
    server = Valkey(folder, ports.free(), {"aclfile": str(folder / "users.acl")})
    background.run(server.start())
    background.run(_until(server.ready))
    yield server
    background.run(server.stop(5))


def url_of(server: Valkey, role: str) -> str:
    return f"redis://{role}:{role}-password@127.0.0.1:{server.port}/0"


def test_each_role_can_do_its_work(guarded: Valkey, settings: Settings) -> None:
    def as_role(role: str) -> Settings:
        return changed(settings, redis_url=url_of(guarded, role))

    async def scenario() -> None:
        async with (
            connect(as_role("gateway")) as gateway,
            gateway.events,
            connect(as_role("preprocess")) as preprocess,
            connect(as_role("inference")) as inference,
            preprocess.consumer("preprocess", "p") as decoding,
            inference.consumer("inference:small", "i") as inferring,
        ):
            for store, kind in ((gateway, "gateway"), (preprocess, "preprocess"), (inference, "inference")):
                beat = asyncio.create_task(beat_forever(store, 10, kind, kind, dict))  # type: ignore[arg-type]
                async with asyncio.timeout(5):
                    while kind not in {one.kind for one in await gateway.heartbeats.live()}:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                beat.cancel()
                await asyncio.gather(beat, return_exceptions=True)
            await gateway.rates.take(Tenant(name="acme", rate_per_s=10))
            staged = gateway.jobs.new_id()
            await gateway.uploads.append(staged, BODY)
            await accepted(gateway, job_id=staged, body=None)
            job = await accepted(gateway, idempotency_key="k" * 8, tenant=Tenant(name="acme"), reply_to=gateway.events.channel)
            with gateway.events.expect(job.id) as waiter:
                for ticket in await decoding.take(2):
                    assert await preprocess.uploads.get(ticket) == BODY
                    assert await decoded(preprocess, ticket)
                    decoding.done(ticket)
                for ticket in await inferring.take(2):
                    assert (await inference.tensors.get_many([ticket]))[0]
                    assert await finished(inference, ticket)
                    inferring.done(ticket)
                ended = await waiter.wait(5)
                assert ended is not None
                assert ended.status == "succeeded"
            for store, consumer, stage in ((preprocess, decoding, "preprocess"), (inference, inferring, "inference")):
                await accepted(gateway, idempotency_key=f"{stage}-key")
                (ticket,) = await decoding.take(1)
                if stage == "inference":
                    assert await decoded(preprocess, ticket)
                    decoding.done(ticket)
                    (ticket,) = await inferring.take(1)
                await asyncio.sleep(settings.lease_s)  # so that the lease is renewed by this user
                assert await store.endings.fail(ticket, Internal("no"))
                consumer.done(ticket)
                await store.endings.sweep(0)
            assert len(await gateway.dead_letters.list()) == 2
            for letter in await gateway.dead_letters.list():
                await gateway.dead_letters.replay(letter.id, load())
            canceled = await accepted(gateway)
            assert (await gateway.endings.cancel(canceled.id)).status in TERMINAL
            await gateway.depths(["small"])
            await gateway.budget()
            await preprocess.waiting_tensors(["small"])

    asyncio.run(scenario())


def test_the_tasks_can_do_theirs(guarded: Valkey, settings: Settings, background: Background, tmp_path: Path) -> None:
    async def told(url: str) -> None:
        async with (
            connect(changed(settings, redis_url=url_of(guarded, "gateway"))) as store,
            store.consumer("preprocess", "p") as preprocess,
        ):
            job = await accepted(store, options=JobOptions(callback_url=url))
            for ticket in await preprocess.take(10):  # among them perhaps what another test left
                assert await store.endings.fail(ticket, CorruptImage("no"))
                preprocess.done(ticket)
            async with asyncio.timeout(20):
                while not await store.webhooks.deliveries(job.id):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    environ = {
        **os.environ,
        "MESH_REDIS_URL": url_of(guarded, "tasks"),
        "MESH_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "MESH_WEBHOOK_PRIVATE_HOSTS": "127.0.0.1",
    }
    process = Process("tasks", python_module("gateway.tasks"), environ, tmp_path / "tasks.log")
    background.run(process.start())
    try:
        with receiving() as receiver:
            asyncio.run(told(receiver.url))
    finally:
        background.run(process.stop(8))
    assert "NOPERM" not in process.log.read_text("utf-8")


FORBIDDEN = {
    "gateway": [["FLUSHALL"], ["CONFIG", "GET", "*"], ["KEYS", "*"], ["GET", "{mesh:0}:tensor:x:1"], ["ACL", "LIST"],
                ["SET", "elsewhere", "x"], ["EVAL", "return 1", "0"], ["SHUTDOWN"]],
    "tasks": [["FLUSHALL"], ["GET", "{mesh:0}:upload:x"], ["CONFIG", "SET", "maxmemory", "1"]],
    "preprocess": [["FLUSHALL"], ["KEYS", "*"], ["GET", "mesh:rate:acme"], ["SCRIPT", "FLUSH"]],
    "inference": [["GET", "mesh:rate:acme"], ["FLUSHDB"], ["CLIENT", "KILL", "ID", "1"]],
    "subscriber": [["SET", "{mesh:0}:job:x", "y"], ["HGETALL", "{mesh:0}:job:x"], ["PUBLISH", "mesh:results", "x"],
                   ["DEL", "mesh:stream:results"], ["XADD", "mesh:stream:results", "*", "a", "b"]],
    "acme": [["SUBSCRIBE", "mesh:results"], ["SUBSCRIBE", "mesh:tenant:beta:results"], ["PSUBSCRIBE", "mesh:*"],
             ["GET", "mesh:id-secret"]],
}  # fmt: skip


@pytest.mark.parametrize("role", FORBIDDEN)
def test_no_role_can_do_more(guarded: Valkey, role: str) -> None:
    with contextlib.closing(redis.Redis.from_url(url_of(guarded, role))) as client:
        for command in FORBIDDEN[role]:
            with pytest.raises((NoPermissionError, ResponseError), match=r"(?i)permission"):
                client.execute_command(*command)
        if role == "acme":
            assert client.execute_command("SUBSCRIBE", "mesh:tenant:acme:results")


@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_ask_for_the_map_of_a_cluster(guarded: Valkey, role: str) -> None:
    with contextlib.closing(redis.Redis.from_url(url_of(guarded, role))) as client:
        with pytest.raises(ResponseError, match="cluster support disabled"):
            client.execute_command("CLUSTER SLOTS")
        with pytest.raises(NoPermissionError):
            client.execute_command("CLUSTER RESET")


def test_nobody_comes_in_without_a_name(guarded: Valkey) -> None:
    client = redis.Redis.from_url(f"redis://127.0.0.1:{guarded.port}/0")
    with contextlib.closing(client), pytest.raises(redis.AuthenticationError):
        client.ping()
