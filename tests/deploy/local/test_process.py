"""A child process gives way to others beside it, as far as the kernel lets us say so."""

import asyncio
import errno
import os
import sys
from pathlib import Path

import pytest

from deploy.local.process import Process

AUTOGROUP = "/autogroup"


def test_niceness_of_a_session_is_set_though_another_was_a_moment_ago(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[str] = []
    write = Path.write_text

    def refused_at_first(path: Path, text: str) -> int:
        if not str(path).endswith(AUTOGROUP):
            return write(path, text)
        written.append(text)
        if len(written) == 1:  # as the kernel does to whoever is not root
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return len(text)

    monkeypatch.setattr(Path, "write_text", refused_at_first)

    async def work() -> None:
        process = Process("sleeper", [sys.executable, "-c", "input()"], {}, tmp_path / "log", nice=3)
        await process.start()
        await process.stop(5)

    asyncio.run(work())
    assert written == ["3", "3"]
