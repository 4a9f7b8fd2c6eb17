"""Every form in which a picture may be handed to the client, as the bytes that travel.

Files and bytes go as they are. Arrays and Pillow's images are encoded as PNG, which loses nothing, upright.
"""

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Union, cast

from visionmesh.errors import UnreadablePicture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

PNG_LEVEL = 1
"""Compression of what we encode: the network of a mesh is quicker than zlib."""


class Readable(Protocol):
    """A file opened in binary mode, or anything that reads like one."""

    def read(self) -> bytes:
        """All bytes from here to the end."""
        ...


Picture: TypeAlias = Union[str, os.PathLike[str], bytes, bytearray, memoryview, Readable, "NDArray[np.uint8]", "Image"]
"""A path, the bytes of a picture file, an opened file, an array [height, width, 3] of uint8 in RGB order (or [height, width],
grey), or an image of Pillow."""


def read(picture: Picture) -> bytes:
    """The bytes of a picture file.

    Raises:
        UnreadablePicture: it cannot be read, or is no picture in any of these forms.
    """
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, str | os.PathLike):
        return _file(picture)
    if _is_a(picture, "PIL.Image", "Image"):
        return _png(cast("Image", picture))
    if _is_a(picture, "numpy", "ndarray"):
        return _png(_image_of(cast("NDArray[Any]", picture)))
    if hasattr(picture, "read"):
        content: object = cast("Any", picture).read()
        if isinstance(content, bytes):
            return content
        raise UnreadablePicture("the file is opened as text; open it with mode 'rb'")
    raise UnreadablePicture(f"{type(picture).__name__} is no path, bytes, file, array or image")


def path_of(picture: Picture) -> Path | None:
    """Where the picture lies, if it was given as a path."""
    return Path(picture) if isinstance(picture, str | os.PathLike) else None


def open_upright(picture: Picture) -> "Image":
    """The picture as an image of Pillow in RGB, turned as its EXIF says: the pixels that boxes are given in.

    Raises:
        UnreadablePicture: it cannot be read or decoded; Pillow is not installed.
    """
    image, image_ops = _pillow()
    try:
        with image.open(io.BytesIO(read(picture))) as opened:
            return image_ops.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
        raise UnreadablePicture(f"{path_of(picture) or 'the picture'}: {error}") from None


def _file(path: str | os.PathLike[str]) -> bytes:
    if isinstance(path, str) and path.startswith(("http://", "https://", "data:")):
        raise UnreadablePicture(f"{path[:60]!r} is an address, not a path; fetch it and pass its bytes")
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UnreadablePicture(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _is_a(picture: object, module: str, name: str) -> bool:
    """Whether it is of a class of a library that is only ours to import if the caller did: else it can be none of its."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(picture, getattr(loaded, name))


def _image_of(array: "NDArray[Any]") -> "Image":
    grey = array.ndim == 2
    if array.dtype != "uint8" or not (grey or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        raise UnreadablePicture(
            f"the array is {array.dtype} {list(array.shape)}; wanted is uint8 [height, width, 3] in RGB, or [height, width]"
        )
    return _pillow()[0].fromarray(array)


def _png(image: "Image") -> bytes:
    upright = _pillow()[1].exif_transpose(image)
    if upright.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        upright = upright.convert("RGB")
    written = io.BytesIO()
    upright.save(written, "PNG", compress_level=PNG_LEVEL)
    return written.getvalue()


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise UnreadablePicture("this needs Pillow: pip install pillow") from None
    return Image, ImageOps
