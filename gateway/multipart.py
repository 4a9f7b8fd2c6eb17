"""multipart/form-data as a stream of events; no part is ever collected.

    PartBegin(name) · data · data · PartEnd · PartBegin(name) · ...

The grammar is python-multipart's; the bounds are ours: parts, headers of a part, and bytes after the closing boundary.
"""

import re
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


Data = bytes | memoryview
Event = PartBegin | Data | PartEnd

_PLAIN_TYPE = re.compile(r"multipart/form-data; ?boundary=([0-9A-Za-z'+_.-]{1,70})")
_TYPE = rb"(?i:Content-Type): [0-9A-Za-z/+.-]{1,64}\r\n"
_PLAIN_HEADERS = re.compile(
    rb"(?:%b)?"
    rb'(?i:Content-Disposition): form-data; name="([0-9A-Za-z_\[\]-]{1,64})"(?:; filename="[^"\\\r\n\0]{0,256}")?\r\n'
    rb"(?:%b)?\r\n" % (_TYPE, _TYPE)
)


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
    boundary = _boundary(content_type)
    found = _Events(max_parts)
    parser: MultipartParser | None = None
    try:
        epilogue_bytes = 0
        async for chunk in chunks:
            if found.ended:
                epilogue_bytes += len(chunk)
                if epilogue_bytes > EPILOGUE_BYTES:
                    raise MalformedMultipart(f"more than {EPILOGUE_BYTES} bytes follow the closing boundary")
                continue
            if parser is None:
                if max_parts and (part := _only_part(chunk, boundary)):
                    found.ended = True
                    for event in part:
                        yield event
                    continue
                parser = MultipartParser(boundary, found.callbacks())
            parser.write(chunk)
            for event in found.events:
                yield event
            found.events.clear()
    except MultipartParseError as error:
        raise MalformedMultipart(f"the body breaks the multipart grammar: {error}") from None
    if not found.ended:
        raise MalformedMultipart("the body ends without its closing boundary")


def _boundary(content_type: str) -> bytes:
    plain = _PLAIN_TYPE.fullmatch(content_type)
    if plain:
        return plain[1].encode()
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise MalformedMultipart("the Content-Type names no boundary")
    return boundary


def _only_part(body: bytes, boundary: bytes) -> tuple[PartBegin, memoryview, PartEnd] | None:
    """The part of a whole body that has just one, written as all clients write it; `None` sends it to the parser.

    A form with a photo mostly comes in one piece, and costs the parser as much as all else that is done to accept it.
    """
    opening, closing = b"--%b\r\n" % boundary, b"\r\n--%b" % boundary
    if not body.startswith(opening) or not body.endswith((closing + b"--\r\n", closing + b"--")):
        return None  # also the first piece of a large form, which is not searched twice
    headers = _PLAIN_HEADERS.match(body, len(opening))
    if not headers:
        return None
    end = body.find(closing, headers.end())
    if end < 0 or body[end + len(closing) :] not in (b"--\r\n", b"--"):
        return None
    return PartBegin(headers[1].decode()), memoryview(body)[headers.end() : end], PartEnd()


def is_multipart(content_type: str) -> bool:
    """Whether this Content-Type is multipart/form-data."""
    return content_type.split(";", 1)[0].strip().lower() == "multipart/form-data"
