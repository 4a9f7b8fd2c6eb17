"""One child process of the local mesh: started with its log in a file, ended with it, and never left behind."""

import asyncio
import contextlib
import functools
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from shared.parent import die_with_parent

GROUP_TRIES, GROUP_PAUSE_S = 5, 0.1
"""Whoever is not root may set the niceness of one session in a tenth of a second, on the whole machine."""


class Process:
    """A named program with its arguments, environment and log file; `nice` is added to our own niceness."""

    def __init__(self, name: str, command: Sequence[str], environ: Mapping[str, str], log: Path, *, nice: int = 0) -> None:
        self.name = name
        self.nice = nice
        self.log = log
        self.command = list(command)
        self.environ = dict(environ)
        self._running: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Its process ID while it runs."""
        return self._running.pid if self._running and self._running.returncode is None else None

    @property
    def returncode(self) -> int | None:
        """Its exit code once it has ended; negative for a signal."""
        return self._running.returncode if self._running else None

    async def start(self) -> None:
        """Start it, with a session of its own so that a terminal's Ctrl-C reaches only us, who stop it in order."""
        self.remove_leftovers()
        with self.log.open("ab") as log:
            self._running = await asyncio.create_subprocess_exec(
                *self.command,
                env=self.environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=functools.partial(_become, os.getpid(), self.nice),
            )
        if self.nice:
            await _give_way(self._running.pid, self.nice)

    async def wait(self) -> int:
        """Wait until it has ended; returns its exit code."""
        assert self._running is not None, "not started"  # noqa: S101
        return await self._running.wait()

    async def stop(self, within_s: float) -> None:
        """Ask it to end, and end it and its children for good if it has not within `within_s`."""
        if self._running is not None and self._running.returncode is None:
            self._running.terminate()
            try:
                async with asyncio.timeout(within_s):
                    await self._running.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):  # it may have ended this very moment
                    os.killpg(self._running.pid, signal.SIGKILL)
                await self._running.wait()
        self.remove_leftovers()

    def remove_leftovers(self) -> None:
        """Remove what it leaves outside its folder when it is killed. Called only while it does not run."""

    def end_group(self) -> None:
        """Kill what is left of its process group, if it has ended itself."""
        if self._running is not None and self._running.returncode is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running.pid, signal.SIGKILL)

    def last_line(self) -> str:
        """The last line it logged, for an error of one line."""
        try:
            lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        lines = [line for line in lines if self.is_telling(line)]
        return lines[-1].strip() if lines else ""

    def is_telling(self, line: str) -> bool:
        """Whether a log line may be the one that says what went wrong."""
        return bool(line.strip())


def python_module(name: str) -> list[str]:
    """The command that runs a module with this Python."""
    return [sys.executable, "-m", name]


def _become(parent_pid: int, nice: int) -> None:
    """In the child, before its program begins."""
    die_with_parent(parent_pid)
    if nice:
        os.nice(nice)


async def _give_way(pid: int, nice: int) -> None:
    """Have the niceness count beside the processes of other sessions, where the kernel shares out cores by session.

    See sched(7), autogroup. Where there is none, or it must not be set, `nice` alone is what counts.
    """
    group = Path(f"/proc/{pid}/autogroup")
    for _ in range(GROUP_TRIES):
        try:
            group.write_text(str(nice))  # noqa: ASYNC240 - it is no disk
        except BlockingIOError:
            await asyncio.sleep(GROUP_PAUSE_S)
        except OSError:
            return
        else:
            return
