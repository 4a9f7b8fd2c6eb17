"""Free TCP ports on the loopback address, which stay ours from when they are picked.

A port that is picked and let go again may be given to somebody else before the server that it is for listens there, seconds
later: the kernel gives such ports out of some 7,000, and with eight meshes of ten ports each that start at the same time every
twentieth meets another. So the socket that was given the port keeps it: bound, but not listening, it lets a server that sets
SO_REUSEADDR listen there - as Valkey, Triton, Granian and asyncio do - and nobody is given it meanwhile (Linux).
"""

import os
import socket

from deploy.local.errors import StartError

_held: dict[int, int] = {}
"""Port -> the descriptor of the socket that keeps it for this process."""


def free(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on, and that nobody else is given until `let_go`."""
    keeper = socket.socket()
    try:
        keeper.bind((host, 0))
        # Not before: with it, the kernel might give us a port that somebody else keeps in the same way.
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except BaseException:
        keeper.close()
        raise
    port = int(keeper.getsockname()[1])
    _keep(port, keeper)
    return port


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        return _bound(probe, port, host)


def claim(port: int, host: str = "127.0.0.1", *, setting: str = "--port") -> int:
    """The port that was asked for, kept as one from `free` is.

    Raises:
        StartError: somebody else listens there.
    """
    keeper = socket.socket()
    if not _bound(keeper, port, host):
        keeper.close()
        raise StartError(f"port {port} on {host} is taken; stop what listens there or choose another with {setting}")
    _keep(port, keeper)
    return port


def let_go(port: int) -> None:
    """Keep a port no longer, if it was kept."""
    if (keeper := _held.pop(port, None)) is not None:
        os.close(keeper)


def _bound(keeper: socket.socket, port: int, host: str) -> bool:
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        keeper.bind((host, port))
    except OSError:
        return False
    return True


def _keep(port: int, keeper: socket.socket) -> None:
    let_go(port)
    _held[port] = keeper.detach()
