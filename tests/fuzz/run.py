"""Feeds pictures to the decoder pool and to a whole mesh, and counts how each ended."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import httpx
import msgspec

from preprocess_worker.formats import Limits
from preprocess_worker.pool import DecoderPool
from shared.errors import JobError
from tests.fuzz.corpus import thumbnail

DECODE_TIMEOUT_S = 5.0
ALL_FORMATS = frozenset({"jpeg", "png", "webp", "gif", "tiff", "heif", "avif"})
PHOTO = Path(__file__).parents[2] / "visionmesh" / "photos" / "chelsea.png"
LABEL = "cat"
TYPED = {400, 413, 415, 422}
"""HTTP statuses with which a gateway may refuse a picture on sight."""


class Report(msgspec.Struct):
    """What became of the pictures."""

    pictures: int = 0
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest: str = ""
    restarts: int = 0
    untyped: list[str] = []
    """Pictures that ended otherwise than with a result or a code of ours."""
    killers: list[str] = []
    """Pictures that cost a decoder: they crashed it or ran into the timeout."""
    wrong: list[str] = []
    """Good pictures that were refused, or decoded to another size than they have."""
    neighbours: Counter[str] = msgspec.field(default_factory=Counter)

    def took(self, name: str, seconds: float) -> None:
        """Remember the slowest."""
        self.pictures += 1
        if seconds > self.slowest_s:
            self.slowest_s, self.slowest = seconds, name


async def through_the_pool(
    pictures: Iterable[tuple[str, bytes]], *, decoders: int = 2, sizes: Mapping[str, tuple[int, int]] | None = None
) -> Report:
    """Decode each picture; all formats are on, so that the opt-in loaders get their share.

    `sizes` has those that are good, with the width and height to which they decode.
    """
    report, sizes = Report(), sizes or {}
    waiting = iter(pictures)
    limits = Limits(50_000_000, 16_384, ALL_FORMATS)
    async with DecoderPool(decoders, DECODE_TIMEOUT_S, limits) as pool:

        async def feed() -> None:
            for name, data in waiting:
                started_s = time.monotonic()
                try:
                    decoded = await pool.decode(data, 300, 300)
                except JobError as error:
                    report.outcomes[error.code] += 1
                    if name in sizes:
                        report.wrong.append(f"{name}: {error.code}: {error.detail}")
                    if error.code in ("decoder-crashed", "decode-timeout"):
                        report.killers.append(name)
                except Exception as error:  # noqa: BLE001 - that there is none is what is tested
                    report.untyped.append(f"{name}: {type(error).__name__}: {error}")
                else:
                    assert len(decoded.tensor) == 300 * 300 * 3
                    report.outcomes["decoded"] += 1
                    size = decoded.image.width, decoded.image.height
                    if size != sizes.get(name, size):
                        report.wrong.append(f"{name}: decoded to {size}, not {sizes[name]}")
                report.took(name, time.monotonic() - started_s)

        await asyncio.gather(*(feed() for _ in range(decoders)))
        report.restarts = pool.restarts
    return report


async def through_the_mesh(url: str, pictures: Iterable[tuple[str, bytes]], *, clients: int = 8) -> Report:
    """Send each picture and, beside it, a good one; both are waited for."""
    report, waiting, good = Report(), iter(pictures), thumbnail(PHOTO)
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:

        async def send(data: bytes) -> tuple[int, dict[str, object]]:
            headers = {"content-type": "application/octet-stream", "prefer": "wait=30"}
            answer = await http.post("/v1/jobs", content=data, headers=headers)
            return answer.status_code, answer.json()

        async def feed() -> None:
            for name, data in waiting:
                started_s = time.monotonic()
                (status, job), (_, neighbour) = await asyncio.gather(send(data), send(good))
                report.took(name, time.monotonic() - started_s)
                found = neighbour.get("detections") or [{}]
                report.neighbours[str(found[0].get("label", neighbour.get("status")))] += 1  # type: ignore[index]
                code = str(job.get("code") or (job.get("error") or {}).get("code") or job.get("status"))  # type: ignore[attr-defined]
                report.outcomes[code] += 1
                if status not in TYPED and job.get("status") not in ("succeeded", "failed"):
                    report.untyped.append(f"{name}: {status} {job}")

        await asyncio.gather(*(feed() for _ in range(clients)))
    return report
