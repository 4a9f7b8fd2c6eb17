"""The modes of the benchmark, a function each: which runs they are made of. Later runs may follow from earlier ones."""

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from visionmesh.bench.measured import Phase, Result

Runner = Callable[[Phase], Awaitable[Result]]
"""Runs a phase and returns its result."""

PROBE_S = 5.0
"""How long a run takes that only looks for where to go on."""

STEPS = (0.25, 0.5, 0.75, 1.0, 1.25, 0.5)
"""Rates of a variable load, as shares of what the mesh can do; the last shows how it recovers."""

BURST = 2.0
"""A variable load ends with a burst of so many times what the mesh can do, for a sixth of a step's time, and quiet after."""

OPEN_LOOP_CONNECTIONS = 256


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for; 0 leaves it to the mode. `pictures` is how many different ones there are."""

    models: Sequence[str]
    clients: int = 0
    requests: int = 0
    duration_s: float = 0.0
    rate: float = 0.0
    pictures: int = 1

    def phase(
        self, name: str, model: str, *, clients: int, requests: int = 0, duration_s: float = 0.0, rate: float = 0.0
    ) -> Phase:
        """A phase with the mode's values where the user gave none."""
        rate = self.rate or rate
        if self.requests or self.duration_s:
            requests, duration_s = self.requests, self.duration_s
        return Phase(
            name=name,
            model=model,
            clients=self.clients or (OPEN_LOOP_CONNECTIONS if rate else clients),
            requests=requests,
            duration_s=duration_s,
            rate=rate,
        )


async def single(plan: Plan, run: Runner) -> None:
    """One client, one picture after the other: what an answer takes on an idle mesh."""
    for model in plan.models:
        await run(msgspec.structs.replace(plan.phase("single", model, clients=1, requests=50), clients=1, rate=0.0))


async def quick(plan: Plan, run: Runner) -> None:
    """Sixteen clients for ten seconds: whether batches form."""
    for model in plan.models:
        await run(plan.phase("quick", model, clients=16, duration_s=10))


async def full(plan: Plan, run: Runner) -> None:
    """Sixty-four clients for a minute."""
    for model in plan.models:
        await run(plan.phase("full", model, clients=64, duration_s=60))


async def every_picture(plan: Plan, run: Runner) -> None:
    """Each picture once."""
    for model in plan.models:
        await run(Phase(name="all", model=model, clients=plan.clients or 64, requests=plan.pictures, rate=plan.rate))


async def sustained(plan: Plan, run: Runner) -> None:
    """The number of clients with the highest throughput is looked for, and then kept for minutes."""
    for model in plan.models:
        best, best_per_second = 1, 0.0
        for clients in steps(plan.clients or 64):
            found = await run(Phase(name=f"probe-{clients}", model=model, clients=clients, duration_s=PROBE_S))
            if found.per_second > best_per_second * 1.03:
                best, best_per_second = clients, found.per_second
        duration_s = plan.duration_s or 300.0
        await run(Phase(name="sustained", model=model, clients=best, requests=plan.requests, duration_s=duration_s))


async def variable(plan: Plan, run: Runner) -> None:
    """Arrival rates that rise past what the mesh can do, fall, and burst; open loop."""
    for model in plan.models:
        rate = plan.rate
        if not rate:
            rate = (await run(Phase(name="probe", model=model, clients=16, duration_s=PROBE_S))).per_second
        step_s = (plan.duration_s or 60.0) / (len(STEPS) + 1)
        shapes = [(f"{share:.0%}", share, step_s) for share in STEPS]
        shapes += [("burst", BURST, step_s / 6), ("after", STEPS[0], step_s * 5 / 6)]
        for name, share, duration_s in shapes:
            await run(
                Phase(
                    name=f"variable-{name}",
                    model=model,
                    clients=plan.clients or OPEN_LOOP_CONNECTIONS,
                    duration_s=duration_s,
                    rate=max(rate * share, 0.1),
                )
            )


async def matrix(plan: Plan, run: Runner) -> None:
    """Every model with 1, 2, 4, ... clients."""
    most = plan.clients or 64
    alike = msgspec.structs.replace(plan, clients=0, rate=0.0)
    for model in plan.models:
        for clients in steps(most):
            await run(alike.phase(f"matrix-{clients}", model, clients=clients, duration_s=PROBE_S))


def steps(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    return sorted({*(2**power for power in range(most.bit_length())), most})


MODES: dict[str, Callable[[Plan, Runner], Awaitable[None]]] = {
    "single": single,
    "quick": quick,
    "full": full,
    "all": every_picture,
    "sustained": sustained,
    "variable": variable,
    "matrix": matrix,
}
