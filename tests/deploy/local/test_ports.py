"""Ports that are picked stay the picker's until their servers listen, and are nobody else's meanwhile."""

import socket
import subprocess
import sys

import pytest

from deploy.local import ports
from deploy.local.errors import StartError

PICK = "from deploy.local import ports; print(*(ports.free() for _ in range({})))"


def test_no_port_is_given_twice_before_its_server_listens() -> None:
    """Of so many picks two would be the same almost surely, were they let go: the kernel gives them out of thousands."""
    picked = [ports.free() for _ in range(300)]
    try:
        others = subprocess.run(
            [sys.executable, "-c", PICK.format(300)], check=True, capture_output=True, text=True
        ).stdout.split()
        assert len({*picked, *map(int, others)}) == 600
    finally:
        for port in picked:
            ports.let_go(port)


def test_a_server_can_listen_there_again_and_again() -> None:
    port = ports.free()
    for _ in range(2):
        with socket.create_server(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
            assert not ports.is_free(port)
            with pytest.raises(StartError, match=f"port {port} on 127.0.0.1 is taken"):
                ports.claim(port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    assert ports.claim(port) == port
    ports.let_go(port)
