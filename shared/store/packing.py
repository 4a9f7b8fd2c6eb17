"""Commands as the bytes that Redis reads; a large value is sent as it lies, and not copied into its command."""

from collections.abc import Sequence
from typing import Any

import hiredis

Buffer = bytes | bytearray | memoryview


class Pieces:
    """A large value in one or more buffers, as the third part of a command: `("SET", key, Pieces(...), ...)`."""

    __slots__ = ("buffers", "length")

    def __init__(self, *buffers: Buffer) -> None:
        self.buffers = buffers
        self.length = sum([memoryview(each).nbytes for each in buffers])

    def __len__(self) -> int:
        return self.length


def pack(commands: Sequence[Sequence[Any]]) -> tuple[list[Buffer], int]:
    """The buffers to be sent one after the other, and how many bytes they are."""
    buffers: list[Buffer] = []
    count = 0
    for command in commands:
        if len(command) > 2 and type(command[2]) is Pieces:
            name, key, value, *rest = command
            head = b"*%d\r\n%b%b$%d\r\n" % (len(command), _part(name), _part(key), value.length)
            tail = b"\r\n" + b"".join([_part(each) for each in rest])
            buffers += (head, *value.buffers, tail)
            count += len(head) + value.length + len(tail)
        else:
            packed = hiredis.pack_command(tuple(command))
            buffers.append(packed)
            count += len(packed)
    return buffers, count


def _part(value: Any) -> bytes:
    text = value if isinstance(value, bytes) else str(value).encode()
    return b"$%d\r\n%b\r\n" % (len(text), text)
