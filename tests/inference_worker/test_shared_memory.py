"""Triton reads tensors where they lie, and finds the same in them as when they are sent."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient

from inference_worker.regions import SLOTS, Regions
from inference_worker.triton import Triton
from shared import models
from shared.errors import InferenceFailed, InferenceUnavailable
from shared.store.arena import FOLDER, Arena, MappedArena

MODEL = models.load().get("small_end2end")
PLAIN = models.load().get("small")


def pictures(count: int) -> list[bytes]:
    random = np.random.default_rng(7)
    return [random.integers(0, 255, MODEL.tensor_bytes, np.uint8).tobytes() for _ in range(count)]


@asynccontextmanager
async def runtimes(triton_url: str) -> AsyncGenerator[tuple[Triton, Triton, Regions, dict[str, MappedArena]]]:
    """One that shares memory, one that does not, and what the first has mapped."""
    mapped: dict[str, MappedArena] = {}
    regions = Regions(mapped)
    sharing, plain = Triton(triton_url, 4, regions), Triton(triton_url, 4)
    try:
        await sharing.probe()
        assert sharing.sharing
        yield sharing, plain, regions, mapped
    finally:
        await sharing.close()
        await plain.close()


def same(one: object, other: object) -> None:
    assert isinstance(one, dict)
    assert isinstance(other, dict)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-4)


@pytest.mark.parametrize("model", [MODEL, PLAIN], ids=lambda model: model.name)
@pytest.mark.parametrize("count", [1, 3])
def test_the_same_is_found_by_memory_as_by_bytes(triton_url: str, model: models.Model, count: int) -> None:
    async def work() -> None:
        async with runtimes(triton_url) as (sharing, plain, _, mapped):
            arena = Arena(model.tensor_bytes, count)
            with contextlib.closing(arena):
                mapped[arena.name] = MappedArena.open(arena.name)
                views: list[memoryview] = []
                for body in pictures(count):
                    slot = arena.lease(len(body))
                    assert slot
                    views.append(mapped[arena.name].view(slot))
                    views[-1][:] = body
                by_memory = await sharing.infer(model, views, 10)
                same(by_memory, await plain.infer(model, pictures(count), 10))
                same(await sharing.infer(model, pictures(count), 10), by_memory)  # such as came through Redis

    asyncio.run(work())


def test_slots_are_free_again_when_the_outputs_are_gone(triton_url: str) -> None:
    async def work() -> None:
        async with runtimes(triton_url) as (sharing, _, regions, _):
            kept: NDArray[np.float32] | None = None
            for _ in range(3 * SLOTS):
                outputs = await sharing.infer(PLAIN, pictures(2), 10)
                kept = outputs["output0"][1]
            gc.collect()
            staging = regions.staging
            assert sum(arena.busy for arena in staging) == 1, "the outputs that are still looked at"
            assert kept is not None
            del kept, outputs
            gc.collect()
            assert sum(arena.busy for arena in staging) == 0

    asyncio.run(work())


def test_a_triton_that_forgot_its_regions_is_told_again(triton_url: str) -> None:
    async def work() -> None:
        async with runtimes(triton_url) as (sharing, _plain, _, _):
            before = await sharing.infer(MODEL, pictures(2), 10)
            forget(triton_url)
            same(await sharing.infer(MODEL, pictures(2), 10), before)

    asyncio.run(work())


def forget(triton_url: str) -> None:
    """What a restart of Triton does to its regions."""
    with contextlib.closing(InferenceServerClient(triton_url)) as client:
        client.unregister_system_shared_memory()


def test_regions_without_a_file_are_unregistered(triton_url: str) -> None:
    async def work() -> None:
        async with runtimes(triton_url) as (sharing, _, regions, _):
            await sharing.infer(MODEL, pictures(2), 10)
            names = [arena.name for arena in regions.staging]
            for arena in regions.staging:
                arena.path.unlink()
            await sharing.probe()
            with contextlib.closing(InferenceServerClient(triton_url)) as client:
                known = client.get_system_shared_memory_status(as_json=True).get("regions", {})
            assert regions.probe.name in known
            assert not known.keys() & set(names)

    asyncio.run(work())


def test_an_answer_that_was_given_up_leaves_its_slots_alone(triton_url: str) -> None:
    async def work() -> None:
        async with runtimes(triton_url) as (sharing, _, regions, _):
            await sharing.infer(PLAIN, pictures(8), 10)
            with pytest.raises(InferenceUnavailable):
                await sharing.infer(PLAIN, pictures(8), 0.001)
            gc.collect()
            assert sum(arena.busy for arena in regions.staging) == 2
            await sharing.infer(PLAIN, pictures(8), 10)

    asyncio.run(work())


def test_a_refused_batch_gives_its_slots_back(triton_url: str) -> None:
    async def work() -> None:
        async with runtimes(triton_url) as (sharing, _, regions, _):
            with pytest.raises(InferenceFailed):
                await sharing.infer(PLAIN, pictures(9), 10)  # its largest batch is 8
            assert sum(arena.busy for arena in regions.staging) == 0

    asyncio.run(work())


def test_nothing_stays_in_memory_after_closing(triton_url: str) -> None:
    async def work() -> list[Path]:
        async with runtimes(triton_url) as (sharing, _, regions, _):
            await sharing.infer(PLAIN, pictures(2), 10)
            return [FOLDER / regions.probe.name, *(arena.path for arena in regions.staging)]

    assert not [path for path in asyncio.run(work()) if path.exists()]
