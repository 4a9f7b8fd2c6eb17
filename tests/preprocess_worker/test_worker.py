import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from preprocess_worker import __main__, room, worker
from preprocess_worker.areas import TensorAreas
from preprocess_worker.decoder import Decoded
from preprocess_worker.worker import Worker
from shared.errors import DecoderCrashed, DecodeTimeout, StoreUnavailable
from shared.letterbox import fit
from shared.live_registry import LiveRegistry
from shared.messages import ImageInfo, Job, JobOptions, Outcome, Ticket
from shared.settings import Settings, read
from shared.store import Store, connect
from shared.store.streams import Consumer
from tests.preprocess_worker.pictures import encode, png, scene

REGISTRY = LiveRegistry("")
MODEL = REGISTRY.get("small")
PICTURE = encode(scene(), "JPEG")


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return read({"MESH_REDIS_URL": redis_url, "MESH_DECODERS": "2", "MESH_HEARTBEAT_S": "0.2", "MESH_SHUTDOWN_S": "5"})


@pytest.fixture(autouse=True)
def _short_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is told to stop notices it at the end of its take."""
    monkeypatch.setattr(worker, "TAKE_BLOCK_S", 0.1)


class Pool:
    """Stands for the decoders: answers what a test wants, at once."""

    size = 1
    restarts = 0
    engine = None

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.areas = TensorAreas()
        self.answer = answer
        self.calls = 0

    async def decode(self, data: bytes, width: int, height: int, *, header_only: bool = False) -> Decoded:
        assert data == PICTURE
        assert not header_only  # that is for track D
        self.calls += 1
        await asyncio.sleep(0)
        self.answer()
        return Decoded(ImageInfo(320, 240, "jpeg"), fit(320, 240, width, height).placement, bytes(width * height * 3), 1.0)


async def accepted(store: Store, body: bytes, deadline_s: float | None = None) -> Job:
    return await store.jobs.accept(
        store.jobs.new_id(None),
        model=MODEL,
        options=JobOptions(),
        body=body,
        upload_bytes=len(body),
        deadline_s=deadline_s,
    )


async def settled(store: Store, job: Job) -> Job:
    """The job once preprocessing is through with it."""
    async with asyncio.timeout(15):
        while True:
            now = await store.jobs.read(job.id)
            if now.status not in ("queued", "processing") or now.stage == "decoded":
                return now
            await asyncio.sleep(0.02)


@asynccontextmanager
async def working(settings: Settings, store: Store, pool: Pool) -> AsyncGenerator[Worker]:
    stop = asyncio.Event()
    async with store.consumer("preprocess", "test") as consumer:
        made = Worker(settings, REGISTRY, store, pool, consumer)  # type: ignore[arg-type]
        task = asyncio.create_task(made.work(stop))
        yield made
        stop.set()
        await task


def crash() -> None:
    raise DecoderCrashed("the decoder died")


class SlowPool(Pool):
    """Two decoders that end one after the other."""

    size = 2

    async def decode(self, data: bytes, width: int, height: int, *, header_only: bool = False) -> Decoded:
        await asyncio.sleep(0.01 * (self.calls + 1))
        return await super().decode(data, width, height, header_only=header_only)


def test_jobs_are_taken_several_at_a_time(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    take = Consumer.take

    async def noted(consumer: Consumer, at_most: int, block_s: float = 2.0) -> list[Ticket]:
        asked.append(at_most)
        return await take(consumer, at_most, block_s)

    async def work() -> None:
        async with connect(settings) as store:
            jobs = [await accepted(store, PICTURE) for _ in range(12)]
            monkeypatch.setattr(Consumer, "take", noted)
            async with working(settings, store, SlowPool(lambda: None)):
                for job in jobs:
                    assert (await settled(store, job)).stage == "decoded"

    asyncio.run(work())
    assert asked[0] == 6
    assert min(asked) >= SlowPool.size


def test_jobs_end_as_their_pictures_deserve(settings: Settings) -> None:
    async def work() -> None:
        stop = asyncio.Event()
        running = asyncio.create_task(worker.run(settings, stop))
        async with connect(settings) as store:
            bodies = [PICTURE, PICTURE[:900], b"<svg/>", png(935_820, 854_554), png(2, 1_048_577)]
            jobs = [await settled(store, await accepted(store, body)) for body in bodies]
            assert [job.error.code if job.error else job.stage for job in jobs] == [
                "decoded", "corrupt-image", "unsupported-format", "too-many-pixels", "side-too-long",
            ]  # fmt: skip
            assert jobs[0].image == ImageInfo(320, 240, "jpeg")
            assert jobs[0].timings_ms["preprocess"] > 0
            assert "preprocess_wait" in jobs[0].timings_ms
            async with store.consumer(f"inference:{MODEL.name}", "test") as consumer:
                (ticket,) = await consumer.take(4)
                assert ticket.placement == fit(320, 240, MODEL.input_width, MODEL.input_height).placement
                (tensor,) = await store.tensors.get_many([ticket])
                assert tensor is not None
                assert len(tensor) == MODEL.tensor_bytes
            await asyncio.sleep(0.5)
            (beat,) = [beat for beat in await store.heartbeats.live() if beat.kind == "preprocess"]
            assert beat.jobs_done == 5
            assert str(beat.details.pop("arena")).startswith("visionmesh-")
            assert str(beat.details.pop("libvips")).startswith("8.")
            assert isinstance(beat.details.pop("libvips_simd"), bool)
            assert beat.details == {"decoders": 2, "decoder_restarts": 0, "tensor_store": "redis"}
            stop.set()
            async with asyncio.timeout(settings.shutdown_s):
                await running

    asyncio.run(work())


def test_second_crash_is_the_pictures_fault(settings: Settings) -> None:
    async def work() -> None:
        pool = Pool(crash)
        async with connect(settings) as store, working(settings, store, pool):
            job = await settled(store, await accepted(store, PICTURE))
            assert (job.status, job.error and job.error.code) == ("failed", "decoder-crashed")
            assert pool.calls == 2

    asyncio.run(work())


def test_one_crash_is_forgiven(settings: Settings) -> None:
    async def work() -> None:
        pool = Pool(lambda: crash() if pool.calls == 1 else None)
        async with connect(settings) as store, working(settings, store, pool):
            assert (await settled(store, await accepted(store, PICTURE))).stage == "decoded"

    asyncio.run(work())


@pytest.mark.parametrize(("error", "code"), [(DecodeTimeout("too long"), "decode-timeout"), (ValueError("?"), "internal")])
def test_errors_end_the_job(settings: Settings, error: Exception, code: str) -> None:
    def answer() -> None:
        raise error

    async def work() -> None:
        async with connect(settings) as store, working(settings, store, Pool(answer)) as made:
            job = await settled(store, await accepted(store, PICTURE))
            assert (job.status, job.error and job.error.code) == ("failed", code)
            assert code in str(made.status()["last_error"])

    asyncio.run(work())


def test_store_that_is_away_is_asked_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with connect(settings) as store:
            decoded, away = store.claims.decoded, iter(range(3))

            async def unreliable(*arguments: Any, **options: Any) -> bool:
                if next(away, None) is not None:
                    raise StoreUnavailable("gone for a moment")
                return await decoded(*arguments, **options)

            monkeypatch.setattr(store.claims, "decoded", unreliable)
            async with working(settings, store, Pool(lambda: None)):
                assert (await settled(store, await accepted(store, PICTURE))).stage == "decoded"

    asyncio.run(work())


def test_what_is_overdue_is_left_to_the_sweep(settings: Settings) -> None:
    async def work() -> None:
        pool = Pool(lambda: None)
        async with connect(settings) as store:
            job = await accepted(store, PICTURE, deadline_s=0.05)
            await asyncio.sleep(0.1)
            async with working(settings, store, pool):
                await asyncio.sleep(0.2)
            assert pool.calls == 0
            assert (await store.jobs.read(job.id)).status == "processing"

    asyncio.run(work())


def test_wrong_settings_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("MESH_DECODERS", "many")
    assert __main__.main() == 2
    assert capsys.readouterr().err.startswith("preprocess_worker: MESH_DECODERS='many' is wrong")
    monkeypatch.setenv("MESH_DECODERS", "1")
    monkeypatch.setenv("MESH_MODELS", str(tmp_path / "none.toml"))
    assert __main__.main() == 2
    assert capsys.readouterr().err.count("\n") == 1


class StuckPool(Pool):
    """Decoders that never end."""

    async def decode(self, *_: Any, **__: Any) -> Decoded:
        self.calls += 1
        return await asyncio.Future()


def test_a_stop_does_not_wait_for_a_job_to_end(settings: Settings) -> None:
    async def work() -> None:
        pool = StuckPool(lambda: None)
        hurried = msgspec.structs.replace(settings, shutdown_s=1)
        async with connect(hurried) as store, asyncio.timeout(15):
            for _ in range(6):
                await accepted(store, PICTURE)
            async with working(hurried, store, pool):
                while pool.calls < 3:  # all that one decoder takes ahead  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)  # and it waits for one of them to end

    asyncio.run(work())


def test_decoding_pauses_while_enough_pictures_wait_for_inference(settings: Settings) -> None:
    async def work() -> None:
        pool = Pool(lambda: None)
        narrow = msgspec.structs.replace(settings, max_waiting_tensors=3)
        async with connect(narrow) as store, working(narrow, store, pool):
            jobs = [await accepted(store, PICTURE) for _ in range(12)]
            await settled(store, jobs[2])
            await asyncio.sleep(4 * room.LOOK_S)  # time in which it could decode them all
            decoded = [job for job in jobs if (await store.jobs.read(job.id)).stage == "decoded"]
            assert len(decoded) == 3
            async with store.consumer(f"inference:{MODEL.name}", "test") as consumer:
                done = 0
                async with asyncio.timeout(15):
                    while done < 12:
                        for ticket in await consumer.take(4, block_s=0.2):
                            outcome = Outcome(detections=[], batch_size=1, timings_ms={})
                            assert await store.endings.finish([(ticket, outcome)]) == [True]
                            consumer.done(ticket)
                            done += 1

    asyncio.run(work())
