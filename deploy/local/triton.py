"""The embedded Triton: NVIDIA's own server from the package `nvidia-pytriton`, with our model repository.

The wheel carries the server and its Python backend, with a stub for each minor version of Python. Triton wants the
backend's library, its Python module and the stub side by side, so they are linked into a folder of the run directory.
"""

import http.client
import os
import secrets
import site
import sys
import sysconfig
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from deploy.local.errors import StartError
from deploy.local.process import Process

CONTROL = "model-repository,logging,trace"
CONTROL_HEADER = "x-mesh-control"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps it


class Triton(Process):
    """A Triton on the loopback address, or `host`, that serves these models of a repository, and only these."""

    def __init__(
        self,
        folder: Path,
        repository: Path,
        models: Sequence[str],
        *,
        http_port: int,
        grpc_port: int,
        metrics_port: int,
        host: str = "127.0.0.1",
        more_repositories: Sequence[Path] = (),
        more_options: Sequence[str] = (),
    ) -> None:
        self.http_port = http_port
        self.control_key = secrets.token_urlsafe(24)
        self.control_headers = {CONTROL_HEADER: self.control_key}
        """What a request over HTTP must carry to load and unload models."""
        self.url = f"127.0.0.1:{grpc_port}"
        self.shm_prefix = f"mesh-triton-{secrets.token_hex(8)}-"
        """How the shared memory begins that this Triton's Python backend makes; no arena of ours is named like it."""
        package = _package()
        server = package / "tritonserver"
        command = [
            str(server / "bin" / "tritonserver"),
            *(f"--model-repository={repository}" for repository in (repository, *more_repositories)),
            f"--backend-directory={_backends(server, folder / 'backends')}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in models),
            f"--http-address={host}", f"--http-port={http_port}",
            f"--grpc-address={host}", f"--grpc-port={grpc_port}",
            f"--metrics-address={host}", f"--metrics-port={metrics_port}",
            # Whoever reaches a port may infer, but not change what is served.
            f"--http-restricted-api={CONTROL}:{CONTROL_HEADER}={self.control_key}",
            f"--grpc-restricted-protocol={CONTROL}:{CONTROL_HEADER}={self.control_key}",
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
            "--exit-timeout-secs=3",
            "--disable-auto-complete-config",
            *more_options,
        ]  # fmt: skip
        library_path = [package.parent / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")]
        environ = {
            # The stub finds its packages as the first `python3` on PATH would: ours.
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "HOME": str(folder),
            "LD_LIBRARY_PATH": ":".join(str(path) for path in library_path),
            "PYTHONPATH": ":".join([*site.getsitepackages(), *(path for path in sys.path if path.endswith("-packages"))]),
            # Threads of BLAS behind numpy would only take cores from the graph's own.
            "OPENBLAS_NUM_THREADS": "1",
        }
        super().__init__("triton", command, environ, folder / "triton.log")

    def remove_leftovers(self) -> None:
        """End the processes of a killed Triton's Python models, which do not notice, and remove the shared memory to them."""
        self.end_group()
        for region in SHARED_MEMORY.glob(f"{self.shm_prefix}*"):
            region.unlink(missing_ok=True)

    def is_telling(self, line: str) -> bool:
        """Triton ends its log with tables; its errors begin with an E and the date."""
        return line.startswith("E")

    def ready(self) -> bool:
        """Whether the server and all its models answer. Blocks for at most a second."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=1)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()


def _package() -> Path:
    # Found, not imported: importing pytriton would load its whole client side.
    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise StartError("the package nvidia-pytriton is missing: pip install 'visionmesh[local]', or set MESH_TRITON_URL")
    return Path(spec.origin).parent


def _backends(server: Path, folder: Path) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise StartError(f"the embedded Triton has no stub for Python {version}; use 3.11 or 3.12, or set MESH_TRITON_URL")
    python = folder / "python"
    python.mkdir(parents=True, exist_ok=True)
    backend = server / "backends" / "python"
    for file in (backend / "libtriton_python.so", backend / "triton_python_backend_utils.py", stub):
        link = python / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(file)
    return folder
