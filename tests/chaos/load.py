"""A client that never gives up: each picture is sent, under its own idempotency key, until it is accepted."""

import asyncio
import itertools
import random
import time
from pathlib import Path

import httpx

from tests.chaos.books import Books

PHOTOS = [file.read_bytes() for file in sorted((Path(__file__).parents[2] / "visionmesh" / "photos").glob("*.png"))]


class Load:
    """`clients` of them, sharing one sequence of pictures."""

    def __init__(self, url: str, books: Books, *, clients: int, most_open: int) -> None:
        self._url = url
        self._books = books
        self._clients = clients
        self._most_open = most_open
        self._numbers = itertools.count()
        self._run = random.randbytes(8).hex()

    async def send(self, jobs: int, enough: asyncio.Event) -> None:
        """Have `jobs` jobs accepted, and more until `enough` is set."""
        async with httpx.AsyncClient(base_url=self._url, timeout=15) as http, asyncio.TaskGroup() as group:
            for _ in range(self._clients):
                group.create_task(self._client(http, jobs, enough))

    async def _client(self, http: httpx.AsyncClient, jobs: int, enough: asyncio.Event) -> None:
        while (number := next(self._numbers)) < jobs or not enough.is_set():
            while len(self._books.open) > self._most_open:  # noqa: ASYNC110 - the books change with every result
                await asyncio.sleep(0.02)
            await self._submit(http, number)

    async def _submit(self, http: httpx.AsyncClient, number: int) -> None:
        headers = {"content-type": "image/png", "idempotency-key": f"{self._run}-{number}"}
        pause_s = 0.05
        while True:
            try:
                answer = await http.post("/v1/jobs", content=PHOTOS[number % len(PHOTOS)], headers=headers)
            except httpx.HTTPError as error:
                self._books.refused[type(error).__name__] += 1
            else:
                if answer.status_code in (200, 202):
                    self._books.accepted[answer.json()["id"]] = time.monotonic()
                    return
                self._books.refused[answer.json().get("code", str(answer.status_code))] += 1
            await asyncio.sleep(random.uniform(0, pause_s))
            pause_s = min(pause_s * 2, 1.0)
