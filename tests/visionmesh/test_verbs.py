"""The verbs of the command line are imported when they are used."""

import subprocess
import sys

import pytest

from visionmesh.verbs import VERBS, Commands

HEAVY = {"onnx", "numpy", "cv2", "PIL", "httpx", "redis", "tritonclient", "msgspec"}

HELP = """
import sys
from visionmesh.cli import app
try:
    app(["--help"])
finally:
    print(sorted(sys.modules), file=sys.stderr)
"""


def test_help_is_told_without_importing_what_the_verbs_need() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=60, check=True)
    assert all(verb in done.stdout for verb in VERBS)
    loaded = set(done.stderr.strip().strip("[]").replace("'", "").split(", "))
    assert "typer" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_of_verbs_says_what_the_verb_itself_says(verb: str) -> None:
    command = Commands()[verb]
    assert command.name == verb
    assert (command.help or "").split("\n\n")[0].strip() == VERBS[verb][1]
