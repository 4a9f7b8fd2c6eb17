"""Triton over gRPC; the only code that knows tritonclient.

A client per model, made once, at most `MESH_TRITON_CLIENTS` of them; the least recently used goes when there is one too
many, after its calls have ended. Each has a connection of its own (a shared one saturates). What a model's input looks like
is read from Triton once, and again after it refused a batch, for the model may have been replaced.

Where Triton shares this host's memory, which `probe` finds out, tensors and outputs lie in regions that it has registered, and
only offsets travel. A Triton that was restarted knows no region; it is told again and asked again.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np
import structlog
from tritonclient.grpc.aio import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

from inference_worker.regions import Place, Regions, Staged, aligned
from inference_worker.runtime import Array, Image, Outputs, stack
from shared import metrics, tracing
from shared.errors import CorruptImage, InferenceFailed, InferenceUnavailable
from shared.models import Model
from shared.store.arena import FOLDER, PREFIX

ENCODED_INPUTS = frozenset({"encoded", "length", "affine"})
"""What a model of track D takes (`inference_worker.encoded`)."""

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


class Signature(msgspec.Struct, frozen=True):
    """What Triton says of a model: its input's name, `UINT8` or `FP32`, its layout and the largest batch; and its outputs, as
    name, type and shape of one picture's, if all shapes are fixed."""

    input_name: str
    datatype: str
    channels_first: bool
    max_batch: int
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...] = ()


def _connect(url: str, ca: str, channel_args: list[tuple[str, int]] | None = None) -> InferenceServerClient:
    is_tls = url.startswith(TLS)
    return InferenceServerClient(url.removeprefix(TLS), ssl=is_tls, root_certificates=ca or None, channel_args=channel_args)


class ModelState(msgspec.Struct, frozen=True):
    """A model as Triton's repository index has it: `READY`, `LOADING`, `UNLOADING`, `UNAVAILABLE`, or `UNLOADED` where it was
    never loaded; `reason` is Triton's word on why it is not there."""

    state: str
    reason: str


class _Client:
    """A client and how many calls are in it."""

    def __init__(self, url: str, ca: str) -> None:
        self.api = _connect(url, ca, [("grpc.use_local_subchannel_pool", 1), *_UNLIMITED])
        self.calls = 0
        self.evicted = False
        self.signature: Signature | None = None


_UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


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
        self._most_clients = most_clients
        self._regions = regions
        self._registered: set[str] = set()
        self._control: InferenceServerClient | None = None
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    @property
    def client_count(self) -> int:
        """How many clients are open."""
        return len(self._clients)

    async def infer(self, model: Model, images: Sequence[Image], timeout_s: float) -> Outputs:
        """See `Runtime.infer`. FP32 inputs get 0..1."""
        async with self._client(model) as client:
            try:
                async with asyncio.timeout(timeout_s):
                    signature = client.signature or await self._read_signature(client, model)
                    if self.sharing and (request := self._shared_request(model, signature, images)):
                        return await self._infer_shared(client, model, request, len(images), timeout_s)
                    tensor = _as_input(stack(model, images), signature)
                    asked = InferInput(signature.input_name, list(tensor.shape), signature.datatype)
                    asked.set_data_from_numpy(tensor)
                    result = await client.api.infer(
                        model.triton_model, [asked], client_timeout=timeout_s, headers=tracing.headers()
                    )
                    if result is None:
                        raise InferenceUnavailable(f"Triton gave no answer for {model.triton_model!r}")
            except TimeoutError:
                metrics.TRITON_ERRORS.labels(model.name, InferenceUnavailable.code).inc()
                raise InferenceUnavailable(f"Triton did not answer within {timeout_s:.1f} s") from None
            except InferenceServerException as error:
                client.signature = None
                raise _typed(error, model) from None
            outputs = result.get_response().outputs
            return {output.name: _output(result.as_numpy(output.name), output.name, len(images)) for output in outputs}

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
        async with self._client(model) as client:
            try:
                async with asyncio.timeout(timeout_s):
                    result = await client.api.infer(
                        model.triton_model, asked, client_timeout=timeout_s, headers=tracing.headers()
                    )
            except TimeoutError:
                metrics.TRITON_ERRORS.labels(model.name, InferenceUnavailable.code).inc()
                raise InferenceUnavailable(f"Triton did not answer within {timeout_s:.1f} s") from None
            except InferenceServerException as error:
                client.signature = None
                if count == 1 and DECODER in str(error.message()):
                    raise CorruptImage("the picture cannot be decoded") from None
                raise _typed(error, model) from None
            if result is None:
                raise InferenceUnavailable(f"Triton gave no answer for {model.triton_model!r}")
            outputs = result.get_response().outputs
            return {output.name: _output(result.as_numpy(output.name), output.name, count) for output in outputs}

    def _shared_request(self, model: Model, signature: Signature, images: Sequence[Image]) -> "_Shared | None":
        """A request by shared memory, or `None` if this one must go by bytes."""
        if self._regions is None or signature.datatype != "UINT8" or signature.channels_first:
            return None
        count = len(images)
        place = self._regions.place_of(images[0]) if count == 1 else None
        staged = None if place else self._regions.gather(images)
        place = place or (staged.place if staged else None)
        if place is None:
            return None
        asked = InferInput(signature.input_name, [count, model.input_height, model.input_width, 3], signature.datatype)
        asked.set_shared_memory(place.region, place.size_bytes, place.offset)
        request = _Shared(asked, [place], staged)
        layout = [(name, np.dtype(triton_to_np_dtype(kind)), (count, *shape)) for name, kind, shape in signature.outputs]
        sizes = [int(np.prod(shape)) * dtype.itemsize for _, dtype, shape in layout]
        if layout and (answer := self._regions.stage(sum(map(aligned, sizes)))):
            request.answer, request.layout = answer, layout
            request.places.append(answer.place)
            at = answer.place.offset
            for (name, _, _), size_bytes in zip(layout, sizes, strict=True):
                wanted = InferRequestedOutput(name)
                wanted.set_shared_memory(answer.place.region, size_bytes, at)
                request.wanted.append(wanted)
                at += aligned(size_bytes)
        return request

    async def _infer_shared(self, client: _Client, model: Model, request: "_Shared", count: int, timeout_s: float) -> Outputs:
        """Ask by shared memory. What is given up on the way keeps its slots: Triton may still be at them."""
        for has_retried in (False, True):
            for place in request.places:
                await self._register(client.api, place)
            try:
                result = await client.api.infer(
                    model.triton_model,
                    [request.asked],
                    outputs=request.wanted or None,
                    client_timeout=timeout_s,
                    headers=tracing.headers(),
                )
                break
            except InferenceServerException as error:
                if has_retried or "shared memory" not in str(error.message()):
                    if isinstance(_typed(error, model), InferenceFailed):  # it was answered, so it is over
                        request.give_back()
                    raise
                self._registered.clear()  # Triton was restarted
        else:
            raise AssertionError("unreachable")
        if result is None:
            raise InferenceUnavailable(f"Triton gave no answer for {model.triton_model!r}")
        if request.staged:
            request.staged.give_back()
        if request.answer:
            arrays = request.answer.arrays([(dtype, shape) for _, dtype, shape in request.layout])
            return {name: array for (name, _, _), array in zip(request.layout, arrays, strict=True)}
        outputs = result.get_response().outputs
        return {output.name: _output(result.as_numpy(output.name), output.name, count) for output in outputs}

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
        async with self._client(model) as client:
            try:
                signature = client.signature or await self._read_signature(client, model)
            except InferenceServerException as error:
                raise _typed(error, model) from None
            return signature.max_batch

    async def is_ready(self, model: Model) -> bool:
        """See `Runtime.is_ready`."""
        async with self._client(model) as client:
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
        clients, self._clients = self._clients, OrderedDict()
        for client in clients.values():
            await client.api.close()
        if self._regions:
            self._regions.close()
        if self._control:
            await self._control.close()

    async def _read_signature(self, client: _Client, model: Model) -> Signature:
        metadata: Any
        config: Any
        metadata, config = await asyncio.gather(
            client.api.get_model_metadata(model.triton_model, as_json=True, client_timeout=METADATA_TIMEOUT_S),
            client.api.get_model_config(model.triton_model, as_json=True, client_timeout=METADATA_TIMEOUT_S),
        )
        client.signature = signature(model, metadata, config["config"])
        return client.signature

    @asynccontextmanager
    async def _client(self, model: Model) -> AsyncGenerator[_Client]:
        client = self._clients.get(model.triton_model)
        if client is None:
            client = self._clients[model.triton_model] = _Client(self._url, self._ca)
            log.info("triton.client_created", model=model.name, url=self._url)
        self._clients.move_to_end(model.triton_model)
        client.calls += 1
        try:
            if len(self._clients) > self._most_clients:
                name, oldest = self._clients.popitem(last=False)
                oldest.evicted = True
                log.info("triton.client_evicted", model=name)
                await _close_if_done(oldest)
            yield client
        finally:
            client.calls -= 1
            await _close_if_done(client)


class _Shared:
    """A request whose tensor lies at the first of `places`, in a slot of our own if `staged`; the outputs go to `answer`."""

    def __init__(self, asked: InferInput, places: list[Place], staged: Staged | None) -> None:
        self.asked = asked
        self.places = places
        self.staged = staged
        self.answer: Staged | None = None
        self.layout: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []
        self.wanted: list[InferRequestedOutput] = []

    def give_back(self) -> None:
        """Free the slots of a request that was answered."""
        for slot in (self.staged, self.answer):
            if slot:
                slot.give_back()


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


async def _close_if_done(client: _Client) -> None:
    if client.evicted and not client.calls:
        with contextlib.suppress(InferenceServerException):
            await client.api.close()


def signature(model: Model, metadata: dict[str, Any], config: dict[str, Any]) -> Signature:
    """Read Triton's metadata and configuration of a model.

    Raises:
        InferenceFailed: it is no model that takes pictures of the registry's size.
    """
    inputs = metadata.get("inputs", [])
    if model.track == "D":
        if sorted(given["name"] for given in inputs) != sorted(ENCODED_INPUTS):
            raise InferenceFailed(f"{model.triton_model!r} in Triton does not take {', '.join(sorted(ENCODED_INPUTS))}")
        return Signature("encoded", "UINT8", channels_first=False, max_batch=int(config.get("max_batch_size", 0)) or 1)
    if len(inputs) != 1 or len(inputs[0].get("shape", [])) != 4:
        raise InferenceFailed(f"{model.triton_model!r} in Triton has not one input [batch, height, width, 3]")
    name, datatype = inputs[0]["name"], inputs[0]["datatype"]
    batch, *shape = (int(side) for side in inputs[0]["shape"])
    if datatype not in ("UINT8", "FP32"):
        raise InferenceFailed(f"{model.triton_model!r} in Triton takes {datatype}, not UINT8 or FP32")
    channels_first = shape[0] == 3 and shape[2] != 3
    height, width = shape[1:] if channels_first else shape[:2]
    if any(side not in (-1, wanted) for side, wanted in ((height, model.input_height), (width, model.input_width))):
        raise InferenceFailed(
            f"{model.triton_model!r} in Triton takes {width}x{height}, "
            f"the registry says {model.input_width}x{model.input_height}"
        )
    # max_batch_size 0 says that Triton does not batch; the model's own first axis tells what it takes then.
    limit = int(config.get("max_batch_size", 0)) or (model.max_batch if batch == -1 else max(batch, 1))
    return Signature(name, datatype, channels_first, limit, _fixed_outputs(metadata))


def _fixed_outputs(metadata: dict[str, Any]) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    outputs: list[tuple[str, str, tuple[int, ...]]] = []
    for output in metadata.get("outputs", []):
        shape = tuple(int(side) for side in output.get("shape", [])[1:])
        if min(shape, default=0) < 1 or output["datatype"] == "BYTES":
            return ()
        outputs.append((output["name"], output["datatype"], shape))
    return tuple(outputs)


def _as_input(images: Array, wanted: Signature) -> Array:
    if wanted.datatype == "FP32":
        images = images.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if wanted.channels_first else images


def _output(array: Array | None, name: str, count: int) -> Array:
    if array is None or len(array) != count:
        raise InferenceFailed(f"output {name!r} has {0 if array is None else len(array)} results for {count} pictures")
    return array


def _typed(error: InferenceServerException, model: Model) -> InferenceUnavailable | InferenceFailed:
    status, said = str(error.status() or ""), str(error.message() or "")
    is_for_now = any(code in status for code in _NOT_NOW) or "is not ready" in said or "unknown model" in said
    metrics.TRITON_ERRORS.labels(model.name, (InferenceUnavailable if is_for_now else InferenceFailed).code).inc()
    if is_for_now:
        return InferenceUnavailable(f"Triton cannot run {model.triton_model!r} now: {said}")
    return InferenceFailed(f"{model.triton_model!r} refused the input: {said}")
