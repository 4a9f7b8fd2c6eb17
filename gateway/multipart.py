"""multipart/form-data as a stream of events; no part is ever collected.

    PartBegin(name) · data · data · PartEnd · PartBegin(name) · ...

The grammar is python-multipart's; the bounds are ours: parts, headers of a part, and bytes after the closing boundary.
"""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from shared.errors import MalformedMultipart

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

EPILOGUE_BYTES = 4096
"""What may follow the closing boundary; RFC 2046 allows an epilogue, nobody needs one."""


class PartBegin(msgspec.Struct, frozen=True):
    """A part with this form name begins. Its file name is not kept: nothing here may depend on it."""

    name: str


class PartEnd(msgspec.Struct, frozen=True):
    """The part is complete."""


Event = PartBegin | bytes | PartEnd


class _Events:
    """python-multipart's callbacks, turned into events."""

    def __init__(self, max_parts: int) -> None:
        self.events: list[Event] = []
        self.ended = False
        self._left = max_parts
        self._max_parts = max_parts
        self._field, self._value = b"", b""
        self._disposition = b""

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._part_begin,
            "on_part_data": lambda data, start, end: self.events.append(data[start:end]),
            "on_part_end": lambda: self.events.append(PartEnd()),
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise MalformedMultipart(f"the body has more than {self._max_parts} parts")
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field, self._value = b"", b""

    def _headers_finished(self) -> None:
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data" or b"name" not in options:
            raise MalformedMultipart("a part has no Content-Disposition: form-data with a name")
        self.events.append(PartBegin(options[b"name"].decode("utf-8", "replace")))

    def _end(self) -> None:
        self.ended = True


async def events(chunks: AsyncIterator[bytes], content_type: str, *, max_parts: int) -> AsyncIterator[Event]:
    """The events of a multipart body.

    Raises:
        MalformedMultipart: it breaks the grammar or a bound, or ends without its closing boundary.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise MalformedMultipart("the Content-Type names no boundary")
    found = _Events(max_parts)
    try:
        parser = MultipartParser(boundary, found.callbacks())
        epilogue_bytes = 0
        async for chunk in chunks:
            if found.ended:
                epilogue_bytes += len(chunk)
                if epilogue_bytes > EPILOGUE_BYTES:
                    raise MalformedMultipart(f"more than {EPILOGUE_BYTES} bytes follow the closing boundary")
                continue
            parser.write(chunk)
            for event in found.events:
                yield event
            found.events.clear()
    except MultipartParseError as error:
        raise MalformedMultipart(f"the body breaks the multipart grammar: {error}") from None
    if not found.ended:
        raise MalformedMultipart("the body ends without its closing boundary")


def is_multipart(content_type: str) -> bool:
    """Whether this Content-Type is multipart/form-data."""
    return content_type.split(";", 1)[0].strip().lower() == "multipart/form-data"
