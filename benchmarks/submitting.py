"""How many pictures a second are accepted (202), beside a bare Granian handler that reads the body and does one SET.

No worker runs: it would take the cores that accepting is measured on. The stream of results is told that jobs end, for a mesh
whose queue only grows refuses more. Both write to the same Valkey, emptied in between. Its file is written anew only then:
whether that falls into a turn of two seconds would be a matter of chance.
"""

import asyncio
import itertools
import os
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

from redis.asyncio import Redis

from benchmarks import report, servers
from benchmarks.processor_time import CpuTimes
from benchmarks.servers import BenchmarkError
from deploy.local import ports
from deploy.local.process import Process, python_module
from shared.store import keys
from visionmesh.bench import bare, load, pictures
from visionmesh.bench.connection import Address
from visionmesh.bench.endpoints import ENDPOINTS, request
from visionmesh.bench.measured import Phase

CLIENTS = 16
SIZE = (810, 1080)
SETTLED = {"auto-aof-rewrite-percentage": "0"}
PACE_S, ENDED_AT_ONCE = 0.1, 10_000
LEARN_S = 3.0
"""After so long a gateway knows how fast jobs end."""


async def measure(seconds: float, rounds: int, say: Callable[[str], None]) -> dict[str, report.Sample]:
    """The medians of both."""
    async with AsyncExitStack() as stack:
        home = await stack.enter_async_context(servers.folder())
        valkey = await stack.enter_async_context(servers.valkey(home, SETTLED))
        redis = Redis.from_url(valkey.url)
        stack.push_async_callback(redis.aclose)
        port = ports.free()
        environ = dict(os.environ) | {
            "MESH_REDIS_URL": valkey.url, "MESH_PORT": str(port), "MESH_BYTE_BUDGET": str(1 << 40), "MESH_LOG_LEVEL": "warning",
        }  # fmt: skip
        gateway = Process("gateway", python_module("gateway"), environ, home / "gateway.log")
        await gateway.start()
        stack.push_async_callback(gateway.stop, 5.0)
        await servers.until(lambda: _listens(port), "the gateway", gateway)
        served = await stack.enter_async_context(
            bare.running("benchmarks.bare_set:app", {"BARE_REDIS_URL": valkey.url, "PYTHONPATH": str(servers.ROOT)})
        )
        arms = {"bare": served, "gateway": (Address("127.0.0.1", port), gateway.pid or 0)}
        ending = asyncio.create_task(_end(redis))
        stack.push_async_callback(_stop, ending)
        bodies = await asyncio.to_thread(pictures.generate, *SIZE)
        await _learn(arms["gateway"][0], bodies)
        samples: dict[str, list[report.Sample]] = {name: [] for name in arms}
        for turn in range(rounds):
            for name, (address, pid) in arms.items():
                sample = await _run(address, {name: pid, "valkey": valkey.pid or 0}, bodies, seconds)
                samples[name].append(sample)
                say(f"submit {turn + 1}/{rounds} {name:<14} {sample.per_second:8.1f}/s  p50 {sample.p50_ms:7.2f} ms")
                await empty(redis)
        return {name: report.median(of_arm) for name, of_arm in samples.items()}


async def _run(address: Address, pids: Mapping[str, int], bodies: list[bytes], seconds: float) -> report.Sample:
    endpoint = ENDPOINTS["submit"]
    requests = [request(endpoint, address, "small", body) for body in bodies]
    await load.run(address, endpoint, requests, Phase(name="warm-up", clients=CLIENTS, requests=64))
    times = CpuTimes(pids)
    result = await load.run(address, endpoint, requests, Phase(name="submit", clients=CLIENTS, duration_s=seconds))
    if result.bad or not result.good:
        raise BenchmarkError(f"submitting is answered with {result.errors or 'nothing'}")
    cpu_ms = {part: used_s * 1000 / result.good for part, used_s in times.since().items()}
    latency = result.latency_ms
    return report.Sample(result.per_second, latency.p50, latency.p99, cpu_ms | {"client": result.client_cpu_ms})


async def _end(redis: Redis) -> None:
    """Count the stream of results up, as if workers ended jobs. Runs for ever."""
    for ended in itertools.count(ENDED_AT_ONCE, ENDED_AT_ONCE):
        async with redis.pipeline(transaction=True) as pipeline:
            pipeline.xadd(keys.RESULTS_STREAM, {"id": "-"}, id=f"{ended}-1", maxlen=1, approximate=False)
            pipeline.execute_command("XSETID", keys.RESULTS_STREAM, f"{ended}-1", "ENTRIESADDED", ended, "MAXDELETEDID", "0-0")
            await pipeline.execute()
        await asyncio.sleep(PACE_S)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _learn(address: Address, bodies: list[bytes]) -> None:
    """Give the gateway a queue, at a pace that it takes before it knows how fast jobs end."""
    requests = [request(ENDPOINTS["submit"], address, "small", body) for body in bodies]
    await load.run(address, ENDPOINTS["submit"], requests, Phase(name="learn", clients=4, rate=100, duration_s=LEARN_S))


async def empty(redis: Redis) -> None:
    """Empty Redis and its append-only file; the gateway's IDs stay good."""
    secret = await redis.get(keys.ID_SECRET)
    async with redis.pipeline(transaction=True) as pipeline:
        pipeline.flushall()
        if secret:
            pipeline.set(keys.ID_SECRET, secret)
        await pipeline.execute()
    await redis.bgrewriteaof()
    file = {"aof_rewrite_in_progress": 1}
    while file["aof_rewrite_in_progress"] or file["aof_rewrite_scheduled"]:
        await asyncio.sleep(PACE_S)
        file = await redis.info("persistence")


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
