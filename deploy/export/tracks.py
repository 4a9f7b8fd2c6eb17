"""The built-in detector on all four tracks: a registry, a repository for Triton, and track A's file.

    python -m deploy.export.tracks FOLDER        FOLDER/models.toml, FOLDER/repository, FOLDER/small.pt2

B and C need nothing else; A needs the extra `torch` to be written and run, D the extra `dali` to be run.
"""

import sys
from pathlib import Path

import msgspec

from deploy.export import encoded, repository, torch_module
from deploy.export.configuration import Target
from deploy.export.detector import Detector, load
from deploy.export.errors import ExportError
from shared.models import DEFAULT_FILE


class Written(msgspec.Struct, frozen=True):
    """Where the registry is, where the repository, and which models Triton is to load."""

    registry: Path
    repository: Path
    triton_models: list[str]


def write(folder: Path, *, target: Target = "cpu", max_batch: int = 8, torch_file: str = "small.pt2") -> Written:
    """Write all of it, under the names of the API; `torch_file` empty leaves track A out.

    Raises:
        ExportError: the folder cannot be written, or torch is missing.
    """
    detector = load(repository.DEFAULT_ONNX)
    models = folder / "repository"
    served = repository.write(models, detector, "small", target=target, max_batch=max_batch)
    ensembles = encoded.write(models, detector, "small", target=target, max_batch=max_batch)
    rows = [_row(name := each.triton_model, "D", detector, f'triton_model = "{name}"', each.max_batch) for each in ensembles]
    if torch_file:
        torch_module.write(detector, folder / torch_file)
        rows.append(_row("small_pytorch", "A", detector, f'torch_file = "{torch_file}"', max_batch))
    try:
        # Tables may come in any order, so the built-in registry with its labels is the beginning.
        (folder / "models.toml").write_text(DEFAULT_FILE.read_text("utf-8") + "".join(rows), "utf-8")
    except OSError as error:
        raise ExportError(f"{folder}: cannot be written ({error.strerror})") from None
    names = [each.triton_model for each in (*served, *ensembles)]
    return Written(folder / "models.toml", models, names)


def _row(name: str, track: str, detector: Detector, place: str, max_batch: int) -> str:
    return f"""
[models.{name}]
family = "ssdlite"
track = "{track}"
{place}
input_width = {detector.input_width}
input_height = {detector.input_height}
head = "{"yolo" if track == "A" else "end2end"}"
labels = ["@coco"]
max_batch = {max_batch}
"""


def main(arguments: list[str]) -> int:
    """Write into the folder that was named; returns the exit code."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)  # noqa: T201 - for who runs it by hand
        return 2
    try:
        written = write(Path(arguments[0]))
    except ExportError as error:
        print(f"tracks: {error}", file=sys.stderr)  # noqa: T201 - as above
        return 2
    print(f"MESH_MODELS={written.registry}")  # noqa: T201 - as above
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
