"""The least that accepting a picture could be: a handler that reads the body and does one SET. Runs on bare Granian."""

import os
import secrets

from redis.asyncio import Redis

_redis = Redis.from_url(os.environ["BARE_REDIS_URL"])
_START = {"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"0")]}
_BODY = {"type": "http.response.body", "body": b""}


async def app(scope, receive, send):
    """The ASGI application."""
    if scope["type"] != "http":
        return
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await _redis.set(secrets.token_hex(16), bytes(body), ex=600)
    await send(_START)
    await send(_BODY)
