"""What a run over folders has done, as JSON Lines that a later run goes on from, and as one COCO file.

    {"path": "a/cat.jpg", "bytes": 12345, "modified_ns": 17..., "options": {"model": "small"}, "job": {...}}

A line is written as soon as its job has ended. The last line of a file counts; a line that was cut off by a crash does not.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import msgspec

from visionmesh.results import Result

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif"})


class Photo(msgspec.Struct, frozen=True):
    """A picture to send, and its name in what is written: the path below the folder that was given."""

    path: Path
    name: str


class Line(msgspec.Struct, frozen=True):
    """One picture's outcome. `bytes` and `modified_ns` tell whether the file is still the same."""

    path: str
    bytes: int
    modified_ns: int
    options: dict[str, Any]
    job: Result


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


def photos(roots: Iterable[Path], leave_out: Path) -> Iterator[Photo]:
    """The pictures of files and folders, by name; hidden ones and what lies in `leave_out` are passed over."""
    given = list(roots)
    for root in given:
        if root.is_file():
            yield Photo(root, root.name)
            continue
        base = root if len(given) == 1 else root.resolve().parent
        for path in sorted(root.rglob("*")):
            below = path.relative_to(root)
            hidden = any(part.startswith(".") for part in below.parts)
            if path.suffix.lower() in SUFFIXES and not hidden and leave_out not in path.resolve().parents and path.is_file():
                yield Photo(path, str(below if base == root else path.resolve().relative_to(base)))


class Ledger:
    """The lines of a run in `file`, for these options. As a context manager it can be written to."""

    def __init__(self, file: Path, options: dict[str, Any]) -> None:
        self._file = file
        self._options = options
        self._lines = {line.path: line for line in _read(file)}

    def __enter__(self) -> Self:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        whole = not self._file.exists() or self._file.read_bytes()[-1:] in (b"", b"\n")
        self._open = self._file.open("ab")
        if not whole:
            self._open.write(b"\n")
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def is_done(self, photo: Photo) -> bool:
        """Whether this very file went well before, with the same options."""
        line = self._lines.get(photo.name)
        if line is None or not line.job.ok or line.options != self._options:
            return False
        seen = photo.path.stat()
        return (line.bytes, line.modified_ns) == (seen.st_size, seen.st_mtime_ns)

    def add(self, photo: Photo, job: Result) -> bytes:
        """Write a picture's outcome; returns the line."""
        try:
            seen = photo.path.stat()
            size, modified_ns = seen.st_size, seen.st_mtime_ns
        except OSError:  # it went away meanwhile; its job says what became of it
            size, modified_ns = 0, 0
        line = Line(photo.name, size, modified_ns, self._options, job)
        self._lines[photo.name] = line
        written = _encode(line) + b"\n"
        self._open.write(written)
        self._open.flush()
        return written

    def to_coco(self, names: Iterable[str]) -> bytes:
        """These pictures' outcomes as one COCO file: `images`, `annotations` with scores, `categories` that occur."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        categories: dict[int, str] = {}
        for name in names:
            line = self._lines.get(name)
            if line is None or not line.job.ok or line.job.image is None:
                continue
            image_id = len(images) + 1
            images.append({"id": image_id, "file_name": name, "width": line.job.image.width, "height": line.job.image.height})
            for found, annotation in zip(line.job, line.job.to_coco(image_id), strict=True):
                annotations.append({"id": len(annotations) + 1} | annotation)
                categories[annotation["category_id"]] = found.label
        named = [{"id": number, "name": name} for number, name in sorted(categories.items())]
        return msgspec.json.encode({"images": images, "annotations": annotations, "categories": named})


def _read(file: Path) -> Iterator[Line]:
    if not file.exists():
        return
    for text in file.read_bytes().splitlines():
        try:
            yield _decode(text)
        except msgspec.DecodeError:
            continue  # cut off, or not ours
