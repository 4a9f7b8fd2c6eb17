"""Track A: the built-in detector as torch files, beside ONNX Runtime, behind the runtime's seam."""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from deploy.export import repository, torch_module
from deploy.export.detector import load
from deploy.export.errors import ExportError
from inference_worker import torch_runtime
from inference_worker.torch_runtime import TorchRuntime
from shared.errors import InferenceFailed, RuntimeMissing
from shared.models import Model

SIDE = 300
# TorchScript is on its way out of PyTorch, and is what most exports of today are.
pytestmark = [pytest.mark.tracks, pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")]

FILES = ("small.pt2", "small.torchscript")


def model(file: Path, **more: int) -> Model:
    return Model(name="small_pytorch", track="A", torch_file=str(file), input_width=SIDE, input_height=SIDE, **more)


def pictures(count: int) -> list[bytes]:
    return [np.random.default_rng(seed).integers(0, 256, SIDE * SIDE * 3, np.uint8).tobytes() for seed in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch")
    for name in FILES:
        torch_module.write(load(repository.DEFAULT_ONNX), folder / name)
    return folder


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    images = np.frombuffer(b"".join(pictures(5)), np.uint8).reshape(5, SIDE, SIDE, 3)
    session = ort.InferenceSession(str(repository.DEFAULT_ONNX), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.transpose(0, 3, 1, 2).astype(np.float32) / 255})[0]


def with_runtime(scenario: Callable[[TorchRuntime], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        runtime = TorchRuntime("cpu")
        try:
            return await scenario(runtime)
        finally:
            await runtime.close()

    return asyncio.run(run())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("count", [1, 5])
def test_a_file_gives_what_onnx_runtime_gives(folder: Path, expected: np.ndarray, name: str, count: int) -> None:
    outputs = with_runtime(lambda runtime: runtime.infer(model(folder / name), pictures(count), 30))
    assert list(outputs) == ["output0"]
    np.testing.assert_allclose(outputs["output0"][:, 4:], expected[:count, 4:], atol=1e-5)  # scores, 0..1
    np.testing.assert_allclose(outputs["output0"][:, :4], expected[:count, :4], atol=1e-2)  # pixels


def test_ready_once_it_is_loaded_and_the_loop_goes_on_meanwhile(folder: Path) -> None:
    async def scenario(runtime: TorchRuntime) -> float:
        small = model(folder / FILES[0])
        assert not await runtime.is_ready(small)
        longest_s, turn_s = 0.0, time.perf_counter()
        async with asyncio.timeout(60):
            while not await runtime.is_ready(small):
                await asyncio.sleep(0)
                longest_s, turn_s = max(longest_s, time.perf_counter() - turn_s), time.perf_counter()
        running = asyncio.create_task(runtime.infer(small, pictures(5), 30))
        turns = 0
        while not running.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns > 10
        return longest_s

    assert with_runtime(scenario) < 2.0


def test_the_batch_is_the_files_or_the_registrys(folder: Path) -> None:
    assert with_runtime(lambda runtime: runtime.max_batch(model(folder / "small.pt2"))) == torch_module.MOST_EXPORTED
    assert with_runtime(lambda runtime: runtime.max_batch(model(folder / "small.torchscript", max_batch=3))) == 3


@pytest.mark.parametrize("name", ["gone.pt2", "damaged.pt2", "damaged.pt"])
def test_a_file_that_cannot_be_loaded_fails_its_jobs_with_one_line(tmp_path: Path, name: str) -> None:
    if not name.startswith("gone"):
        (tmp_path / name).write_bytes(b"no model at all")

    async def scenario(runtime: TorchRuntime) -> None:
        with pytest.raises(InferenceFailed, match=name) as caught:
            await runtime.infer(model(tmp_path / name), pictures(1), 30)
        assert "\n" not in caught.value.detail
        assert str(tmp_path) not in caught.value.detail
        assert not await runtime.is_ready(model(tmp_path / name))

    with_runtime(scenario)


def test_a_file_that_comes_late_or_is_replaced_is_loaded_anew(folder: Path, tmp_path: Path) -> None:
    late = model(tmp_path / "late.pt2")

    async def scenario(runtime: TorchRuntime) -> None:
        with pytest.raises(InferenceFailed, match="is not there"):
            await runtime.infer(late, pictures(1), 30)
        shutil.copy(folder / FILES[0], late.torch_file)
        assert (await runtime.infer(late, pictures(1), 30))["output0"].shape == (1, 84, 1917)
        shutil.copy(__file__, late.torch_file)  # no model at all
        with pytest.raises(InferenceFailed, match="cannot load"):
            await runtime.infer(late, pictures(1), 30)

    with_runtime(scenario)


def test_a_module_that_gives_no_detections_is_refused(tmp_path: Path) -> None:
    import torch

    torch.jit.script(torch.nn.Flatten()).save(str(tmp_path / "flat.pt"))
    with pytest.raises(InferenceFailed, match=r"gave \[2, 270000\] for 2 pictures"):
        with_runtime(lambda runtime: runtime.infer(model(tmp_path / "flat.pt"), pictures(2), 30))


def test_a_device_that_is_not_here_is_told(folder: Path) -> None:
    runtime = TorchRuntime("cuda:7")
    with pytest.raises(InferenceFailed, match=r"cannot load 'small\.torchscript'"):
        asyncio.run(runtime.infer(model(folder / "small.torchscript"), pictures(1), 30))


def test_without_torch_the_error_says_how_to_install_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_runtime, "find_spec", lambda _name: None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'visionmesh\[torch\]'"):
        with_runtime(lambda runtime: runtime.infer(model(folder / FILES[0]), pictures(1), 30))


def test_an_operator_without_a_torch_version_is_named(tmp_path: Path) -> None:
    detector = load(repository.DEFAULT_ONNX)
    detector.model.graph.node[0].op_type = "Celu"
    with pytest.raises(ExportError, match="uses Celu"):
        torch_module.write(detector, tmp_path / "other.pt2")
