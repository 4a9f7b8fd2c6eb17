"""A model whose runtime is not installed: its jobs are told so at once, and other models go on."""

from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from deploy.local import ports
from deploy.local.supervisor import Options
from shared.models import DEFAULT_FILE
from tests.conftest import PHOTOS, Background, running_mesh

CAT = (PHOTOS / "chelsea.png").read_bytes()

ROW = """
[models.small_pytorch]
track = "A"
torch_file = "small.pt2"
input_width = 300
input_height = 300
labels = ["@coco"]
"""


@pytest.mark.skipif(find_spec("torch") is not None, reason="PyTorch is installed here")
def test_without_pytorch_its_models_jobs_fail_clearly(
    background: Background, redis_url: str, triton_url: str, tmp_path: Path
) -> None:
    registry = tmp_path / "models.toml"
    registry.write_text(DEFAULT_FILE.read_text("utf-8") + ROW, "utf-8")
    options = Options(port=ports.free(), redis_url=redis_url, triton_url=triton_url, environ={"MESH_MODELS": str(registry)})
    with running_mesh(background, options) as mesh, httpx.Client(base_url=mesh.url, timeout=30) as http:
        refused = http.post("/predict/small_pytorch", files={"image": CAT})
        assert refused.status_code == 501, refused.text
        assert refused.json()["code"] == "runtime-missing"
        assert "pip install 'visionmesh[torch]'" in refused.json()["detail"]
        served = http.post("/predict/small", files={"image": CAT})
        assert served.status_code == 200, served.text
        ready = {model["name"]: model["ready"] for model in http.get("/v1/models").json()["models"]}
        assert ready == {"small": True, "small_end2end": True, "small_pytorch": False}
