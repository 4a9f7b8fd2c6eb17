"""What a person sees while the mesh starts: a line for each part, with what it is doing."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

_PARTS = {
    "redis": "valkey",
    "preprocess_worker": "preprocess",
    "inference_worker": "inference",
    "model": "model in Triton",
}
"""Names of readiness checks, as the parts they tell of."""


class StartDisplay:
    """Shows progress of `deploy.local`; live on a terminal, a line per change elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._parts: dict[str, str] = {}
        self._live = Live(get_renderable=self._table, console=console, transient=True) if console.is_terminal else None
        self._started_s = time.monotonic()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, part: str, doing: str) -> None:
        """A part tells what it is doing."""
        part = _PARTS.get(part, part)
        if self._parts.get(part) == doing:
            return
        self._parts[part] = doing
        if self._live is None or not self._live.is_started:
            self._console.print(f"[dim]{time.monotonic() - self._started_s:5.1f} s[/]  {part:<16} {doing}", highlight=False)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for part, doing in self._parts.items():
            done = doing.startswith(("ready", "using"))
            table.add_row("[green]✓[/]" if done else Spinner("dots"), part, f"[dim]{doing}[/]")
        return table
