import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from preprocess_worker.pool import DecoderPool
from shared.errors import CorruptImage, DecoderCrashed, DecodeTimeout, UnsupportedFormat
from shared.store.upload_files import FoundFile
from tests.preprocess_worker.pictures import LIMITS, detailed, encode, scene

PICTURE = encode(scene(), "JPEG")
SLOW = encode(detailed(4000, 3000), "PNG", compress_level=1)
LARGE = encode(scene(3000, 2000), "PNG", compress_level=0)


@pytest.fixture(params=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> Any:
    return uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop


def run(loop_factory: Any, work: Coroutine[Any, Any, None]) -> None:
    """Run on a fresh loop, and see that no child of it is left, dead or alive."""
    before = set(psutil.Process().children(recursive=True))
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(work)
    assert set(psutil.Process().children(recursive=True)) <= before


def pool(size: int, timeout_s: float = 5.0, lifetime_images: int = 5_000) -> DecoderPool:
    return DecoderPool(size, timeout_s, LIMITS, lifetime_images=lifetime_images)


async def until(condition: Any, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in other processes
            await asyncio.sleep(0.02)


def await_state(pid: int, state: str) -> None:
    """Signals take effect a moment after they are sent."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        while process.status() != state or (state == psutil.STATUS_ZOMBIE and process.num_threads() > 1):
            pass


def cpu_s(pid: int) -> float:
    return sum(psutil.Process(pid).cpu_times()[:2])


def test_decodes_pictures_of_growing_and_shrinking_size(loop_factory: Any) -> None:
    async def work() -> None:
        async with pool(2) as decoders:
            for data, side in ((PICTURE, 64), (LARGE, 1280), (PICTURE, 640), (LARGE, 32)):
                decoded = await decoders.decode(data, side, side)
                assert len(decoded.tensor) == side * side * 3
                middle = (side * 5 // 8 * side + side // 4) * 3
                assert all(abs(a - b) < 6 for a, b in zip(decoded.tensor[middle : middle + 3], (50, 60, 190), strict=True))
                assert decoded.decode_ms > 0
            assert (decoded.image.width, decoded.image.height, decoded.image.format) == (3000, 2000, "png")
            assert decoders.restarts == 0

    run(loop_factory, work())


def file_of(folder: Path, data: bytes) -> FoundFile:
    path = folder / "upload"
    path.write_bytes(data)
    return FoundFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC), len(data))


def test_a_file_is_read_where_it_lies(loop_factory: Any, tmp_path: Path) -> None:
    async def work() -> None:
        async with pool(1) as decoders:
            as_bytes = bytes((await decoders.decode(PICTURE, 64, 64)).tensor)
            (child,) = [psutil.Process(pid) for pid in decoders.pids]
            for _ in range(3):
                with contextlib.closing(file_of(tmp_path, PICTURE)) as found:
                    assert bytes((await decoders.decode(found, 64, 64)).tensor) == as_bytes
            assert bytes((await decoders.decode(PICTURE, 64, 64)).tensor) == as_bytes
            assert not [file for file in child.open_files() if file.path.startswith(str(tmp_path))]
            assert not [area for area in child.memory_maps() if area.path.startswith(str(tmp_path))]

    run(loop_factory, work())


def test_a_file_that_is_cut_costs_its_own_picture_only(loop_factory: Any, tmp_path: Path) -> None:
    async def work() -> None:
        async with pool(1) as decoders:
            with contextlib.closing(file_of(tmp_path, PICTURE)) as found:
                os.truncate(tmp_path / "upload", 100)
                with pytest.raises(DecoderCrashed):
                    await decoders.decode(found, 64, 64)
            await decoders.decode(PICTURE, 64, 64)

    run(loop_factory, work())


def test_bad_pictures_cost_no_child(loop_factory: Any) -> None:
    async def work() -> None:
        async with pool(1) as decoders:
            pids = decoders.pids
            with pytest.raises(CorruptImage, match="jpeg"):
                await decoders.decode(PICTURE[:500], 64, 64)
            with pytest.raises(UnsupportedFormat):
                await decoders.decode(b"", 64, 64)
            await decoders.decode(PICTURE, 64, 64)
            assert decoders.pids == pids

    run(loop_factory, work())


def test_hanging_decoder_is_killed_at_the_timeout_and_its_neighbours_finish(loop_factory: Any) -> None:
    async def work() -> None:
        async with pool(3, timeout_s=1.0) as decoders:
            hung = decoders.pids[0]
            os.kill(hung, signal.SIGSTOP)
            await_state(hung, psutil.STATUS_STOPPED)
            started = time.monotonic()
            # Large ones: two decoders that are done at once would take the third picture as well.
            answers = await asyncio.gather(*(decoders.decode(LARGE, 64, 64) for _ in range(3)), return_exceptions=True)
            assert 0.9 < time.monotonic() - started < 10
            assert [type(answer) for answer in answers if isinstance(answer, BaseException)] == [DecodeTimeout]
            await until(lambda: len(decoders.pids) == 3 and hung not in decoders.pids)
            assert decoders.restarts == 1
            await asyncio.gather(*(decoders.decode(PICTURE, 64, 64) for _ in range(6)))

    run(loop_factory, work())


def test_crashing_decoder_fails_its_picture_only(loop_factory: Any) -> None:
    async def work() -> None:
        async with pool(2) as decoders:
            victim, neighbour = decoders.pids
            os.kill(neighbour, signal.SIGSTOP)
            await_state(neighbour, psutil.STATUS_STOPPED)
            started_s = cpu_s(victim)
            decoding = [asyncio.create_task(decoders.decode(SLOW, 64, 64)) for _ in range(2)]
            await until(lambda: cpu_s(victim) > started_s + 0.03)  # it is in the middle of its picture
            os.kill(victim, signal.SIGKILL)
            os.kill(neighbour, signal.SIGCONT)
            answers = await asyncio.gather(*decoding, return_exceptions=True)
            assert [type(answer) for answer in answers if isinstance(answer, BaseException)] == [DecoderCrashed]
            await until(lambda: len(decoders.pids) == 2 and victim not in decoders.pids)
            assert decoders.restarts == 1

    run(loop_factory, work())


def test_decoder_that_died_idle_is_nobodys_fault(loop_factory: Any) -> None:
    async def work() -> None:
        async with pool(2) as decoders:
            stopped, killed = decoders.pids
            os.kill(stopped, signal.SIGSTOP)
            os.kill(killed, signal.SIGKILL)
            # Without giving the loop a chance to hear of it. A zombie's memory and files go after its last thread.
            await_state(stopped, psutil.STATUS_STOPPED)
            await_state(killed, psutil.STATUS_ZOMBIE)
            decoding = [asyncio.create_task(decoders.decode(PICTURE, 64, 64)) for _ in range(4)]
            await until(lambda: any(task.done() for task in decoding))  # by the successor; the stopped one has a packet
            os.kill(stopped, signal.SIGKILL)
            answers = await asyncio.gather(*decoding)
            assert len(answers) == 4
            assert decoders.restarts == 2

    run(loop_factory, work())


def test_canceled_decoding_gives_the_slot_back(loop_factory: Any) -> None:
    async def work() -> None:
        async with pool(1) as decoders:
            os.kill(decoders.pids[0], signal.SIGSTOP)
            await_state(decoders.pids[0], psutil.STATUS_STOPPED)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await decoders.decode(PICTURE, 64, 64)
            await decoders.decode(PICTURE, 64, 64)

    run(loop_factory, work())


def test_children_are_recycled_without_a_pause(loop_factory: Any) -> None:
    async def work() -> None:
        async with pool(2, lifetime_images=5) as decoders:
            first = set(decoders.pids)
            while first & set(decoders.pids):
                await asyncio.gather(*(decoders.decode(PICTURE, 64, 64) for _ in range(4)))
            assert decoders.restarts == 0

    run(loop_factory, work())


def test_nothing_is_left_when_the_pool_closes_in_the_middle(loop_factory: Any) -> None:
    async def work() -> None:
        async with pool(2) as decoders:
            os.kill(decoders.pids[0], signal.SIGSTOP)
            os.kill(decoders.pids[1], signal.SIGKILL)
            decoding = [asyncio.create_task(decoders.decode(PICTURE, 64, 64)) for _ in range(2)]
            await asyncio.sleep(0.1)
        for task in decoding:
            task.cancel()
        await asyncio.gather(*decoding, return_exceptions=True)

    run(loop_factory, work())


def test_children_see_no_settings(loop_factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_REDIS_URL", "redis://:secret@127.0.0.1/0")

    async def work() -> None:
        async with pool(1) as decoders:
            environ = psutil.Process(decoders.pids[0]).environ()
            assert not [name for name in environ if name.startswith("MESH_")]
            assert environ["VIPS_BLOCK_UNTRUSTED"] == "1"

    run(loop_factory, work())


def test_children_are_limited_by_the_kernel(loop_factory: Any) -> None:
    async def work() -> None:
        async with pool(1) as decoders:
            await decoders.decode(PICTURE, 64, 64)
            (pid,) = decoders.pids
            assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
            space, _ = resource.prlimit(pid, resource.RLIMIT_AS)
            assert 1 << 30 < space < 1 << 34
            cpu_s, _ = resource.prlimit(pid, resource.RLIMIT_CPU)
            assert 0 < cpu_s < 120

    run(loop_factory, work())


def test_a_child_that_computes_for_ever_is_ended_by_the_kernel() -> None:
    code = "from preprocess_worker.decoder_child import limit_cpu; limit_cpu(1)\nwhile True: pass"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == -signal.SIGXCPU
