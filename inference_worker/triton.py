"""Triton over gRPC; the only code that knows tritonclient.

A client per model, at most `MESH_TRITON_CLIENTS` of them, each with a connection of its own (a shared one saturates). What a
model's input looks like is read from Triton once, and again after it refused a batch, for the model may have been replaced.

Where Triton shares this host's memory, which `probe` finds out, tensors and outputs lie in regions that it has registered, and
only offsets travel. A Triton that was restarted knows no region; it is told again and asked again.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import structlog
from tritonclient.grpc.aio import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from inference_worker import shared_request, signature
from inference_worker.clients import Client, Clients
from inference_worker.regions import Place, Regions
from inference_worker.runtime import Array, Image, Outputs, stack
from inference_worker.shared_request import SharedRequest
from inference_worker.signature import Signature
from shared import metrics, tracing
from shared.errors import CorruptImage, InferenceFailed, InferenceUnavailable
from shared.models import Model
from shared.store.arena import FOLDER, PREFIX

METADATA_TIMEOUT_S = 5.0
LOAD_TIMEOUT_S = 300.0
"""A plan of a large model may take minutes to come from a slow disk."""

CONTROL_HEADER = "triton-grpc-protocol-x-mesh-control"
"""What a Triton that was started with --grpc-restricted-protocol=...:x-mesh-control=KEY wants to see."""

READY_TIMEOUT_S = 1.0

TLS = "grpcs://"

DECODER = "decoders.image"
"""DALI names the operator that failed; with this one it is the picture's fault."""

_NOT_NOW = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "NOT_FOUND", "RESOURCE_EXHAUSTED", "ABORTED")
"""gRPC codes that another try may mend. NOT_FOUND: the model is not loaded at the moment."""

log = structlog.get_logger()


def _connect(url: str, ca: str, channel_args: list[tuple[str, int]] | None = None) -> InferenceServerClient:
    is_tls = url.startswith(TLS)
    return InferenceServerClient(url.removeprefix(TLS), ssl=is_tls, root_certificates=ca or None, channel_args=channel_args)


class ModelState(msgspec.Struct, frozen=True):
    """A model as Triton's repository index has it: `READY`, `LOADING`, `UNLOADING`, `UNAVAILABLE`, or `UNLOADED` where it was
    never loaded; `reason` is Triton's word on why it is not there."""

    state: str
    reason: str


_UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


_ModelClient = Client[InferenceServerClient]


class Triton:
    """The `Runtime` of tracks B and C."""

    def __init__(
        self, url: str, most_clients: int, regions: Regions | None = None, ca: str = "", control_key: str = ""
    ) -> None:
        self.sharing = False
        """Whether Triton shares this host's memory, as `probe` last found."""
        self._url = url
        self._ca = ca
        self._control_headers = {CONTROL_HEADER: control_key} if control_key else None
        self._regions = regions
        self._registered: set[str] = set()
        self._control: InferenceServerClient | None = None
        self._clients = Clients(self._connect_for_model, _close_quietly, most_clients)

    @property
    def client_count(self) -> int:
        """How many clients are open."""
        return len(self._clients)

    async def infer(self, model: Model, images: Sequence[Image], timeout_s: float) -> Outputs:
        """See `Runtime.infer`. FP32 inputs get 0..1."""
        async with self._calling(model, timeout_s) as client:
            wanted = client.signature or await self._read_signature(client, model)
            if self.sharing and self._regions and (request := shared_request.plan(self._regions, wanted, images)):
                return await self._infer_shared(client, model, wanted, request, timeout_s)
            tensor = signature.as_input(stack(model, images), wanted)
            asked = InferInput(wanted.input_name, list(tensor.shape), wanted.datatype)
            asked.set_data_from_numpy(tensor)
            return _outputs(await _ask(client, model, [asked], timeout_s), len(images))

    async def infer_arrays(self, model: Model, inputs: Mapping[str, Array], count: int, timeout_s: float) -> Outputs:
        """Run a batch of `count` pictures on a model with several inputs, given by name.

        Raises:
            InferenceUnavailable, InferenceFailed: as `infer`.
            CorruptImage: a single picture cannot be decoded by Triton.
        """
        asked: list[InferInput] = []
        for name, array in inputs.items():
            one = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            one.set_data_from_numpy(array)
            asked.append(one)
        async with self._calling(model, timeout_s, is_one_picture=count == 1) as client:
            return _outputs(await _ask(client, model, asked, timeout_s), count)

    @asynccontextmanager
    async def _calling(self, model: Model, timeout_s: float, *, is_one_picture: bool = False) -> AsyncGenerator[_ModelClient]:
        """A client of the model for calls that end in time, with Triton's errors as the mesh's."""
        async with self._clients.of(model.triton_model) as client:
            try:
                async with asyncio.timeout(timeout_s):
                    yield client
            except TimeoutError:
                metrics.TRITON_ERRORS.labels(model.name, InferenceUnavailable.code).inc()
                raise InferenceUnavailable(f"Triton did not answer within {timeout_s:.1f} s") from None
            except InferenceServerException as error:
                client.signature = None
                if is_one_picture and DECODER in str(error.message()):
                    raise CorruptImage("the picture cannot be decoded") from None
                raise _typed(error, model) from None

    async def _infer_shared(
        self, client: _ModelClient, model: Model, taken: Signature, request: SharedRequest, timeout_s: float
    ) -> Outputs:
        """Ask by shared memory. What is given up on the way keeps its slots: Triton may still be at them."""
        asked = InferInput(taken.input_name, [request.count, model.input_height, model.input_width, 3], taken.datatype)
        asked.set_shared_memory(request.tensor.region, request.tensor.size_bytes, request.tensor.offset)
        wanted: list[InferRequestedOutput] = []
        for name, place in request.output_places():
            wanted.append(InferRequestedOutput(name))
            wanted[-1].set_shared_memory(place.region, place.size_bytes, place.offset)
        for has_retried in (False, True):
            for place in request.places:
                await self._register(client.api, place)
            try:
                result = await _ask(client, model, [asked], timeout_s, wanted)
                break
            except InferenceServerException as error:
                if has_retried or "shared memory" not in str(error.message()):
                    if isinstance(_typed(error, model), InferenceFailed):  # it was answered, so it is over
                        request.give_back()
                    raise
                self._registered.clear()  # Triton was restarted
        else:
            raise AssertionError("unreachable")
        if (outputs := request.finish()) is not None:
            return outputs
        return _outputs(result, request.count)

    async def _register(self, api: InferenceServerClient, place: Place) -> None:
        if place.region in self._registered:
            return
        try:
            await api.register_system_shared_memory(
                place.region, f"/{place.region}", place.region_bytes, client_timeout=METADATA_TIMEOUT_S
            )
        except InferenceServerException as error:
            if "already in manager" not in str(error.message()):  # by another worker of this host
                raise
        self._registered.add(place.region)

    async def probe(self) -> None:
        """Find out whether Triton shares this host's memory, and have it forget regions whose files are gone.

        A Triton elsewhere finds no file of the probe's name, which nobody could guess. Regions that Triton cannot let go of yet
        (it counts requests that use them, and has been seen to miscount) are tried again the next time.
        """
        if self._regions is None:
            return
        self._control = self._control or _connect(self._url, self._ca)
        probe = self._regions.probe
        try:
            status: Any = await self._control.get_system_shared_memory_status(as_json=True, client_timeout=READY_TIMEOUT_S)
            known = set(status.get("regions", {}))
            self._registered &= known
            await self._register(self._control, Place(probe.name, probe.size_bytes, 0, 1))
        except InferenceServerException as error:
            if self.sharing:
                log.warning("triton.memory_not_shared", error=str(error.message()))
            self.sharing = False
            return
        self.sharing = True
        for name in known:
            if name.startswith(PREFIX) and not (FOLDER / name).exists():
                with contextlib.suppress(InferenceServerException):
                    await self._control.unregister_system_shared_memory(name, client_timeout=READY_TIMEOUT_S)

    async def max_batch(self, model: Model) -> int:
        """See `Runtime.max_batch`."""
        async with self._clients.of(model.triton_model) as client:
            try:
                wanted = client.signature or await self._read_signature(client, model)
            except InferenceServerException as error:
                raise _typed(error, model) from None
            return wanted.max_batch

    async def is_ready(self, model: Model) -> bool:
        """See `Runtime.is_ready`."""
        async with self._clients.of(model.triton_model) as client:
            try:
                return bool(await client.api.is_model_ready(model.triton_model, client_timeout=READY_TIMEOUT_S))
            except InferenceServerException:
                return False

    async def index(self) -> dict[str, ModelState]:
        """What Triton says of all models of its repositories, by its names.

        Raises:
            InferenceUnavailable: it does not answer, or its model control is closed to us.
        """
        self._control = self._control or _connect(self._url, self._ca)
        try:
            answer: Any = await self._control.get_model_repository_index(
                headers=self._control_headers, client_timeout=METADATA_TIMEOUT_S
            )
        except InferenceServerException as error:
            raise InferenceUnavailable(f"Triton does not tell its models: {error.message()}") from None
        states: dict[str, ModelState] = {}
        for version in answer.models:
            if states.get(version.name, ModelState("", "")).state != "READY":
                states[version.name] = ModelState(version.state or "UNLOADED", version.reason)
        return states

    async def load_model(self, name: str) -> None:
        """Have Triton load a model of its repositories, or load it anew if its files have changed.

        Raises:
            InferenceUnavailable: it cannot be loaded; Triton's reason is in the detail.
        """
        await self._change(name, InferenceServerClient.load_model)

    async def unload_model(self, name: str) -> None:
        """Have Triton let a model go.

        Raises:
            InferenceUnavailable: see `load_model`.
        """
        await self._change(name, InferenceServerClient.unload_model)

    async def _change(self, name: str, change: Callable[..., Awaitable[None]]) -> None:
        self._control = self._control or _connect(self._url, self._ca)
        try:
            await change(self._control, name, headers=self._control_headers, client_timeout=LOAD_TIMEOUT_S)
        except InferenceServerException as error:
            raise InferenceUnavailable(" ".join(str(error.message()).split())[:500]) from None

    async def close(self) -> None:
        """Close all clients."""
        await self._clients.close()
        if self._regions:
            self._regions.close()
        if self._control:
            await self._control.close()

    def _connect_for_model(self) -> InferenceServerClient:
        return _connect(self._url, self._ca, [("grpc.use_local_subchannel_pool", 1), *_UNLIMITED])

    async def _read_signature(self, client: _ModelClient, model: Model) -> Signature:
        metadata: Any
        config: Any
        metadata, config = await asyncio.gather(
            client.api.get_model_metadata(model.triton_model, as_json=True, client_timeout=METADATA_TIMEOUT_S),
            client.api.get_model_config(model.triton_model, as_json=True, client_timeout=METADATA_TIMEOUT_S),
        )
        client.signature = signature.read(model, metadata, config["config"])
        return client.signature


async def unready(url: str, ca: str, names: Sequence[str]) -> list[str]:
    """Which of these models, by Triton's names, Triton does not have ready.

    Raises:
        InferenceUnavailable: Triton does not answer.
    """
    api = _connect(url, ca)
    try:
        await api.is_server_live(client_timeout=READY_TIMEOUT_S)
        return [name for name in names if not await api.is_model_ready(name, client_timeout=READY_TIMEOUT_S)]
    except InferenceServerException as error:
        raise InferenceUnavailable(" ".join(str(error.message()).split())[:200]) from None
    finally:
        await api.close()


async def _close_quietly(api: InferenceServerClient) -> None:
    with contextlib.suppress(InferenceServerException):
        await api.close()


async def _ask(
    client: _ModelClient,
    model: Model,
    inputs: list[InferInput],
    timeout_s: float,
    outputs: list[InferRequestedOutput] | None = None,
) -> InferResult:
    result = await client.api.infer(
        model.triton_model, inputs, outputs=outputs or None, client_timeout=timeout_s, headers=tracing.headers()
    )
    if result is None:
        raise InferenceUnavailable(f"Triton gave no answer for {model.triton_model!r}")
    return result


def _outputs(result: InferResult, count: int) -> Outputs:
    names = [output.name for output in result.get_response().outputs]
    return {name: signature.checked(result.as_numpy(name), name, count) for name in names}


def _typed(error: InferenceServerException, model: Model) -> InferenceUnavailable | InferenceFailed:
    status, said = str(error.status() or ""), str(error.message() or "")
    is_for_now = any(code in status for code in _NOT_NOW) or "is not ready" in said or "unknown model" in said
    metrics.TRITON_ERRORS.labels(model.name, (InferenceUnavailable if is_for_now else InferenceFailed).code).inc()
    if is_for_now:
        return InferenceUnavailable(f"Triton cannot run {model.triton_model!r} now: {said}")
    return InferenceFailed(f"{model.triton_model!r} refused the input: {said}")
