"""Suites of other projects: some thousand pictures, many of them unusual or broken on purpose.

The large ones are fetched into a cache outside the repository and never become part of it: Pillow's test images with pip, and
libpng's from the Debian mirror that apt is configured with. The 15 basic pictures of Willem van Schaik's PngSuite lie in
`pngsuite/` (its README.md has the terms), and from them are made the broken ones that the suite is known for.
"""

import hashlib
import struct
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from importlib.metadata import version
from pathlib import Path

CACHE = Path.home() / ".cache" / "visionmesh-fuzz"
FETCH_S = 300
PNGSUITE = Path(__file__).parent / "pngsuite"
LIBPNG = "libpng1.6_1.6.39.orig.tar.gz"
LIBPNG_SHA256 = "a00e9d2f2f664186e4202db9299397f851aea71b36a35e74910b8820e380d441"
CRASHERS = "testpngs/crashers/"
"""The folder of libpng's pictures that once crashed a reader; what is elsewhere is good."""


def pillow_suite() -> dict[str, bytes]:
    """The test images of Pillow's source package, of the version that is installed.

    Raises:
        OSError: it cannot be fetched.
    """
    name = f"pillow-{version('pillow')}.tar.gz"
    if not (CACHE / name).exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        command += ["--dest", str(CACHE), f"pillow=={version('pillow')}"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=FETCH_S)
        except subprocess.SubprocessError as error:
            raise OSError(f"pip cannot fetch {name}: {error}") from None
    return _files(CACHE / name, "/Tests/images/")


def libpng_suite() -> dict[str, bytes]:
    """The test images of libpng's source package in Debian 12: PngSuite's basic ones and their interlaced twins, libpng's own
    of every kind, depth and gamma, and those in `CRASHERS`.

    Raises:
        OSError: it cannot be fetched, or is not what it was.
    """
    archive = CACHE / LIBPNG
    if not archive.exists():
        data = _from_debian(f"pool/main/libp/libpng1.6/{LIBPNG}")
        if (found := hashlib.sha256(data).hexdigest()) != LIBPNG_SHA256:
            raise OSError(f"{LIBPNG} is another one: its SHA-256 is {found}")
        CACHE.mkdir(parents=True, exist_ok=True)
        archive.write_bytes(data)
    files = _files(archive, "/contrib/")
    return {name: data for name, data in files.items() if name.startswith(("pngsuite/", "testpngs/")) and name.endswith(".png")}


def pngsuite() -> dict[str, bytes]:
    """The basic pictures of PngSuite, all of 32x32 pixels."""
    return {file.stem: file.read_bytes() for file in sorted(PNGSUITE.glob("*.png"))}


def broken_pngsuite() -> dict[str, bytes]:
    """Pictures that are broken as PngSuite's `x*.png` are, under its names
    (http://www.schaik.com/pngsuite/pngsuite_xxx_png.html), made from the good ones."""
    good = pngsuite()
    grey, colour, fine, bits = good["basn0g08"], good["basn2c08"], good["basn0g04"], good["basn0g01"]
    return {
        "xs1n0g01": _with(bits, 0, b"\x88"),
        "xs2n0g01": _with(bits, 1, b"Q"),
        "xs4n0g01": _with(bits, 3, b"H"),
        "xs7n0g01": _with(bits, 7, b"\x0b"),
        "xcrn0g04": fine.replace(b"\n", b"\r\n"),
        "xlfn0g04": fine.replace(b"\r\n", b"\n"),
        "xhdn0g08": _with(grey, 29, b"\x00\x00\x00\x00"),
        "xc1n0g08": _with_header(grey, 25, 1),
        "xc9n2c08": _with_header(colour, 25, 9),
        "xd0n2c08": _with_header(colour, 24, 0),
        "xd3n2c08": _with_header(colour, 24, 3),
        "xd9n2c08": _with_header(colour, 24, 99),
        "xdtn0g01": _without_data(bits),
        "xcsn0g01": _with(bits, bits.index(b"IEND") - 8, b"\x00\x00\x00\x00"),
    }


def size_of_png(data: bytes) -> tuple[int, int]:
    """Width and height that a PNG says it has."""
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _with(data: bytes, at: int, other: bytes) -> bytes:
    changed = data[:at] + other + data[at + len(other) :]
    assert changed != data
    return changed


def _with_header(data: bytes, at: int, value: int) -> bytes:
    """A picture with a byte of its header changed, and a right checksum over it."""
    changed = _with(data, at, bytes([value]))
    return _with(changed, 29, struct.pack(">I", zlib.crc32(changed[12:29])))


def _without_data(data: bytes) -> bytes:
    start, end = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    return data[:start] + data[end:]


def _from_debian(path: str) -> bytes:
    """A file of the Debian archive, from the first mirror of apt's that has it.

    Raises:
        OSError: there is no apt, or none of its mirrors has the file.
    """
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    try:
        mirrors = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.split()
    except (subprocess.SubprocessError, FileNotFoundError) as error:
        raise OSError(f"apt names no mirror of Debian: {error}") from None
    error: OSError = OSError("apt is configured with no mirror of Debian")
    for mirror in dict.fromkeys(mirror for mirror in mirrors if mirror.startswith(("http://", "https://"))):
        try:
            with urllib.request.urlopen(f"{mirror}{path}", timeout=FETCH_S) as answer:  # noqa: S310 - checked above
                return answer.read()
        except (urllib.error.URLError, TimeoutError) as failed:
            error = OSError(f"no mirror has {path}: {failed}")
    raise error


def _files(archive: Path, folder: str) -> dict[str, bytes]:
    """All files of an archive below a folder, by their path there."""
    found: dict[str, bytes] = {}
    with tarfile.open(archive) as opened:
        for member in opened:
            if member.isfile() and folder in member.name:
                file = opened.extractfile(member)
                assert file is not None
                found[member.name.split(folder, 1)[1]] = file.read()
    return found
