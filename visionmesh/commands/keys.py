"""`visionmesh keys`: API keys, made here and written down only as hashes."""

import sys
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from shared import access
from shared.access import AccessError, Key

app = typer.Typer(help="API keys of the gateway.", no_args_is_help=True)


@app.callback()
def _keys() -> None:
    """API keys of the gateway."""


@app.command()
def new(
    tenant: Annotated[str, typer.Option(help="Whose key it is: lower-case letters, digits, - and _.")] = "default",
    scopes: Annotated[list[str] | None, typer.Option("--scope", help="submit, read or admin; give it more than once.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the key, its hash and its line as JSON.")] = False,
) -> None:
    """Print a new key, and the line of it for the `[keys]` of the file that MESH_API_KEYS names."""
    given = {"tenant": tenant, "scopes": scopes or ["submit", "read"]}
    try:
        line = msgspec.convert(given, Key)
    except msgspec.ValidationError as error:
        raise AccessError(f"no such key can be made: {error}") from None
    key = access.new_key()
    names = ", ".join(f'"{scope}"' for scope in line.scopes)
    digest = access.digest(key)
    entry = f'"{digest}" = {{ tenant = "{line.tenant}", scopes = [{names}] }}'
    if as_json:
        document = {"key": key, "digest": digest, "tenant": line.tenant, "scopes": list(line.scopes), "line": entry}
        sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
        return
    told = Console(stderr=True, markup=False, highlight=False)
    told.print("The key, shown this once; then its line for [keys]:", style="dim")
    sys.stdout.write(f"{key}\n{entry}\n")
