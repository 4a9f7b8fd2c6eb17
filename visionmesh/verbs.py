"""The verbs of the command line: where each lives and what the list says of it, so that none is imported before it is used."""

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Any, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

VERBS = {
    "up": ("up:up", "Start Valkey, Triton, the gateway and the workers here, and keep them running until Ctrl-C."),
    "demo": ("demo:demo", "Start a mesh, find the objects in some photos, draw them, stop the mesh."),
    "submit": ("submit:submit", "Send pictures to a mesh, wait, and print what is on them."),
    "detect": (
        "detect:detect",
        "Find the objects in pictures and folders; go on where the same command stopped. Exit code 1 if a picture failed.",
    ),
    "subscribe": ("subscribe:subscribe", "Print every job that finishes. Without --group and --after what is missed is gone."),
    "watch": (
        "watch:watch",
        "Watch queues, workers, batch fill and latencies until Ctrl-C. Exit code 1 if the mesh was not well at the last look.",
    ),
    "status": (
        "status:status",
        "Show the health of a running mesh: parts, workers, queues, models. Exit code 1 if it is not ready.",
    ),
    "doctor": (
        "doctor:doctor",
        "Check this machine and the settings for what newcomers meet. Exit code 1 if something needs mending.",
    ),
    "bench": (
        "bench:app",
        "Put load on a running mesh; print and keep throughput, latencies, errors, batch fill and stages.",
    ),
    "jobs": ("jobs:app", "One job by its ID, and the dead letters."),
    "keys": ("keys:app", "API keys of the gateway."),
    # `update` adds its verbs to those of `models`.
    "models": ("update:app", "The models of the mesh, and detectors of your own."),
}
"""Verb -> the function or the app of more verbs, in its module of `visionmesh.commands`, and the help that it has there."""


class Commands(MutableMapping[str, Any]):
    """Verb -> its command, imported when it is first asked for."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, verb: str) -> Any:
        if verb not in self._loaded:
            self._loaded[verb] = _load(verb)
        return self._loaded[verb]

    def __setitem__(self, verb: str, command: Any) -> None:
        self._loaded[verb] = command

    def __delitem__(self, verb: str) -> None:
        raise TypeError("verbs stay")

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)

    def __contains__(self, verb: object) -> bool:
        return verb in VERBS


class Verbs(TyperGroup):
    """The command `visionmesh`: lists its verbs without importing them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = Commands()

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - typer's signature
        """The verbs, in their order."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - as above
        """What stands for a verb in a list of them: its name and help. `resolve_command` gives the one that runs."""
        return TyperCommand(cmd_name, help=VERBS[cmd_name][1]) if cmd_name in VERBS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb that the arguments begin with, imported now, and the arguments that are left for it."""
        verb, command, left = cast("tuple[str | None, Any, list[str]]", super().resolve_command(ctx, args))
        return verb, self.commands[verb] if verb else command, left


def _load(verb: str) -> Any:
    module, _, name = VERBS[verb][0].partition(":")
    found = getattr(import_module(f"visionmesh.commands.{module}"), name)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.callback()(lambda: None)  # else an app with one command is that command
    if isinstance(found, typer.Typer):
        app.add_typer(found, name=verb)
    else:
        app.command(verb)(found)
    return cast("Any", get_command(app)).commands[verb]
