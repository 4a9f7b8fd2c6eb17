"""What a mesh and its Redis have used between two moments, per picture: CPU by process, Redis commands, and bytes."""

import statistics
from collections.abc import Callable, Sequence

import msgspec
from redis.asyncio import Redis

from benchmarks.processor_time import CpuTimes
from benchmarks.servers import BenchmarkError
from deploy.local.supervisor import LocalMesh


class Cost(msgspec.Struct, frozen=True):
    """What a picture costs: milliseconds of CPU by kind of process, calls of Redis commands by name (those within scripts too),
    and bytes that Redis was sent and sent. `p50_ms` where clients waited for answers."""

    per_second: float
    p50_ms: float | None
    cpu_ms: dict[str, float]
    commands: dict[str, float]
    in_bytes: float
    out_bytes: float

    @property
    def total_cpu_ms(self) -> float:
        """CPU of all processes."""
        return sum(self.cpu_ms.values())

    @property
    def total_commands(self) -> float:
        """All Redis commands."""
        return sum(self.commands.values())


class Books:
    """Opened before and closed after what is measured, again and again. `own` counts what the benchmark itself asks Redis for,
    by command's name, to be left out."""

    def __init__(self, mesh: LocalMesh, redis: Redis, triton_pid: int) -> None:
        self._redis = redis
        self._pids = {part: process.pid or 0 for part, process in mesh.processes.items()} | {"triton": triton_pid}
        self.own: dict[str, int] = {}

    async def open(self) -> None:
        """Begin."""
        self.own.clear()
        self._commands, self._bytes = await self._calls(), await self._moved_bytes()
        self._times = CpuTimes(self._pids)

    async def close(self, count: int, seconds: float, p50_ms: float | None) -> Cost:
        """End, with how many pictures it was for.

        Raises:
            BenchmarkError: there were none.
        """
        used_s = self._times.since()
        moved, calls = await self._moved_bytes(), await self._calls()
        if not count:
            raise BenchmarkError("nothing came through")
        kinds: dict[str, float] = {}
        for part, part_s in used_s.items():
            kind = part.split("-")[0]
            kinds[kind] = kinds.get(kind, 0.0) + part_s * 1000 / count
        commands = {
            name: (number - self._commands.get(name, 0) - self.own.get(name, 0)) / count for name, number in calls.items()
        }
        in_bytes, out_bytes = ((now - then) / count for now, then in zip(moved, self._bytes, strict=True))
        commands = {name: round(each, 4) for name, each in sorted(commands.items()) if each > 0}
        return Cost(count / seconds, p50_ms, kinds, commands, in_bytes, out_bytes)

    async def _calls(self) -> dict[str, int]:
        stats = await self._redis.info("commandstats")
        return {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items() if name != "cmdstat_info"}

    async def _moved_bytes(self) -> tuple[int, int]:
        stats = await self._redis.info("stats")
        return stats["total_net_input_bytes"], stats["total_net_output_bytes"]


def median(costs: Sequence[Cost]) -> Cost:
    """The median of each figure on its own."""

    def of(figure: Callable[[Cost], float]) -> float:
        return statistics.median(map(figure, costs))

    waited = [cost.p50_ms for cost in costs if cost.p50_ms is not None]
    kinds = dict.fromkeys(kind for cost in costs for kind in cost.cpu_ms)
    names = sorted({name for cost in costs for name in cost.commands})
    return Cost(
        per_second=of(lambda cost: cost.per_second),
        p50_ms=statistics.median(waited) if waited else None,
        cpu_ms={kind: statistics.median(cost.cpu_ms.get(kind, 0.0) for cost in costs) for kind in kinds},
        commands={name: statistics.median(cost.commands.get(name, 0.0) for cost in costs) for name in names},
        in_bytes=of(lambda cost: cost.in_bytes),
        out_bytes=of(lambda cost: cost.out_bytes),
    )
