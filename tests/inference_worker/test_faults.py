"""A Triton that refuses, hangs or has unloaded the model, under one real batching loop: rows 27 and 29 of the bad days; and a
worker whose registry loses the model while jobs for it are under way."""

import asyncio
import contextlib
import http.client
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from deploy.local.triton import Triton as Server
from inference_worker import batching, control, loops
from inference_worker.batching import Batching
from inference_worker.triton import Triton
from inference_worker.worker import Worker
from shared.live_registry import LiveRegistry
from shared.messages import TERMINAL, ImageInfo, Job, JobOptions, Placement
from shared.models import load
from shared.settings import Settings, read
from shared.store import Store, connect
from tests.conftest import Background, running_triton

POISON, GOOD = b"\xff", b"\x10"
MODEL = msgspec.structs.replace(load().get("small"), triton_model="picky", input_width=32, input_height=32)

CONFIG = """
backend: "python"
max_batch_size: 8
input [{ name: "images", data_type: TYPE_UINT8, dims: [32, 32, 3] }]
output [{ name: "output0", data_type: TYPE_FP32, dims: [84, 1] }]
"""

MODEL_PY = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            images = pb_utils.get_input_tensor_by_name(request, "images").as_numpy()
            if (images[:, 0, 0, 0] == 255).any():
                answers.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("a picture that I do not like")))
                continue
            found = np.zeros((len(images), 84, 1), np.float32)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("output0", found)]))
        return answers
"""


@pytest.fixture(scope="module")
def server(background: Background, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("picky")
    (folder / "models" / "picky" / "1").mkdir(parents=True)
    (folder / "models" / "picky" / "config.pbtxt").write_text(CONFIG)
    (folder / "models" / "picky" / "1" / "model.py").write_text(MODEL_PY)
    with running_triton(background, folder, folder / "models", ["picky"]) as server:
        yield server


@pytest.fixture(autouse=True)
def _short_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that is told to stop notices it at the end of its take."""
    monkeypatch.setattr(batching, "TAKE_S", 0.1)


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return read({"MESH_REDIS_URL": redis_url, "MESH_LEASE_S": "2"})


@asynccontextmanager
async def inferring(settings: Settings, url: str) -> AsyncGenerator[tuple[Store, Callable[[], None]]]:
    """A store, and a loop that starts to work when it is told to."""
    stop = asyncio.Event()
    runtime = Triton(url, 4)
    async with connect(settings) as store:
        loop = Batching(store, runtime, MODEL, worker="w", slots=1)
        tasks: list[asyncio.Task[None]] = []
        try:
            yield store, lambda: tasks.append(asyncio.create_task(loop.run(stop, 1.0)))
        finally:
            stop.set()
            await asyncio.gather(*tasks)
            await runtime.close()


async def decoded(store: Store, first_byte: bytes, deadline_s: float = 60) -> str:
    """A job whose picture is decoded and waits for inference."""
    job_id = store.jobs.new_id()
    await store.jobs.accept(job_id, model=MODEL, options=JobOptions(), body=b"picture", upload_bytes=7, deadline_s=deadline_s)
    async with store.consumer("preprocess", "p") as preprocess:
        (ticket,) = await preprocess.take(1)
        tensor = first_byte + bytes(MODEL.tensor_bytes - 1)
        image, placement = ImageInfo(32, 32, "png"), Placement(1, 1, 0, 0)
        assert await store.claims.decoded(ticket, image=image, placement=placement, tensor=tensor, timings_ms={})
        preprocess.done(ticket)
    return job_id


async def ended(store: Store, job_id: str) -> Job:
    async with asyncio.timeout(20):
        while (job := await store.jobs.read(job_id)).status not in TERMINAL:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return job


def test_the_neighbours_of_a_refused_picture_finish(settings: Settings, server: Server) -> None:
    async def scenario() -> None:
        async with inferring(settings, server.url) as (store, begin):
            ids = [await decoded(store, POISON if number == 3 else GOOD) for number in range(6)]
            begin()
            jobs = [await ended(store, job_id) for job_id in ids]
            assert [job.status for job in jobs] == ["succeeded"] * 3 + ["failed"] + ["succeeded"] * 2
            assert jobs[3].error is not None
            assert jobs[3].error.code == "inference-failed"
            assert "do not like" in jobs[3].error.detail
            assert [letter.id for letter in await store.dead_letters.list()] == [ids[3]]

    asyncio.run(scenario())


def test_a_hung_triton_fails_the_job_at_its_deadline_and_then_works_again(settings: Settings, server: Server) -> None:
    async def scenario() -> None:
        assert server.pid
        async with inferring(settings, server.url) as (store, begin):
            late, patient = await decoded(store, GOOD, deadline_s=1), await decoded(store, GOOD)
            os.kill(server.pid, signal.SIGSTOP)
            try:
                begin()
                job = await ended(store, late)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            assert job.status in ("failed", "expired")
            assert job.error is not None
            assert job.error.code in ("inference-unavailable", "deadline-passed")
            assert (await ended(store, patient)).status == "succeeded"
            assert [letter.id for letter in await store.dead_letters.list()] == [late]

    asyncio.run(scenario())


def test_a_job_waits_for_a_model_that_is_unloaded(settings: Settings, server: Server) -> None:
    def control(verb: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=20)
        with contextlib.closing(connection):
            connection.request("POST", f"/v2/repository/models/picky/{verb}", headers=server.control_headers)
            assert connection.getresponse().status == 200

    async def scenario() -> None:
        async with inferring(settings, server.url) as (store, begin):
            await asyncio.to_thread(control, "unload")
            try:
                job_id = await decoded(store, GOOD)
                begin()
                async with asyncio.timeout(10):
                    while (await store.jobs.read(job_id)).stage != "inferring":  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                assert (await store.jobs.read(job_id)).status == "processing"
            finally:
                await asyncio.to_thread(control, "load")
            assert (await ended(store, job_id)).status == "succeeded"

    asyncio.run(scenario())


ROW = 'triton_model = "{}"\ninput_width = 32\ninput_height = 32\nlabels = ["one"]\n'
SMALL, OTHER = f"[models.small]\n{ROW.format('picky')}", f"[models.other]\n{ROW.format('not-there')}"


class Served:
    """A worker beside its registry file, which `say` changes; the worker has seen the change when `say` returns."""

    def __init__(self, settings: Settings, store: Store, runtime: Triton, file: Path) -> None:
        self._file = file
        self._file.write_text(SMALL + OTHER, "utf-8")
        self._registry = LiveRegistry(str(file))
        self.store = store
        self.runtime = runtime
        self.worker = Worker(settings, self._registry, store, runtime)

    async def say(self, text: str) -> None:
        self._file.write_text(text, "utf-8")
        self._registry.refresh()
        await self.worker.check_models()

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(20):
            while not await holds():  # noqa: ASYNC110 - it is Triton's state
                await asyncio.sleep(0.05)

    async def in_triton(self) -> bool:
        return (await self.runtime.index())["picky"].state == "READY"

    async def not_in_triton(self) -> bool:
        return not await self.in_triton()


@asynccontextmanager
async def serving(settings: Settings, server: Server, file: Path) -> AsyncGenerator[Served]:
    stop = asyncio.Event()
    runtime = Triton(server.url, 4, control_key=server.control_key)
    async with connect(settings) as store:
        served = Served(settings, store, runtime, file)
        await served.worker.check_models()
        upkeep = asyncio.create_task(served.worker.watch_models())
        work = asyncio.create_task(served.worker.run(stop))
        try:
            yield served
        finally:
            stop.set()
            await work
            upkeep.cancel()
            await asyncio.gather(upkeep, return_exceptions=True)
            await runtime.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits as short as a test's patience."""
    monkeypatch.setattr(control, "LEAVE_S", 0.6)
    monkeypatch.setattr(loops, "STAY_S", 0.6)
    monkeypatch.setattr(loops, "FOLLOW_S", 0.05)


@pytest.mark.usefixtures("quick")
def test_what_was_accepted_before_an_unload_is_done(redis_url: str, server: Server, tmp_path: Path) -> None:
    settings = read({"MESH_REDIS_URL": redis_url, "MESH_HEARTBEAT_S": "0.1"})

    async def scenario() -> None:
        async with serving(settings, server, tmp_path / "models.toml") as served:
            await served.say('unloaded = ["small"]\n' + SMALL + OTHER)
            job_id = await decoded(served.store, GOOD)  # by a gateway that has not looked yet
            assert (await ended(served.store, job_id)).status == "succeeded"
            await served.say(SMALL + OTHER)
            assert await served.in_triton()  # it came back before it had left
            await served.say('unloaded = ["small"]\n' + SMALL + OTHER)
            await served.until(served.not_in_triton)
            await served.say(SMALL + OTHER)
            await served.until(served.in_triton)

    asyncio.run(scenario())


@pytest.mark.usefixtures("quick")
def test_what_was_accepted_before_a_removal_is_done(redis_url: str, server: Server, tmp_path: Path) -> None:
    settings = read({"MESH_REDIS_URL": redis_url, "MESH_HEARTBEAT_S": "0.1"})

    async def scenario() -> None:
        async with serving(settings, server, tmp_path / "models.toml") as served:
            await served.say(OTHER)
            await asyncio.sleep(0.3)  # a loop that ended at once would have ended by now
            job_id = await decoded(served.store, GOOD)
            assert (await ended(served.store, job_id)).status == "succeeded"

            async def let_go() -> bool:
                return served.worker.status()["models"] == []

            await served.until(let_go)
            await served.until(served.not_in_triton)
            await served.say(SMALL + OTHER)
            await served.until(served.in_triton)

    asyncio.run(scenario())
