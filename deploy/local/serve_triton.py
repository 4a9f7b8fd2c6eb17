"""`python -m deploy.local.serve_triton`: the embedded Triton alone, reachable from elsewhere; for containers without a GPU.

It serves the built-in detector from a folder of its own on 8000 (HTTP), 8001 (gRPC) and 8002 (metrics), in place of this
process, so that a signal meant for it reaches it.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from deploy.export import repository
from deploy.local.errors import StartError
from deploy.local.triton import Triton

HTTP_PORT, GRPC_PORT, METRICS_PORT = 8000, 8001, 8002


def main() -> int:
    """Write the models and become Triton; returns an exit code only if that cannot be."""
    folder = Path(tempfile.mkdtemp(prefix="visionmesh-triton-"))
    names = repository.write_default(folder / "models")
    try:
        triton = Triton(
            folder,
            folder / "models",
            names,
            http_port=HTTP_PORT,
            grpc_port=GRPC_PORT,
            metrics_port=METRICS_PORT,
            host="0.0.0.0",  # noqa: S104 - the container's network decides who comes here
        )
    except StartError as error:
        print(f"triton: {error}", file=sys.stderr)  # noqa: T201 - the one line for a person who started us by hand
        return 2
    return _become(triton.command, triton.environ)


def _become(command: list[str], environ: dict[str, str]) -> NoReturn:
    os.execve(command[0], command, environ)  # noqa: S606 - this very program, without a shell


if __name__ == "__main__":
    sys.exit(main())
