"""Changes without an outage: each service is restarted in its turn under load, and no request fails.

A gateway process that stops closes connections on which it has read nothing yet, as HTTP servers do. A client that was about
to send there sends again under its Idempotency-Key, as ours does; where no gateway is restarted, nothing is sent twice.
"""

import os
import signal
from collections.abc import Iterator

import httpx
import pytest

from deploy.local import ports
from deploy.local.supervisor import LocalMesh, Options
from tests.conftest import Background, running_mesh
from tests.system.load import Load


@pytest.fixture(scope="module")
def rolling(background: Background, mesh: LocalMesh) -> Iterator[LocalMesh]:
    """A mesh with a Redis of its own, so that only its own workers take its jobs."""
    options = Options(port=ports.free(), environ={"MESH_HEARTBEAT_S": "0.5"}, triton_url=mesh.triton_url)
    with running_mesh(background, options) as own:
        yield own


def started(mesh: LocalMesh, kind: str) -> set[int]:
    return {beat["pid"] for beat in httpx.get(f"{mesh.url}/health").json()["workers"] if beat["kind"] == kind}


@pytest.mark.parametrize(
    ("part", "number"), [("preprocess", signal.SIGTERM), ("inference", signal.SIGTERM), ("gateway", signal.SIGHUP)]
)
def test_a_restart_under_load_fails_no_request(rolling: LocalMesh, part: str, number: signal.Signals) -> None:
    old = started(rolling, part)
    with Load(rolling.url, sends_again=part == "gateway") as load:
        load.more(4)
        os.kill(rolling.processes[part].pid or 0, number)
        load.until(lambda: (now := started(rolling, part)) and not now & old)
        load.more(4)
