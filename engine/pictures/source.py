"""What a caller sends for a picture: a data: URI, or the address of a file elsewhere."""

import base64
import binascii
from dataclasses import dataclass

from ...errors import RequestError
from .decode import check_kind, refused
from .fetch import MediaFetcher


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSource:
    """`url`: of a picture. `param`: the field that errors name."""

    url: str
    param: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFile:
    """A file, not yet looked at. `kind`: the media type that it is said to be."""

    data: bytes
    kind: str
    param: str


def read_source(source: PictureSource, *, max_bytes: int, fetcher: MediaFetcher) -> PictureFile:
    """The file of a source, of at most `max_bytes`.

    Raises:
        RequestError: the URL is none that is taken, or its file is too long.
    """
    url, param = source.url, source.param
    scheme = url[:8].partition(":")[0].lower()
    if scheme == "data":
        return _of_data(url, param, max_bytes)
    if scheme in ("http", "https"):
        data, kind = fetcher.fetch(url, max_bytes=max_bytes, param=param)
        return PictureFile(data=data, kind=kind, param=param)
    raise refused(
        f"{param} is no data: URI (data:image/png;base64,...); send the picture as one", param
    )


def _of_data(url: str, param: str, max_bytes: int) -> PictureFile:
    head, comma, body = url.partition(",")
    said, *options = head[len("data:") :].split(";")
    if not comma or "base64" not in [each.strip().lower() for each in options]:
        raise refused(
            f"{param} is a data: URI that is not in base64; write it as data:image/png;base64,...",
            param,
        )
    kind = check_kind(said, param)
    if len(body) * 3 // 4 > max_bytes + 3:
        raise too_long(param, max_bytes)
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise refused(
            f"{param} is a data: URI whose base64 is broken; send it again", param
        ) from None
    if len(data) > max_bytes:
        raise too_long(param, max_bytes)
    return PictureFile(data=data, kind=kind, param=param)


def too_long(param: str, max_bytes: int) -> RequestError:
    """The error for a file of too many bytes."""
    return refused(
        f"{param} has more than {max_bytes} bytes, which is the most that this server takes "
        "(--max-picture-bytes); make it smaller",
        param,
    )
