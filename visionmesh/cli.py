"""The command line: `visionmesh VERB`. Exit code 0: done; 1: the mesh or a job failed; 2: misuse.

A verb's module is imported when the verb is used, not before: most of them need a part of what the others would load.
"""

import sys
from typing import Any

import typer

from visionmesh.verbs import Verbs

app = typer.Typer(
    name="visionmesh",
    help="Finds objects in pictures: a mesh of small services around NVIDIA Triton.",
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _visionmesh() -> None:
    """Finds objects in pictures: a mesh of small services around NVIDIA Triton."""


def main() -> None:
    """Run a command; what went wrong is told in one line."""
    try:
        app()
    except ModuleNotFoundError as error:  # a machine with the command line alone was asked for more
        _fail(f"the package {error.name} is missing: pip install 'visionmesh[local]'", 2)
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        _fail(str(error), code)


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error that is told in one line; `None` for one that nobody foresaw."""
    from deploy.export.errors import ExportError, ParityError
    from deploy.local.errors import StartError
    from shared.access import AccessError
    from shared.errors import InvalidParameter, MeshError, UnknownModel
    from shared.models import RegistryError
    from shared.settings import SettingsError
    from visionmesh.drawing import DrawingError

    misuse: tuple[Any, ...] = (
        StartError, SettingsError, RegistryError, UnknownModel, InvalidParameter, AccessError, ExportError,
    )  # fmt: skip
    if isinstance(error, misuse):
        return 2
    return 1 if isinstance(error, (MeshError, DrawingError, ParityError)) else None


def _fail(said: str, code: int) -> None:
    from rich.console import Console
    from rich.markup import escape

    Console(stderr=True).print(f"[red]visionmesh:[/] {escape(said)}", highlight=False, soft_wrap=True)
    sys.exit(code)
