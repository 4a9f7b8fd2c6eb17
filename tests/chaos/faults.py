"""What is done to the mesh: each fault is a function and a row in `FAULTS`."""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable

import msgspec
import psutil

from deploy.local.supervisor import LocalMesh
from deploy.local.valkey import Valkey
from tests.chaos.proxy import Proxy


class Scene(msgspec.Struct):
    """The mesh, and the servers and wires that the faults reach for."""

    mesh: LocalMesh
    valkey: Valkey
    redis_wire: Proxy
    triton_wire: Proxy
    lease_s: float

    def pid(self, part: str) -> int | None:
        """A part's process."""
        return self.mesh.processes[part].pid


def _kill(part: str) -> Callable[[Scene], Awaitable[None]]:
    async def fault(scene: Scene) -> None:
        if pid := scene.pid(part):
            os.kill(pid, signal.SIGKILL)

    return fault


def _terminate(part: str) -> Callable[[Scene], Awaitable[None]]:
    async def fault(scene: Scene) -> None:
        if pid := scene.pid(part):
            os.kill(pid, signal.SIGTERM)

    return fault


def _stop_past_lease(part: str) -> Callable[[Scene], Awaitable[None]]:
    async def fault(scene: Scene) -> None:
        if pid := scene.pid(part):
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(scene.lease_s * 1.7)
            finally:
                os.kill(pid, signal.SIGCONT)

    return fault


async def _kill_decoder(scene: Scene) -> None:
    pid = scene.pid("preprocess")
    children = psutil.Process(pid).children() if pid else []
    if children:
        random.choice(children).kill()


async def _hang_triton(scene: Scene) -> None:
    if pid := scene.pid("triton"):
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(4)
        finally:
            os.kill(pid, signal.SIGCONT)


async def _restart_valkey(scene: Scene) -> None:
    await scene.valkey.stop(10)
    await asyncio.sleep(1)
    await scene.valkey.start()


async def _kill_valkey(scene: Scene) -> None:
    if pid := scene.valkey.pid:
        os.kill(pid, signal.SIGKILL)
        await scene.valkey.wait()
    await scene.valkey.start()


async def _cut_redis(scene: Scene) -> None:
    for _ in range(3):
        scene.redis_wire.cut()
        await asyncio.sleep(0.3)


async def _refuse_redis(scene: Scene) -> None:
    await scene.redis_wire.refuse(2.0)


async def _delay_redis(scene: Scene) -> None:
    scene.redis_wire.delay_s = 0.05
    await asyncio.sleep(3)
    scene.redis_wire.delay_s = 0.0


async def _throttle_redis(scene: Scene) -> None:
    scene.redis_wire.bytes_per_s = 2e6
    await asyncio.sleep(3)
    scene.redis_wire.bytes_per_s = 0.0


async def _cut_triton(scene: Scene) -> None:
    await scene.triton_wire.refuse(1.0)


FAULTS: dict[str, Callable[[Scene], Awaitable[None]]] = {
    "kill -9 preprocess worker": _kill("preprocess"),
    "kill -9 inference worker": _kill("inference"),
    "kill -9 gateway": _kill("gateway"),
    "kill -9 a decoder": _kill_decoder,
    "kill -9 triton": _kill("triton"),
    "kill -9 valkey": _kill_valkey,
    "terminate preprocess worker": _terminate("preprocess"),
    "terminate inference worker": _terminate("inference"),
    "terminate gateway": _terminate("gateway"),
    "stop preprocess worker past its lease": _stop_past_lease("preprocess"),
    "stop inference worker past its lease": _stop_past_lease("inference"),
    "hang triton": _hang_triton,
    "restart valkey with its AOF": _restart_valkey,
    "cut all connections to redis": _cut_redis,
    "refuse connections to redis for 2 s": _refuse_redis,
    "delay redis by 50 ms": _delay_redis,
    "throttle redis to 2 MB/s": _throttle_redis,
    "cut connections to triton for 1 s": _cut_triton,
}
