"""The whole mesh on this machine: started in order, watched, restarted part by part, and stopped without a trace.

    Valkey ┐                      ┌ preprocess worker ┐
           ├─ both answer ──▶ ────┤ inference worker  ├──▶ /readyz says ready
    Triton ┘                      └ gateway           ┘

Servers named by MESH_REDIS_URL or MESH_TRITON_URL are used instead of our own. Everything that is written lies in one
temporary folder, which goes with the mesh.
"""

import asyncio
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from deploy.export import repository
from deploy.local import ports
from deploy.local.errors import StartError
from deploy.local.process import Process, python_module
from deploy.local.triton import Triton
from deploy.local.valkey import Valkey
from shared import models as registries
from shared.store.arena import Ownerless

READY_WITHIN_S = 60.0
POLL_S = 0.05
STOP_WITHIN_S = 9.0
RESTART_LEAST_S, RESTART_MOST_S = 0.2, 10.0
STEADY_S = 30.0
"""A process that ran this long before it died is restarted at once: it is no crash loop."""

STARTS_ALLOWED = 3
"""A part that dies this often before the mesh was ever ready will not become ready."""

RECYCLED = 0
"""The exit code of a worker that was old or large, had finished what it had, and wants to be started again."""

MISUSE = 2
"""The exit code with which our services say that their configuration is wrong; starting them again would not help."""

ASKERS_NICE = 5
"""What the gateway and the tasks give way by: where cores are short, what was accepted goes before who asks."""

Progress = Callable[[str, str], None]
"""Told `(part, what it is doing)`, for people who wait."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to run the mesh. `port` 0 takes 9600 or, if that is taken, any free one."""

    host: str = "127.0.0.1"
    port: int = 0
    preprocess_workers: int = 1
    inference_workers: int = 1
    redis_url: str = ""
    triton_url: str = ""
    environ: dict[str, str] = {}


DEFAULT_PORT = 9600


class LocalMesh:
    """Made and started by `running`."""

    def __init__(self, options: Options, folder: Path, progress: Progress) -> None:
        self.folder = folder
        self.processes: dict[str, Process] = {}
        self.metrics_ports: dict[str, int] = {}
        """Where each service tells its metrics, on the loopback address."""
        self.redis_url = options.redis_url
        self.triton_url = options.triton_url
        self._options = options
        self._control_key = os.environ.get("MESH_TRITON_CONTROL_KEY", "")
        self._progress = progress
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._was_ready = False
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Set to one line when a part cannot be kept running."""
        if options.port:
            self.port = ports.claim(options.port, options.host)
        else:
            is_free = ports.is_free(DEFAULT_PORT, options.host)
            self.port = ports.claim(DEFAULT_PORT, options.host) if is_free else ports.free(options.host)
        self._ports = [self.port]

    @property
    def url(self) -> str:
        """Where the gateway answers."""
        host = "127.0.0.1" if self._options.host in ("0.0.0.0", "::", "") else self._options.host  # noqa: S104
        return f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Start all parts and wait until the mesh is ready.

        Raises:
            StartError: a part does not start; its last words are in the message.
        """
        await asyncio.gather(self._start_valkey(), self._start_triton())
        environ = self.service_environ()
        services = {"gateway": "gateway", "tasks": "gateway.tasks"}
        services |= _numbered("preprocess", "preprocess_worker", self._options.preprocess_workers)
        services |= _numbered("inference", "inference_worker", self._options.inference_workers)
        for name, module in services.items():
            self._progress(name, "starting")
            self.metrics_ports[name] = self._metrics_port(name)
            own = environ | {"MESH_METRICS_PORT": str(self.metrics_ports[name])}
            nice = 0 if module.endswith("_worker") else ASKERS_NICE
            process = Process(name, python_module(module), own, self.folder / f"{name}.log", nice=nice)
            await self._launch(process)
        await self._until(self._is_ready, "the mesh", list(services))
        self._was_ready = True

    def service_environ(self) -> dict[str, str]:
        """The environment of our services, which also serves a client of this mesh's Redis."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("MESH_LOCAL_")}
        environ |= {
            "MESH_REDIS_URL": self.redis_url,
            "MESH_TRITON_URL": self.triton_url,
            "MESH_TRITON_CONTROL_KEY": self._control_key,
            "MESH_HOST": self._options.host,
            "MESH_PORT": str(self.port),
            # A pool of BLAS threads in every worker would fight over the cores; no stage of ours uses them.
            "OPENBLAS_NUM_THREADS": "1",
        }
        if "valkey" in self.processes:  # a Redis that outlives us would have pointers to files that do not
            environ.setdefault("MESH_UPLOAD_FOLDER", str(self.folder / "uploads"))
        return environ | self._options.environ

    async def stop(self) -> None:
        """Stop in the order in which work flows, so that what is in progress can end. Takes at most ten seconds."""
        for watcher in self._watchers.values():
            watcher.cancel()
        await asyncio.gather(*self._watchers.values(), return_exceptions=True)
        deadline_s = time.monotonic() + STOP_WITHIN_S
        first = [process for name, process in self.processes.items() if name not in ("valkey", "triton")]
        await asyncio.gather(*(process.stop(max(deadline_s - 3.0 - time.monotonic(), 0.5)) for process in first))
        left_s = max(deadline_s - time.monotonic(), 0.5)
        # Nobody asks Triton any more; by itself it would take three seconds to put its models away.
        waits_s = {"valkey": left_s, "triton": 0.0}
        await asyncio.gather(*(self.processes[name].stop(waits_s[name]) for name in waits_s if name in self.processes))
        Ownerless(grace_s=0).sweep()  # shared memory of workers that were killed
        shutil.rmtree(self.folder, ignore_errors=True)
        for port in self._ports:
            ports.let_go(port)

    # --- the parts -----------------------------------------------------------------------------------------------

    async def _start_valkey(self) -> None:
        if self.redis_url:
            self._progress("valkey", f"using {self.redis_url}")
            return
        self._progress("valkey", "starting")
        valkey = Valkey(self.folder, self._free_port())
        self.redis_url = valkey.url
        await self._launch(valkey)
        await self._until(valkey.ready, "Valkey", ["valkey"])
        self._progress("valkey", "ready")

    async def _start_triton(self) -> None:
        if self.triton_url:
            self._progress("triton", f"using {self.triton_url}")
            return
        self._progress("triton", "writing the models")
        setting = self._options.environ.get("MESH_MODELS", os.environ.get("MESH_MODELS", ""))
        models = self.folder / "models"
        own, names = await asyncio.to_thread(_repositories, models, setting)
        http_port, grpc_port, metrics_port = (self._free_port() for _ in range(3))
        triton = Triton(
            self.folder,
            models,
            names,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            more_repositories=own,
        )
        self.triton_url = triton.url
        self._control_key = triton.control_key
        self._progress("triton", "loading the models")
        await self._launch(triton)

        async def is_ready() -> bool:
            return await asyncio.to_thread(triton.ready)

        await self._until(is_ready, "Triton", ["triton"])
        self._progress("triton", "ready")

    def _metrics_port(self, name: str) -> int:
        """The gateway's is the one that a person may want to know: next to its own if it can be had."""
        beside = self.port + 1
        if name == "gateway" and beside <= 65535 and ports.is_free(beside):
            self._ports.append(ports.claim(beside))
            return beside
        return self._free_port()

    def _free_port(self) -> int:
        """A port that is ours until the mesh stops, so that a part that is started again finds it free."""
        self._ports.append(ports.free())
        return self._ports[-1]

    async def _is_ready(self) -> bool:
        checks = await asyncio.to_thread(_readiness, self._options.host, self.port)
        for name, holds in checks.items():
            self._progress(name, "ready" if holds else "starting")
        return bool(checks) and all(checks.values())

    async def _until(self, ready: Callable[[], Awaitable[bool]], what: str, parts: list[str]) -> None:
        """Poll until `ready`; a part that ends with a configuration error meanwhile, or time running out, is a StartError."""
        deadline_s = time.monotonic() + READY_WITHIN_S
        while not await ready():
            if self.failed.done():
                raise StartError(self.failed.result())
            if time.monotonic() > deadline_s:
                said = "; ".join(f"{part}: {line}" for part in parts if (line := self.processes[part].last_line()))
                raise StartError(f"{what} is not ready after {READY_WITHIN_S:g} s; {said or 'its log is empty'}")
            await asyncio.sleep(POLL_S)

    # --- keeping them running ------------------------------------------------------------------------------------

    async def _launch(self, process: Process) -> None:
        await process.start()
        self.processes[process.name] = process
        self._watchers[process.name] = asyncio.create_task(self._watch(process))

    async def _watch(self, process: Process) -> None:
        """Restart a part that dies, with backoff; give up only on one whose configuration is wrong."""
        pause_s = RESTART_LEAST_S
        ends = 0
        while True:
            started_s = time.monotonic()
            code = await process.wait()
            ends += 1
            if code == MISUSE or (ends == STARTS_ALLOWED and not self._was_ready):
                if not self.failed.done():
                    self.failed.set_result(process.last_line() or f"{process.name} ends at once, with exit code {code}")
                return
            if code == RECYCLED or time.monotonic() - started_s > STEADY_S:
                pause_s = RESTART_LEAST_S
            self._progress(process.name, f"{_how_it_ended(code)}; restarting")
            await asyncio.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311 - jitter needs no secrecy
            pause_s = min(pause_s * 2, RESTART_MOST_S)
            await process.start()
            self._progress(process.name, f"restarted as process {process.pid}")


@asynccontextmanager
async def running(options: Options, progress: Progress = lambda _part, _doing: None) -> AsyncGenerator[LocalMesh]:
    """A mesh that is ready, for as long as the block lasts.

    Raises:
        StartError: it does not start; nothing is left running.
    """
    folder = Path(tempfile.mkdtemp(prefix="visionmesh-"))
    try:
        mesh = LocalMesh(options, folder, progress)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        await mesh.start()
        yield mesh
    finally:
        # A second Ctrl-C must not leave half of the mesh behind.
        await asyncio.shield(mesh.stop())


def _repositories(folder: Path, setting: str) -> tuple[list[Path], list[str]]:
    """The repositories that Triton gets besides `folder`, and the models that it loads by itself. Blocks.

    The built-in models are written anew into a folder of this run. The user's are brought in by the inference worker: one that
    does not load must not keep the others from being served.
    """
    registry = registries.load(setting)
    wanted = {model.triton_model for name, model in registry.models.items() if name not in registry.unloaded}
    names = repository.write_default(folder)
    file = registries.file_of(setting)
    own = registries.repository_of((registries.user_file() or file) if file == registries.DEFAULT_FILE else file)
    with contextlib.suppress(OSError):  # a registry in a place that is only read has no models to come
        own.mkdir(parents=True, exist_ok=True)
    if not own.is_dir():
        return [], [name for name in names if name in wanted]
    for name in names:
        if (own / name).exists():  # Triton refuses a name that two repositories hold
            shutil.rmtree(folder / name)
    return [own], [name for name in names if name in wanted and not (own / name).exists()]


def _how_it_ended(code: int) -> str:
    if code == RECYCLED:
        return "is done with its work and ends"
    return f"ended with signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _numbered(name: str, module: str, count: int) -> dict[str, str]:
    return {name if count == 1 else f"{name}-{number}": module for number in range(1, count + 1)}


def _readiness(host: str, port: int) -> dict[str, bool]:
    connection = http.client.HTTPConnection("127.0.0.1" if host in ("0.0.0.0", "::", "") else host, port, timeout=2)  # noqa: S104
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/readyz")
            return json.loads(connection.getresponse().read())["checks"]
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return {}
