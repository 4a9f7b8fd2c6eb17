"""The command line in this process: what it says and how it ends, without the second that a new Python takes to start."""

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


class CommandLine:
    """Runs `visionmesh` as its script does, errors told in one line included. A process of its own is for what gets signals."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str | Path, environ: Mapping[str, str] = {}, cwd: Path | None = None) -> Ended:
        """Run a command with no settings of ours but `environ`."""
        with self._monkeypatch.context() as here:
            for name in [name for name in os.environ if name.startswith(("MESH_", "VISIONMESH_"))]:
                here.delenv(name)
            for name, value in ({"NO_COLOR": "1", "COLUMNS": "200"} | dict(environ)).items():
                here.setenv(name, value)
            if cwd:
                here.chdir(cwd)
            here.setattr(sys, "argv", ["visionmesh", *map(str, arguments)])
            self._capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                cli.main()
            said = self._capsys.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else int(code is not None), said.out, said.err)
