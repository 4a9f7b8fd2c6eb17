"""A form that comes in one piece is read in one look; what is seen in it must be what the parser sees."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence

import pytest

from gateway import multipart
from shared.errors import MalformedMultipart

TYPE = "multipart/form-data; boundary=b"
PHOTO = b"\xff\xd8\xff\r\n--a\r\n--" + os.urandom(5000).replace(b"\r\n--b", b"") + b"\r\n"
HEADERS = b'Content-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
WHOLE = b"--b\r\n" + HEADERS + PHOTO + b"\r\n--b--\r\n"

BODIES = {
    "one part": WHOLE,
    "no final line end": WHOLE[:-2],
    "no type": WHOLE.replace(b"\r\nContent-Type: image/jpeg", b""),
    "no file name": WHOLE.replace(b'; filename="a.jpg"', b""),
    "another name": WHOLE.replace(b'name="image"', b'name="no picture"'),
    "empty part": b"--b\r\n" + HEADERS + b"\r\n--b--\r\n",
    "two parts": WHOLE[:-4] + b"\r\n" + HEADERS + b"2\r\n--b--\r\n",
    "epilogue": WHOLE + b"more",
    "more headers": WHOLE.replace(b"Content-Type", b"X-More: 1\r\nContent-Type"),
    "no disposition": WHOLE.replace(b"Content-Disposition", b"Content-Nothing"),
    "not closed": WHOLE[:-6],
    "boundary goes on": WHOLE.replace(b"\r\n--b--", b"\r\n--bb--"),
    "preamble": b"\r\n" + WHOLE,
    "nothing": b"--b--\r\n",
}


async def _seen(chunks: Sequence[bytes], content_type: str = TYPE) -> list[str | bytes] | str:
    """The names of the parts and their data, or the error."""

    async def pieces() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    seen: list[str | bytes] = []
    try:
        async for event in multipart.events(pieces(), content_type, max_parts=8):
            if isinstance(event, multipart.PartBegin):
                seen += [event.name, b""]
            elif not isinstance(event, multipart.PartEnd):
                seen[-1] += bytes(event)  # type: ignore[operator]
    except MalformedMultipart:
        return "malformed"
    return seen


@pytest.mark.parametrize("name", BODIES)
def test_one_look_sees_what_the_parser_sees(name: str) -> None:
    body = BODIES[name]
    assert asyncio.run(_seen([body])) == asyncio.run(_seen([body[:1], body[1:40], body[40:]]))


SPELLINGS = {
    "curl, httpx and browsers": WHOLE,
    "requests": BODIES["no type"],
    "aiohttp": b"--b\r\nContent-Type: image/jpeg\r\n" + BODIES["no type"][5:],
    "our benchmarks": WHOLE.replace(HEADERS, HEADERS.lower()),
}


@pytest.mark.parametrize("client", SPELLINGS)
def test_one_part_in_one_piece_is_not_copied(client: str) -> None:
    async def work() -> None:
        body = SPELLINGS[client]

        async def pieces() -> AsyncIterator[bytes]:
            yield body

        _, data, _ = [event async for event in multipart.events(pieces(), TYPE, max_parts=8)]
        assert isinstance(data, memoryview)
        assert data.obj is body
        assert data == PHOTO

    asyncio.run(work())


def test_more_after_the_closing_boundary_is_bounded() -> None:
    assert asyncio.run(_seen([WHOLE, b"x" * multipart.EPILOGUE_BYTES])) == ["image", PHOTO]
    assert asyncio.run(_seen([WHOLE, b"x" * (multipart.EPILOGUE_BYTES + 1)])) == "malformed"


@pytest.mark.parametrize(
    "content_type", ['multipart/form-data; boundary="b"', "Multipart/Form-Data;boundary=b", f"{TYPE}; x=y"]
)
def test_other_spellings_of_the_boundary_are_read(content_type: str) -> None:
    assert asyncio.run(_seen([WHOLE], content_type)) == ["image", PHOTO]
