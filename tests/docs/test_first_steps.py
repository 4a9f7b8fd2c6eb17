"""What README and the guides tell people to type: Python that runs, commands that exist."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_command

from deploy.local.supervisor import LocalMesh
from tests.conftest import PHOTOS
from visionmesh.cli import app

ROOT = Path(__file__).parents[2]
GUIDES = ["README.md", "docs/cli.md", "docs/client.md"]


def python_of(guide: str) -> list[str]:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / guide).read_text(), re.DOTALL)
    return [re.sub(r"^  ", "", block, flags=re.MULTILINE) if block.startswith("  ") else block for block in blocks]


@pytest.mark.parametrize("guide", ["README.md", "docs/client.md"])
def test_the_python_runs(mesh: LocalMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guide: str) -> None:
    monkeypatch.setenv("VISIONMESH_URL", mesh.url)
    monkeypatch.setenv("MESH_REDIS_URL", mesh.redis_url)
    monkeypatch.chdir(tmp_path)
    for name, photo in (("cat.png", "chelsea.png"), ("coffee.png", "coffee.png")):
        Path(name).write_bytes((PHOTOS / photo).read_bytes())
    with Image.open("cat.png") as cat:
        cat.convert("RGB").save("photo.jpg")
    names: dict[str, Any] = {}
    blocks = [block for block in python_of(guide) if "from visionmesh" in block or "Client" in block]
    assert blocks
    for block in blocks:
        exec(compile(block, guide, "exec"), names)  # noqa: S102 - our own documentation


@pytest.mark.parametrize("guide", GUIDES)
def test_the_commands_exist(guide: str) -> None:
    text = (ROOT / guide).read_text()
    for line in re.findall(r"^\s*\$ (?:\.venv/bin/)?visionmesh (.*)$", text, re.MULTILINE):
        command: Any = get_command(app)
        words = shlex.split(line, comments=True)
        while getattr(command, "commands", None) and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts}
        assert not getattr(command, "commands", None) or getattr(command, "invoke_without_command", False), line
        assert {word for word in words if word.startswith("--")} <= options, line


def test_the_readme_says_where_the_command_is_before_it_uses_it() -> None:
    text = (ROOT / "README.md").read_text()
    first = re.search(r"\$ visionmesh ", text)
    assert first
    assert ". .venv/bin/activate" in text[: first.start()]


def test_pictures_of_the_guides_are_there_and_modest() -> None:
    text = (ROOT / "README.md").read_text()
    (shown,) = re.findall(r"!\[[^\]]+\]\((docs/images/[^)]+)\)", text)
    for path in {ROOT / shown, *(ROOT / "docs/images").glob("page*.png")}:
        assert 0 < path.stat().st_size < 200_000
