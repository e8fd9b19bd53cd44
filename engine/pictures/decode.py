"""Pictures out of files that anybody may have written: what they are is checked before decoding."""

import struct
import zlib
from io import BytesIO
from typing import Any, Final

from PIL import Image, ImageOps

from ...errors import RequestError

KINDS: Final = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
}
"""Media types that are taken, and what Pillow calls them."""

_SCAN: Final = b"\xff\xda"
_MOST_SCANS: Final = 100
"""Of a JPEG. Progressive ones have about ten; a file of thousands takes minutes to decode."""

_DAMAGED: Final = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    AttributeError,
    struct.error,
    zlib.error,
)
"""What Pillow's readers raise on files that are damaged."""


def decode(data: bytes, kind: str, *, max_pixels: int, param: str) -> Image.Image:
    """The picture of a file, in RGB and upright; of several frames the first.

    `kind`: the media type that the caller says it is. `max_pixels`: width times height.

    Raises:
        RequestError: it is of another kind, too large or damaged; nothing was decoded but, of
            files that turn out to be damaged, their beginning.
    """
    try:
        picture = Image.open(BytesIO(data), formats=list(KINDS.values()))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large("more", max_pixels, param) from None
    except _DAMAGED:
        raise refused(
            f"{param} is no picture of a kind that is taken; send {_listed()}", param
        ) from None
    if picture.format != KINDS[kind]:
        found = next(name for name, known in KINDS.items() if known == picture.format)
        raise refused(f"{param} is said to be {kind}, and is {found}; name its own type", param)
    for width, height in _sizes(picture):
        if width * height > max_pixels:
            raise _too_large(f"{width} x {height}", max_pixels, param)
    if picture.format == "JPEG" and data.count(_SCAN) > _MOST_SCANS:
        raise refused(
            f"{param} has {data.count(_SCAN)} scans, each over the whole picture; save it anew",
            param,
        )
    try:
        # As transformers loads pictures.
        return ImageOps.exif_transpose(picture).convert("RGB")
    except _DAMAGED:
        raise refused(f"{param} is damaged or ends early; send the whole file", param) from None


def _sizes(picture: Image.Image) -> list[tuple[int, int]]:
    """The picture's size, and those of its pieces: the first frame of a GIF may be larger."""
    tiles: list[Any] = getattr(picture, "tile", [])
    pieces = [tile[1] for tile in tiles if tile[1] is not None]
    return [picture.size, *((right, lower) for _, _, right, lower in pieces)]


def check_kind(said: str, param: str) -> str:
    """The media type as `KINDS` has it.

    Raises:
        RequestError: it is none that is taken.
    """
    kind = said.strip().lower()
    kind = {"image/jpg": "image/jpeg"}.get(kind, kind)
    if kind not in KINDS:
        named = f"of the type {kind[:64]!r}" if kind else "of no type"
        raise refused(f"{param} is {named}; send {_listed()}", param)
    return kind


def refused(message: str, param: str) -> RequestError:
    """The error for a picture that is not taken."""
    return RequestError(message, param=param, code="invalid_picture")


def _listed() -> str:
    *most, last = KINDS
    return f"{', '.join(most)} or {last}"


def _too_large(found: str, max_pixels: int, param: str) -> RequestError:
    return refused(
        f"{param} has {found} pixels, and this server takes at most {max_pixels} "
        "(--max-picture-pixels); make it smaller",
        param,
    )
