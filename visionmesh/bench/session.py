"""One call of the benchmark tool: finds the models, runs the mode's phases, and gathers their results."""

from collections.abc import Callable, Sequence

import msgspec

from visionmesh.bench import load
from visionmesh.bench.connection import Address, Connection, ConnectionFailed
from visionmesh.bench.endpoints import ENDPOINTS, Endpoint, get, request
from visionmesh.bench.measured import Phase, Result
from visionmesh.bench.modes import MODES, Plan

TIMEOUT_S = 10.0


class BenchError(Exception):
    """The benchmark cannot run. The message is one line."""


class _Model(msgspec.Struct):
    name: str
    track: str
    max_batch: int = 0
    aliases: list[str] = []


class _Models(msgspec.Struct):
    models: list[_Model]
    default: str


class Session(msgspec.Struct, kw_only=True):
    """What stays the same over all phases. `started` and `ended` are told of each, `watch` of one that runs."""

    address: Address
    pictures: Sequence[bytes]
    endpoint: str = "jobs"
    key: str = ""
    warm_up: int = 10
    started: Callable[[Phase], None] = lambda _phase: None
    ended: Callable[[Result], None] = lambda _result: None
    watch: load.Watch | None = None
    largest_batches: dict[str, int] = {}
    """By the names under which the models were asked for; `models` fills it."""

    async def models(self, name: str, track: str) -> list[str]:
        """The models to send to: that of a name, those of a track (`all`: of all tracks), or the mesh's default.

        Raises:
            BenchError: the mesh cannot be reached, or has no such model.
        """
        connection = Connection(self.address)
        try:
            answer = await connection.exchange(get(self.address, "/v1/models", key=self.key), TIMEOUT_S)
            if answer.status != 200:
                raise BenchError(f"/v1/models answers {answer.status}")
            served = msgspec.json.decode(answer.body, type=_Models)
        except ConnectionFailed as error:
            where = f"{self.address.host}:{self.address.port}"
            raise BenchError(f"no mesh at {where} ({error}); start one with `visionmesh up` or name one with --url") from None
        except msgspec.DecodeError as error:
            raise BenchError(f"/v1/models does not answer as a mesh does: {error}") from None
        finally:
            connection.close()
        self.largest_batches = {
            spelled: model.max_batch for model in served.models for spelled in (model.name, *model.aliases) if model.max_batch
        }
        if name:
            chosen = [model.name for model in served.models if name in (model.name, *model.aliases)]
            wanted = f"model {name!r}"
        elif track:
            chosen = [model.name for model in served.models if track.upper() in ("ALL", model.track)]
            wanted = f"model of track {track.upper()}"
        else:
            return [served.default]
        if not chosen:
            raise BenchError(f"the mesh has no {wanted}; it serves {', '.join(model.name for model in served.models)}")
        return [name] if name else chosen

    async def run(self, mode: str, plan: Plan) -> list[Result]:
        """Run a mode.

        Raises:
            BenchError: not one picture came through in the warm-up.
        """
        endpoint = ENDPOINTS[self.endpoint]
        results: list[Result] = []
        requests: dict[str, list[bytes]] = {}

        async def run_phase(phase: Phase) -> Result:
            if phase.model not in requests:
                requests[phase.model] = self._requests(endpoint, phase.model)
                await self._warm_up(endpoint, requests[phase.model], phase)
            self.started(phase)
            result = await load.run(self.address, endpoint, requests[phase.model], phase, self.watch)
            largest = self.largest_batches.get(phase.model)
            if result.mean_batch and largest:
                result.batch_fill = round(result.mean_batch / largest, 4)
            results.append(result)
            self.ended(result)
            return result

        await MODES[mode](plan, run_phase)
        return results

    def _requests(self, endpoint: Endpoint, model: str) -> list[bytes]:
        return [request(endpoint, self.address, model, picture, key=self.key) for picture in self.pictures]

    async def _warm_up(self, endpoint: Endpoint, requests: Sequence[bytes], phase: Phase) -> None:
        if not self.warm_up:
            return
        warm = Phase(name="warm-up", model=phase.model, clients=min(phase.clients, self.warm_up), requests=self.warm_up)
        result = await load.run(self.address, endpoint, requests, warm)
        if not result.good:
            raise BenchError(f"nothing comes through: {', '.join(result.errors)}")
