"""The command line: `visionmesh VERB`. Exit code 0: done; 1: the mesh or a job failed; 2: misuse."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

from deploy.export.detector import ExportError, ParityError
from deploy.local.errors import StartError
from shared.access import AccessError
from shared.errors import InvalidParameter, UnknownModel
from shared.errors import MeshError as StoreError
from shared.models import RegistryError
from shared.settings import SettingsError
from visionmesh.commands import bench, demo, detect, doctor, jobs, keys, models, status, submit, subscribe, up, update, watch
from visionmesh.drawing import DrawingError
from visionmesh.errors import MeshError

app = typer.Typer(
    name="visionmesh",
    help="Finds objects in pictures: a mesh of small services around NVIDIA Triton.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("up")(up.up)
app.command("demo")(demo.demo)
app.command("submit")(submit.submit)
app.command("detect")(detect.detect)
app.command("subscribe")(subscribe.subscribe)
app.command("watch")(watch.watch)
app.command("status")(status.status)
app.command("doctor")(doctor.doctor)
app.add_typer(bench.app, name="bench")
app.add_typer(jobs.app, name="jobs")
app.add_typer(keys.app, name="keys")
models.app.command("update")(update.update)
models.app.command("tidy")(update.tidy)
app.add_typer(models.app, name="models")


def main() -> None:
    """Run a command; what went wrong is told in one line."""
    try:
        app()
    except (StartError, SettingsError, RegistryError, UnknownModel, InvalidParameter, AccessError, ExportError) as error:
        _fail(error, 2)
    except (MeshError, StoreError, DrawingError, ParityError) as error:
        _fail(error, 1)
    except ModuleNotFoundError as error:  # a machine with the command line alone was asked for more
        _fail(StartError(f"the package {error.name} is missing: pip install 'visionmesh[local]'"), 2)


def _fail(error: Exception, code: int) -> None:
    Console(stderr=True).print(f"[red]visionmesh:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    sys.exit(code)
