"""Large uploads as files of a folder that gateway and workers share: where they lie, who reads them, and that none stays."""

import asyncio
import os
import resource
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil
import pytest

from shared.errors import Internal, UploadLost
from shared.messages import Heartbeat, JobOptions, Ticket
from shared.models import load
from shared.settings import Settings
from shared.store import Store, connect, upload_files
from shared.store.upload_files import FoundFile, Pointer
from shared.store.uploads import Elsewhere, Staging
from tests.shared.store.conftest import MODEL, changed, decoded, finished

PICTURE = b"\xff\xd8\xff" + bytes(range(256)) * 6000
CHUNK = 100_000


@pytest.fixture
def shared(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(upload_files, "YOUNG_S", 0.0)
    return changed(settings, upload_folder=str(tmp_path))


def beat(kind: str, identity: str) -> Heartbeat:
    return Heartbeat(
        kind=kind, name="test", host=socket.gethostname(), pid=1, started_at="", rss_bytes=0, cpu_percent=0, jobs_done=0,
        details={"uploads": identity},
    )  # type: ignore[arg-type]  # fmt: skip


@asynccontextmanager
async def sharing(settings: Settings) -> AsyncGenerator[Store]:
    async with connect(settings) as store:
        for kind in ("gateway", "preprocess", "inference"):
            await store.heartbeats.beat(beat(kind, store.upload_files.identity))
        store.upload_files.probe(await store.heartbeats.live())
        yield store


async def staged(store: Store, picture: bytes = PICTURE) -> tuple[str, Staging]:
    job_id = store.jobs.new_id()
    staging = store.uploads.stage(job_id)
    for at in range(0, len(picture), CHUNK):
        await staging.write(picture[at : at + CHUNK])
    await staging.complete()
    return job_id, staging


async def accepted(store: Store, picture: bytes = PICTURE, options: JobOptions | None = None) -> str:
    job_id, staging = await staged(store, picture)
    await store.jobs.accept(
        job_id, model=MODEL, options=options or JobOptions(), body=staging.pointer, upload_bytes=staging.size_bytes
    )
    staging.close()
    return job_id


async def taken(store: Store) -> Ticket:
    async with store.consumer("preprocess", "p") as consumer:
        (ticket,) = await consumer.take(1, 1)
        consumer.done(ticket)
    return ticket


async def done(store: Store) -> None:
    assert await decoded(store, await taken(store))
    async with store.consumer("inference:small", "i") as consumer:
        (ticket,) = await consumer.take(1, 1)
        assert await finished(store, ticket)
        consumer.done(ticket)


async def files(store: Store, settings: Settings, count: int) -> list[Path]:
    """The pictures of the folder, once there are so many: they go in a thread."""

    def found() -> list[Path]:
        return [path for path in Path(settings.upload_folder).glob("*/*") if not path.name.startswith(".")]

    async with asyncio.timeout(5):
        while len(found()) != count:
            await store.uploads.sweep()
            await asyncio.sleep(0.01)
    return found()


async def in_redis(store: Store, job_id: str) -> bytes | None:
    return await store._connection.run_one("GET", f"{{mesh:0}}:upload:{job_id}")


def test_a_large_upload_is_a_file_from_its_first_byte_to_the_end_of_its_job(shared: Settings) -> None:
    async def scenario() -> None:
        async with sharing(shared) as store:
            job_id = await accepted(store)
            (path,) = await files(store, shared, 1)
            assert path.name == job_id
            assert path.read_bytes() == PICTURE
            assert await in_redis(store, job_id) == bytes(Pointer(store.upload_files.identity, len(PICTURE)))
            assert (await store.budget()).reserved_bytes > len(PICTURE)
            ticket = await taken(store)
            assert ticket.upload_bytes == len(PICTURE)
            found = await store.uploads.fetch(ticket.id, ticket.picture)
            assert isinstance(found, FoundFile)
            assert found.read() == PICTURE
            found.close()
            assert await store.uploads.get(ticket) == PICTURE, "track D reads it whole"
            assert await store.claims.release(ticket)
            await done(store)
            await files(store, shared, 0)
            assert (await store.budget()).reserved_bytes == 0

    asyncio.run(scenario())


def test_its_bytes_are_reserved_while_more_of_them_come(shared: Settings) -> None:
    async def scenario() -> None:
        async with sharing(shared) as store:
            job_id, staging = await staged(store, PICTURE * 4)
            assert (await store.budget()).reserved_bytes >= 4 << 20
            assert await store.uploads.sweep() == 0, "a gateway is writing it"
            await staging.discard()
            await files(store, shared, 0)
            assert (await store.budget()).reserved_bytes == 0
            assert await in_redis(store, job_id) is None

    asyncio.run(scenario())


@pytest.mark.parametrize("error", ["canceled", "overdue", "at fault"])
def test_it_goes_however_its_job_ends(shared: Settings, error: str) -> None:
    async def scenario() -> None:
        async with sharing(shared) as store:
            job_id = await accepted(store)
            match error:
                case "canceled":
                    await store.endings.cancel(job_id)
                case "overdue":
                    await store._connection.run(("ZADD", "{mesh:0}:live", 0, job_id))
                    await store.endings.sweep(0)
                    (letter,) = await store.dead_letters.list()
                    await store.dead_letters.drop(letter.id)
                case _:
                    assert await store.endings.fail(await taken(store), UploadLost())
                    await store.dead_letters.drop(job_id)
            await files(store, shared, 0)

    asyncio.run(scenario())


def test_one_that_is_kept_goes_with_its_result(shared: Settings) -> None:
    async def scenario() -> None:
        async with sharing(changed(shared, result_ttl_s=0.5)) as store:
            job_id = await accepted(store, options=JobOptions(keep_upload=True))
            await done(store)
            await files(store, shared, 1)
            await store.renders.check(job_id)
            await files(store, shared, 0)

    asyncio.run(scenario())


def test_a_dead_letter_keeps_its_file_and_a_replay_has_one_of_its_own(shared: Settings) -> None:
    async def scenario() -> None:
        async with sharing(shared) as store:
            dead = await accepted(store)
            assert await store.endings.fail(await taken(store), Internal("a fault"))
            again = await store.dead_letters.replay(dead, load())
            (path,) = await files(store, shared, 1)
            assert path.name == again.id
            ticket = await taken(store)
            assert ticket.upload_bytes == len(PICTURE)
            assert await store.uploads.get(ticket) == PICTURE

    asyncio.run(scenario())


def test_files_of_dead_letters_count_with_all_their_bytes(shared: Settings) -> None:
    async def scenario() -> None:
        async with sharing(changed(shared, byte_budget=16 * 4_000_000)) as store:
            for _ in range(4):
                await accepted(store)
                assert await store.endings.fail(await taken(store), Internal("a fault"))
            await files(store, shared, 2)

    asyncio.run(scenario())


def test_what_a_killed_gateway_leaves_is_swept(shared: Settings) -> None:
    async def scenario() -> None:
        async with sharing(shared) as store:
            _, staging = await staged(store)
            await files(store, shared, 1)
            staging._file.close()  # type: ignore[union-attr]  # as the kernel closes it
            await files(store, shared, 0)

    asyncio.run(scenario())


def test_a_file_is_closed_at_once_unless_a_thread_writes_it(shared: Settings, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sharing(shared) as store:
            (job_id, idle), (other_id, written) = await staged(store), await staged(store)
            folder = store.upload_files._folder or tmp_path
            idle.close()
            assert upload_files._is_unlocked(str(folder / job_id))
            with written._file._in_use:  # type: ignore[union-attr]
                written.close()
                assert not upload_files._is_unlocked(str(folder / other_id))
            async with asyncio.timeout(10):
                while not upload_files._is_unlocked(str(folder / other_id)):  # noqa: ASYNC110 - the kernel tells nobody
                    await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_files_of_another_mesh_are_not_touched(shared: Settings) -> None:
    async def scenario() -> None:
        async with sharing(shared) as store:
            await accepted(store)
            await store._connection.run(("FLUSHALL",))
            async with connect(shared) as other:
                assert other.upload_files.identity != store.upload_files.identity
                assert await other.uploads.sweep() == 0

    asyncio.run(scenario())


def test_it_goes_to_redis_while_not_all_share_the_folder(shared: Settings, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sharing(shared) as store:
            identity = store.upload_files.identity
            store.upload_files.probe([beat("gateway", identity)])
            assert store.uploads.stage(store.jobs.new_id()).pointer is None, "there is no worker to read it"
            for other in ("", "elsewhere"):
                store.upload_files.probe([beat("gateway", identity), beat("preprocess", identity), beat("inference", other)])
                job_id, staging = await staged(store)
                assert staging.pointer is None
                assert await in_redis(store, job_id) == PICTURE
            store.upload_files.probe([beat("gateway", identity), beat("preprocess", identity), beat("tasks", "")])
            assert store.uploads.stage(store.jobs.new_id()).pointer is not None

    asyncio.run(scenario())


def test_who_cannot_reach_a_file_leaves_it_to_who_can(shared: Settings, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sharing(shared) as store, connect(changed(shared, upload_folder=str(tmp_path / "own"))) as far:
            job_id = await accepted(store)
            with pytest.raises(Elsewhere):
                await far.uploads.fetch(job_id)
            await store.heartbeats.beat(beat("preprocess", "rebooted"))
            with pytest.raises(UploadLost):
                await far.uploads.fetch(job_id)
            found = await store.uploads.fetch(job_id)
            assert isinstance(found, FoundFile)
            found.close()

    asyncio.run(scenario())


def test_a_file_that_is_gone_or_cut_is_a_lost_upload(shared: Settings) -> None:
    async def scenario() -> None:
        async with sharing(shared) as store:
            job_id = await accepted(store)
            (path,) = await files(store, shared, 1)
            os.truncate(path, 1000)
            with pytest.raises(UploadLost):
                await store.uploads.fetch(job_id)
            path.unlink()
            with pytest.raises(UploadLost):
                await store.uploads.fetch(job_id)

    asyncio.run(scenario())


@contextmanager
def small_files(most_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("most_bytes", [300_000, 1_200_000], ids=["at the first piece", "at the last"])
def test_a_disk_that_takes_no_more_leaves_it_to_redis(shared: Settings, most_bytes: int) -> None:
    async def scenario() -> None:
        async with sharing(shared) as store:
            with small_files(most_bytes):
                job_id, staging = await staged(store)
            assert staging.pointer is None
            assert await in_redis(store, job_id) == PICTURE
            await files(store, shared, 0)

    asyncio.run(scenario())


def test_a_disk_that_refuses_in_the_middle_of_many_pieces_leaves_no_byte_twice(shared: Settings) -> None:
    async def scenario() -> None:
        async with sharing(shared) as store:
            picture = PICTURE[:1_100_000]
            job_id = store.jobs.new_id()
            staging = store.uploads.stage(job_id)
            with small_files(700_000):
                for at in range(0, len(picture), 1000):
                    await staging.write(picture[at : at + 1000])
                await staging.complete()
            assert staging.pointer is None
            assert await in_redis(store, job_id) == picture

    asyncio.run(scenario())


def test_a_client_that_goes_while_a_thread_writes_leaves_nothing(shared: Settings) -> None:
    async def scenario() -> None:
        async with sharing(shared) as store:
            open_before = psutil.Process().num_fds()
            for pause in range(20):
                staging = store.uploads.stage(store.jobs.new_id())
                writing = asyncio.create_task(staging.write(bytes(4_000_000)))
                for _ in range(pause % 4):
                    await asyncio.sleep(0)
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
                await staging.discard()
            await files(store, shared, 0)
            async with asyncio.timeout(5):
                while psutil.Process().num_fds() > open_before:  # noqa: ASYNC110 - a thread closes them
                    await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_a_folder_that_cannot_be_used_is_as_none(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    async def scenario() -> None:
        async with sharing(changed(settings, upload_folder=str(tmp_path / "file"))) as store:
            assert store.upload_files.identity == ""
            job_id, staging = await staged(store)
            assert staging.pointer is None
            assert await in_redis(store, job_id) == PICTURE

    asyncio.run(scenario())
