"""The examples in the docstrings, run against the whole mesh."""

import doctest
import importlib
from pathlib import Path

import pytest

from deploy.local.supervisor import LocalMesh


@pytest.mark.parametrize("name", ["client", "async_client", "handles", "results"])
def test_the_examples_do_what_they_say(
    default_mesh: LocalMesh, album: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(album)
    module = importlib.import_module(f"visionmesh.{name}")
    names = {kind: getattr(importlib.import_module("visionmesh"), kind) for kind in ("Client", "AsyncClient")}
    names["asyncio"] = importlib.import_module("asyncio")
    failed, tried = doctest.testmod(module, extraglobs=names)
    assert tried
    assert not failed
    assert name != "results" or Path("drawn.jpg").stat().st_size
