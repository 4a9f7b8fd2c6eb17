"""Slots of shared memory: used where the probe says so, free again whatever becomes of their jobs."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from preprocess_worker.areas import OWN, SHARED, TensorAreas, make_arena
from preprocess_worker.pool import DecoderPool
from preprocess_worker.room import SLOTS_LOOK_S, Room
from preprocess_worker.sharing import Sharing
from shared import models
from shared.errors import DecoderCrashed
from shared.live_registry import LiveRegistry
from shared.messages import Heartbeat, ImageInfo, JobOptions, Placement, Ticket, timestamp
from shared.settings import Settings, read
from shared.store import Store, connect
from shared.store.arena import Arena
from tests.preprocess_worker.pictures import LIMITS, detailed, encode, scene

MODEL = models.load().get("small")
PICTURE = encode(scene(), "JPEG")
SLOW = encode(detailed(4000, 3000), "PNG", compress_level=1)


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return read({"MESH_REDIS_URL": redis_url})


def inference(name: str, **details: Any) -> Heartbeat:
    return Heartbeat(
        kind="inference", name=name, host="h", pid=1, started_at=timestamp(0), rss_bytes=0, cpu_percent=0, jobs_done=0,
        details=details,
    )  # fmt: skip


@asynccontextmanager
async def sharing(settings: Settings) -> AsyncGenerator[tuple[Store, TensorAreas, Sharing]]:
    areas = TensorAreas(make_arena(MODEL.tensor_bytes, 4))
    async with connect(settings) as store:
        try:
            yield store, areas, Sharing(settings, store, areas)
        finally:
            areas.close()


def test_only_a_host_that_all_share_is_shared(settings: Settings) -> None:
    async def work() -> None:
        region = Arena(1, 1)
        with contextlib.closing(region):
            async with sharing(settings) as (store, areas, probing):
                await probing.probe()
                assert not areas.sharing, "nobody is there to read"
                await store.heartbeats.beat(inference("near", tensor_store="shm", shm_probe=region.name))
                await probing.probe()
                assert areas.sharing
                assert areas.lease(MODEL.tensor_bytes).area == SHARED
                far = inference("far", tensor_store="shm", shm_probe="visionmesh-of-another-host")
                await store.heartbeats.beat(far)
                await probing.probe()
                assert not areas.sharing
                assert areas.lease(MODEL.tensor_bytes).area == OWN
                await store.heartbeats.leave(far)
                await store.heartbeats.beat(inference("near", tensor_store="redis", shm_probe=region.name))
                await probing.probe()
                assert not areas.sharing, "its Triton does not share"

    asyncio.run(work())


def test_what_was_asked_for_and_cannot_be_is_told(redis_url: str) -> None:
    async def work() -> None:
        settings = read({"MESH_REDIS_URL": redis_url, "MESH_TENSOR_STORE": "shm"})
        async with sharing(settings) as (store, _, probing):
            await store.heartbeats.beat(inference("far", tensor_store="redis"))
            await probing.probe()
            assert "does not share" in str(probing.last_error)

    asyncio.run(work())


def test_a_full_arena_gives_way_to_redis(settings: Settings) -> None:
    async def work() -> None:
        async with sharing(settings) as (_, areas, _):
            areas.sharing = True
            assert [areas.lease(MODEL.tensor_bytes).area for _ in range(5)] == [SHARED] * 4 + [OWN]

    asyncio.run(work())


def test_jobs_wait_for_slots_that_are_given_back(settings: Settings) -> None:
    async def work() -> None:
        registry, stop = LiveRegistry(settings.models), asyncio.Event()
        async with sharing(settings) as (store, areas, _):
            room = Room(settings, registry, store, areas, patience_s=60)
            assert await room.wait(0, stop) == settings.max_waiting_tensors, "tensors go to Redis, which has no slots"
            areas.sharing = True
            assert await room.wait(1, stop) == 3
            places = [areas.lease(MODEL.tensor_bytes) for _ in range(4)]
            waiting = asyncio.create_task(room.wait(0, stop))
            done, _ = await asyncio.wait([waiting], timeout=20 * SLOTS_LOOK_S)
            assert not done, "all slots are taken"
            areas.give_back(places[2])
            assert await asyncio.wait_for(waiting, 10) == 1

    asyncio.run(work())


def test_a_model_that_gives_no_slot_back_holds_up_no_other(settings: Settings) -> None:
    async def work() -> None:
        registry, stop = LiveRegistry(settings.models), asyncio.Event()
        async with sharing(settings) as (store, areas, _):
            areas.sharing = True
            room = Room(settings, registry, store, areas, patience_s=0.2)
            places = [areas.lease(MODEL.tensor_bytes) for _ in range(4)]
            assert await asyncio.wait_for(room.wait(0, stop), 10) == settings.max_waiting_tensors
            areas.give_back(places[0])
            began_s = time.monotonic()
            assert await room.wait(0, stop) == 1
            areas.lease(MODEL.tensor_bytes)
            assert await asyncio.wait_for(room.wait(0, stop), 10) > 1
            assert time.monotonic() - began_s >= 0.2, "slots are waited for again once one was given back"

    asyncio.run(work())


async def decoded(store: Store, areas: TensorAreas, probing: Sharing) -> Ticket:
    """A job whose tensor lies in a slot."""
    areas.sharing = True
    body = PICTURE
    await store.jobs.accept(
        store.jobs.new_id(), model=MODEL, options=JobOptions(), body=body, upload_bytes=len(body)
    )  # fmt: skip
    async with store.consumer("preprocess", "test") as consumer:
        (ticket,) = await consumer.take(1)
        place = areas.lease(MODEL.tensor_bytes)
        assert place.slot
        areas.view(place)[:3] = b"rgb"
        assert await store.claims.decoded(
            ticket,
            image=ImageInfo(320, 240, "jpeg"),
            placement=Placement(1, 1, 0, 0),
            tensor=areas.view(place),
            timings_ms={},
            slot=str(place.slot),
        )
        probing.handed_on(place.slot, ticket)
        consumer.done(ticket)
    return ticket


def test_a_job_that_is_canceled_frees_its_slot(settings: Settings) -> None:
    async def work() -> None:
        async with sharing(settings) as (store, areas, probing):
            ticket = await decoded(store, areas, probing)
            assert areas.arena
            await probing.sweep()
            assert areas.arena.busy == 1, "its job still waits"
            await store.endings.cancel(ticket.id)
            await probing.sweep()
            assert areas.arena.busy == 0

    asyncio.run(work())


def test_pixels_out_of_reach_are_decoded_again(settings: Settings) -> None:
    async def work() -> None:
        async with sharing(settings) as (store, areas, probing):
            await decoded(store, areas, probing)
            assert areas.arena
            async with store.consumer(f"inference:{MODEL.name}", "test") as consumer:
                (ticket,) = await consumer.take(1)
                (tensor,) = await store.tensors.get_many([ticket])
                assert tensor is not None
                assert bytes(tensor[:3]) == b"rgb"
                assert await store.claims.redecode(ticket)
                assert not await store.claims.redecode(ticket), "the fence is lost"
                consumer.done(ticket)
            await probing.sweep()
            assert areas.arena.busy == 0
            assert not store.tensors.holds(ticket)
            async with store.consumer("preprocess", "test") as consumer:
                (again,) = await consumer.take(1)
                assert (again.id, again.slot, again.tensor, again.attempts) == (ticket.id, "", None, 2)
                assert await store.uploads.get(again) == PICTURE
                consumer.done(again)

    asyncio.run(work())


def test_a_decoder_that_is_killed_in_mid_picture_frees_its_slot_once_it_is_gone() -> None:
    async def work() -> None:
        areas = TensorAreas(make_arena(MODEL.tensor_bytes, 4))
        areas.sharing = True
        arena = areas.arena
        assert arena
        async with DecoderPool(1, 5.0, LIMITS, areas=areas) as decoders:
            decoding = asyncio.create_task(decoders.decode(SLOW, 300, 300))
            async with asyncio.timeout(5):
                while not arena.busy:  # noqa: ASYNC110 - the pool tells nobody
                    await asyncio.sleep(0.001)
            os.kill(decoders.pids[0], signal.SIGKILL)
            with pytest.raises(DecoderCrashed):
                await decoding
            async with asyncio.timeout(10):
                while arena.busy:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.001)
            found = await decoders.decode(PICTURE, 300, 300)
            assert found.place
            assert found.place.slot
            assert bytes(found.tensor[:3]) == b"\x72" * 3, "the border's grey"
            areas.give_back(found.place)
            assert arena.busy == 0

    asyncio.run(work())
