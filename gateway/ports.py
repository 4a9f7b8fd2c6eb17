"""Whether the gateway's port can be had, known before any process is spawned."""

import socket


class PortTaken(Exception):
    """The address cannot be listened on. The message is one line."""


def check(host: str, port: int) -> None:
    """Bind and let go.

    Raises:
        PortTaken: somebody else listens there, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTaken(
                f"cannot listen on {host}:{port} ({error.strerror}); choose another with MESH_HOST, MESH_PORT"
            ) from None
