"""Triton over gRPC; the only code that knows tritonclient.

A client per model, made once, at most `MESH_TRITON_CLIENTS` of them; the least recently used goes when there is one too
many, after its calls have ended. Each has a connection of its own (a shared one saturates). What a model's input looks like
is read from Triton once, and again after it refused a batch, for the model may have been replaced.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np
import structlog
from tritonclient.grpc.aio import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from inference_worker.runtime import Array, Outputs, stack
from shared.errors import InferenceFailed, InferenceUnavailable
from shared.models import Model

METADATA_TIMEOUT_S = 5.0
READY_TIMEOUT_S = 1.0

_NOT_NOW = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "NOT_FOUND", "RESOURCE_EXHAUSTED", "ABORTED")
"""gRPC codes that another try may mend. NOT_FOUND: the model is not loaded at the moment."""

log = structlog.get_logger()


class Signature(msgspec.Struct, frozen=True):
    """What Triton says of a model's input: its name, `UINT8` or `FP32`, its layout and the largest batch."""

    input_name: str
    datatype: str
    channels_first: bool
    max_batch: int


class _Client:
    """A client and how many calls are in it."""

    def __init__(self, url: str) -> None:
        self.api = InferenceServerClient(url, channel_args=[("grpc.use_local_subchannel_pool", 1), *_UNLIMITED])
        self.calls = 0
        self.evicted = False
        self.signature: Signature | None = None


_UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class Triton:
    """The `Runtime` of tracks B and C."""

    def __init__(self, url: str, most_clients: int) -> None:
        self._url = url
        self._most_clients = most_clients
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    @property
    def client_count(self) -> int:
        """How many clients are open."""
        return len(self._clients)

    async def infer(self, model: Model, images: Sequence[bytes], timeout_s: float) -> Outputs:
        """See `Runtime.infer`. FP32 inputs get 0..1."""
        async with self._client(model) as client:
            try:
                async with asyncio.timeout(timeout_s):
                    signature = client.signature or await self._read_signature(client, model)
                    tensor = _as_input(stack(model, images), signature)
                    asked = InferInput(signature.input_name, list(tensor.shape), signature.datatype)
                    asked.set_data_from_numpy(tensor)
                    result = await client.api.infer(model.triton_model, [asked], client_timeout=timeout_s)
                    if result is None:
                        raise InferenceUnavailable(f"Triton gave no answer for {model.triton_model!r}")
            except TimeoutError:
                raise InferenceUnavailable(f"Triton did not answer within {timeout_s:.1f} s") from None
            except InferenceServerException as error:
                client.signature = None
                raise _typed(error, model) from None
            outputs = result.get_response().outputs
            return {output.name: _output(result.as_numpy(output.name), output.name, len(images)) for output in outputs}

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

    async def close(self) -> None:
        """Close all clients."""
        clients, self._clients = self._clients, OrderedDict()
        for client in clients.values():
            await client.api.close()

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
        client = self._clients.get(model.name)
        if client is None:
            client = self._clients[model.name] = _Client(self._url)
            log.info("triton.client_created", model=model.name, url=self._url)
        self._clients.move_to_end(model.name)
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
    return Signature(name, datatype, channels_first, limit)


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
    if any(code in status for code in _NOT_NOW) or "is not ready" in said or "unknown model" in said:
        return InferenceUnavailable(f"Triton cannot run {model.triton_model!r} now: {said}")
    return InferenceFailed(f"{model.triton_model!r} refused the input: {said}")
