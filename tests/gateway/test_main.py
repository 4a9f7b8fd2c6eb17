"""How the gateway's processes are started."""

import psutil

from deploy.local.supervisor import LocalMesh
from gateway.__main__ import MALLOC


def test_its_processes_keep_the_memory_of_uploads(mesh: LocalMesh) -> None:
    environs = [each.environ() for each in psutil.Process(mesh.processes["gateway"].pid).children()]
    assert any(MALLOC.items() <= environ.items() for environ in environs)
