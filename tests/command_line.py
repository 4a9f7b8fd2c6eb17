"""The command line in this process: what it says and how it ends, without the second that a new Python takes to start."""

import contextlib
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from visionmesh import cli


class Ended(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


def visionmesh(*arguments: str | Path, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> Ended:
    """Run a command as its script does, with no settings of ours but `environ`, and errors told in one line.

    A process of its own is for what gets signals.
    """
    out, err = _written(), _written()
    with pytest.MonkeyPatch.context() as here:
        for name in [name for name in os.environ if name.startswith(("MESH_", "VISIONMESH_"))]:
            here.delenv(name)
        for name, value in ({"NO_COLOR": "1", "COLUMNS": "200"} | dict(environ or {})).items():
            here.setenv(name, value)
        if cwd:
            here.chdir(cwd)
        here.setattr(sys, "argv", ["visionmesh", *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
    code = ended.value.code
    return Ended(code if isinstance(code, int) else int(code is not None), _text(out), _text(err))


def _written() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)


def _text(written: io.TextIOWrapper) -> str:
    written.seek(0)
    return written.read()
