"""Track A: PyTorch in this process, behind the same seam as Triton; the only code of the worker that knows torch.

A file is TorchScript (`.pt`, `.torchscript`) or `torch.export` (`.pt2`). It takes f32 [n, 3, height, width] in 0..1 (f16 if its
weights are) and gives [n, 4 + classes, anchors], alone or as the first of several: what Ultralytics' exports do.

torch is imported, files are loaded and batches are run in one thread of their own, so that the event loop goes on meanwhile.
One thread is enough: torch spreads a batch over the cores, or the GPU runs one after the other.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import structlog

from inference_worker.runtime import Array, Image, Outputs, stack
from shared import cores
from shared.errors import InferenceFailed, InferenceUnavailable, MeshError, RuntimeMissing
from shared.models import Model

_Version = tuple[str, int]
"""A file and when it was written, in ns; 0 if it is not there."""

log = structlog.get_logger()


class _Loaded(msgspec.Struct, frozen=True):
    """A model in memory: what runs it, where its input goes and as what, and the largest batch (0: any)."""

    run: Callable[[Any], Any]
    device: Any
    dtype: Any
    max_batch: int


class TorchRuntime:
    """The `Runtime` of track A. `device` is `auto` (a GPU if there is one) or what torch calls it: `cpu`, `cuda:0`."""

    def __init__(self, device: str = "auto") -> None:
        self._device = device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="torch")
        self._loads: dict[str, tuple[_Version, asyncio.Future[_Loaded]]] = {}

    async def infer(self, model: Model, images: Sequence[Image], timeout_s: float) -> Outputs:
        """See `Runtime.infer`; the one output is called `output0`.

        Raises:
            RuntimeMissing: torch is not installed here.
        """
        try:
            async with asyncio.timeout(timeout_s):
                loaded = await self._load(model)
                output = await asyncio.get_running_loop().run_in_executor(self._thread, _run, loaded, model, images)
        except TimeoutError:
            raise InferenceUnavailable(f"PyTorch did not finish {model.name!r} within {timeout_s:.1f} s") from None
        return {"output0": output}

    async def max_batch(self, model: Model) -> int:
        """See `Runtime.max_batch`. A model that cannot be loaded fails when it is run, not here."""
        try:
            return (await self._load(model)).max_batch or model.max_batch
        except InferenceFailed:
            return model.max_batch

    async def is_ready(self, model: Model) -> bool:
        """See `Runtime.is_ready`. Begins to load the model, and does not wait for it."""
        load = self._begin(model)
        return load.done() and load.exception() is None

    async def close(self) -> None:
        """Let the thread go; a batch that hangs in it does not hold us."""
        for _, load in self._loads.values():
            load.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _load(self, model: Model) -> _Loaded:
        return await asyncio.shield(self._begin(model))  # one caller's timeout must not end the load for the others

    def _begin(self, model: Model) -> asyncio.Future[_Loaded]:
        version = _version(model)
        known, load = self._loads.get(model.served_as, (None, None))
        if load is None or known != version:  # a file that is replaced, or that comes late, is loaded anew
            load = asyncio.get_running_loop().run_in_executor(self._thread, _load, model, self._device)
            load.add_done_callback(lambda load: _tell(load, model))
            self._loads[model.served_as] = version, load
        return load


def _version(model: Model) -> _Version:
    try:
        return model.torch_file, os.stat(model.torch_file).st_mtime_ns  # noqa: PTH116 - it is asked for each batch
    except OSError:
        return model.torch_file, 0


def _tell(load: asyncio.Future[_Loaded], model: Model) -> None:
    if load.cancelled():
        return
    error = load.exception()
    if error is None:
        log.info("torch.loaded", model=model.name, device=str(load.result().device))
    else:
        log.error("torch.not_loaded", model=model.name, error=str(error))


def _load(model: Model, device_name: str) -> _Loaded:
    """Read a model's file. Runs in torch's thread.

    Raises:
        RuntimeMissing: torch is not installed.
        InferenceFailed: there is no such file, or torch cannot read it.
    """
    if find_spec("torch") is None:
        raise RuntimeMissing(
            f"model {model.name!r} runs in PyTorch, which the inference worker lacks: pip install 'visionmesh[torch]' there"
        )
    file = Path(model.torch_file)
    if not file.is_file():
        raise InferenceFailed(f"the file {file.name!r} of model {model.name!r} is not there")
    try:
        import torch  # pyright: ignore[reportMissingImports] - an extra, and seconds to import

        # Its threads spin while they wait for each other: one on every core, beside decoders, took seven times the CPU.
        torch.set_num_threads(max(cores.available() // 2, 1))
        has_gpu = torch.cuda.is_available()
        device = torch.device(("cuda" if has_gpu else "cpu") if device_name == "auto" else device_name)
        return (_load_exported if file.suffix == ".pt2" else _load_script)(torch, file, device)
    except MeshError:
        raise
    except Exception as error:
        raise InferenceFailed(f"torch cannot load {file.name!r} of model {model.name!r}: {_first_line(error)}") from error


def _load_script(torch: Any, file: Path, device: Any) -> _Loaded:
    script = torch.jit.load(str(file), map_location=device).eval()
    return _Loaded(script, device, _dtype(torch, script.parameters(), script.buffers()), 0)


def _load_exported(torch: Any, file: Path, device: Any) -> _Loaded:
    program = torch.export.load(str(file))
    taken = next(node.meta["val"] for node in program.graph.nodes if node.name == program.graph_signature.user_inputs[0])
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass  # pyright: ignore[reportMissingImports]

        program = move_to_device_pass(program, device)
    return _Loaded(program.module(), device, taken.dtype, _batch_limit(program, taken.shape[0]))


def _batch_limit(program: Any, size: Any) -> int:
    """The largest batch of an exported program, from its first axis: a number, or a symbol with a range."""
    if isinstance(size, int):
        if size > 1:
            raise InferenceFailed(f"it takes batches of exactly {size}; export it with a dynamic batch or one of 1")
        return size
    bounds = program.range_constraints.get(size.node.expr)
    upper = int(bounds.upper) if bounds is not None and bounds.upper.is_finite else 0
    return min(upper, 2**31 - 1)


def _dtype(torch: Any, *tensors: Any) -> Any:
    floating = (tensor.dtype for group in tensors for tensor in group if tensor.is_floating_point())
    return next(floating, torch.float32)


def _run(loaded: _Loaded, model: Model, images: Sequence[Image]) -> Array:
    """One batch. Runs in torch's thread.

    Raises:
        InferenceFailed: the model refuses it, or gives what is no output of a detector.
    """
    import torch  # pyright: ignore[reportMissingImports] - is imported by now

    try:
        with torch.inference_mode():
            # Copied, for torch takes no array that must not be written to; as bytes, so that a GPU gets a quarter of it.
            pixels = torch.from_numpy(np.array(stack(model, images))).to(loaded.device)
            batch = (pixels.permute(0, 3, 1, 2).to(loaded.dtype) / 255).contiguous()
            output = loaded.run(batch)
            if isinstance(output, (tuple, list)):
                output = output[0]
            array: Array = output.float().cpu().numpy()
    except Exception as error:
        raise InferenceFailed(f"model {model.name!r} refused the batch: {_first_line(error)}") from error
    if array.ndim != 3 or len(array) != len(images):
        raise InferenceFailed(f"model {model.name!r} gave {list(array.shape)} for {len(images)} pictures")
    return array


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
