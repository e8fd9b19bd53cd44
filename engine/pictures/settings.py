"""Settings of pictures in requests: how much of them is taken, and from where."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from penstock.settings import Settings


def _split(value: Any) -> Any:
    """Several in one variable of the environment, by commas."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def _domains(value: list[str]) -> list[str]:
    for each in value:
        host, colon, port = each.partition(":")
        named = host and host == host.strip(".") and host.isascii() and not set(host) & set("/*@ ")
        if not named or (colon and not port.isdecimal()):
            raise ValueError(
                f"{each[:64]!r} is no domain; write it as in example.com, or example.com:8443"
            )
    return [each.lower() for each in value]


Domains = Annotated[list[str], NoDecode, BeforeValidator(_split), AfterValidator(_domains)]


class PictureSettings(Settings):
    """Pictures.

    `max_pictures`: pictures of one request.
    `max_picture_bytes`: longest file of one picture. Data URIs also count for --max-body-bytes.
    `max_picture_pixels`: largest width times height of one picture.
    `max_request_pixels`: the same, of all pictures of a request together.
    `picture_cache_bytes`: memory for embeddings of recent pictures.
    `allow_media_domains`: domain from which pictures are fetched, as HOST or HOST:PORT; repeat the
    flag for several. Default: none, pictures have to come as data: URIs. Addresses must be public,
    and redirects are not followed.
    `media_timeout_s`: time that fetching one picture may take.
    """

    max_pictures: int = Field(default=16, ge=1, le=256)
    max_picture_bytes: int = Field(default=20 * 2**20, ge=1024, le=2**30)
    max_picture_pixels: int = Field(default=2**25, ge=1024, le=2**30)
    max_request_pixels: int = Field(default=2**26, ge=1024, le=2**32)
    picture_cache_bytes: int = Field(default=2**28, ge=0, le=2**40)
    allow_media_domains: Domains = Field(default=[])
    media_timeout_s: float = Field(default=10.0, gt=0, le=600)
