"""What operators do: make keys, list dead letters and replay them."""

import asyncio
import json
import tomllib

import pytest
from typer.testing import CliRunner

from shared import access
from shared.errors import Internal
from shared.settings import read
from shared.store import connect
from tests.shared.store.conftest import accepted
from visionmesh.cli import app


def test_a_new_key_and_its_line_fit_each_other() -> None:
    result = CliRunner().invoke(app, ["keys", "new", "--tenant", "acme", "--scope", "admin"])
    assert result.exit_code == 0
    key, line = result.stdout.splitlines()
    assert tomllib.loads(line) == {access.digest(key): {"tenant": "acme", "scopes": ["admin"]}}
    assert key not in line
    assert "[keys]" in result.stderr
    given = json.loads(CliRunner().invoke(app, ["keys", "new", "--tenant", "acme", "--scope", "admin", "--json"]).stdout)
    assert given["digest"] == access.digest(given["key"])
    assert tomllib.loads(given["line"]) == {given["digest"]: {"tenant": given["tenant"], "scopes": given["scopes"]}}
    assert CliRunner().invoke(app, ["keys", "new", "--tenant", "No Name"]).exception


def test_dead_letters_are_listed_and_replayed(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_REDIS_URL", redis_url)

    async def die() -> str:
        async with connect(read()) as store, store.consumer("preprocess", "p") as preprocess:
            job = await accepted(store)
            (ticket,) = await preprocess.take(1)
            await store.endings.fail(ticket, Internal("a fault of ours"))
            preprocess.done(ticket)
            return job.id

    assert "no dead letters" in CliRunner().invoke(app, ["jobs", "dead"]).stdout
    job_id = asyncio.run(die())
    listed = CliRunner().invoke(app, ["jobs", "dead"]).stdout
    assert job_id in listed
    assert "internal" in listed
    replayed = CliRunner().invoke(app, ["jobs", "dead", "replay", "--all"])
    assert replayed.exit_code == 0
    assert f"{job_id} is now " in replayed.stdout
    assert "no dead letters" in CliRunner().invoke(app, ["jobs", "dead"]).stdout
    again = CliRunner().invoke(app, ["jobs", "dead", "replay", job_id])
    assert again.exit_code == 1
    assert "no longer kept" in again.stdout
