"""Free TCP ports on the loopback address."""

import socket

from deploy.local.errors import StartError


def free(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def claim(port: int, host: str = "127.0.0.1", *, setting: str = "--port") -> int:
    """The port that was asked for.

    Raises:
        StartError: somebody else listens there.
    """
    if not is_free(port, host):
        raise StartError(f"port {port} on {host} is taken; stop what listens there or choose another with {setting}")
    return port
