"""What strangers find at the doors of the embedded servers: loopback only, and no way to change what Triton serves."""

import contextlib
import http.client
from pathlib import Path

import psutil
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from deploy.local.supervisor import LocalMesh
from deploy.local.triton import Triton
from inference_worker.triton import Triton as Client
from shared.models import load
from tests.conftest import Background, Certificates, running_triton


def test_every_port_is_on_the_loopback_address(mesh: LocalMesh) -> None:
    for name, process in mesh.processes.items():
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        sockets = [one for member in family for one in member.net_connections("tcp") if one.status == "LISTEN"]
        listening = [one.laddr.ip.removeprefix("::ffff:") for one in sockets]
        assert set(listening) <= {"127.0.0.1"}, name
        assert listening or name == "tasks" or "preprocess" in name or "inference" in name


@pytest.mark.parametrize("headers", [{}, {"x-mesh-control": "guess"}])
@pytest.mark.parametrize("path", ["models/small/unload", "models/small/load", "index"])
def test_strangers_cannot_change_what_triton_serves(triton: Triton, headers: dict[str, str], path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", triton.http_port, timeout=20)
    with contextlib.closing(connection):
        connection.request("POST", f"/v2/repository/{path}", headers=headers)
        assert connection.getresponse().status == 403
    with contextlib.closing(InferenceServerClient(triton.url)) as client:
        with pytest.raises(InferenceServerException, match="restricted"):
            client.unload_model("small")
        assert client.is_model_ready("small")


def test_its_owner_can(triton: Triton) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", triton.http_port, timeout=20)
    with contextlib.closing(connection):
        connection.request("POST", "/v2/repository/index", headers=triton.control_headers)
        assert connection.getresponse().status == 200


def test_triton_over_tls(background: Background, tmp_path: Path, model_repository: Path, certificates: Certificates) -> None:
    tls = ["--grpc-use-ssl=1", f"--grpc-server-cert={certificates.certificate}", f"--grpc-server-key={certificates.key}"]
    model = load().get("small")

    async def is_ready(url: str, ca: str) -> bool:
        client = Client(url, 4, ca=ca)
        try:
            return await client.is_ready(model)
        finally:
            await client.close()

    with running_triton(background, tmp_path, model_repository, ["small"], tls) as server:
        address = server.url.replace("127.0.0.1", "localhost")
        assert background.run(is_ready(f"grpcs://{address}", str(certificates.authority)))
        assert not background.run(is_ready(f"grpcs://{address}", ""))
        assert not background.run(is_ready(address, ""))
