"""Fetches pictures from other machines, where the operator allows it and no further.

Only domains of `--allow-media-domains`, only https and http, only public addresses, no redirects,
bounded bytes and time. The connection goes to the very address that was checked: a name that is
resolved twice may have two addresses.
"""

import socket
import time
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final
from urllib.parse import SplitResult, urlsplit

import httpx

from ...errors import RequestError
from .decode import KINDS, check_kind, refused

Address = IPv4Address | IPv6Address
_PORTS: Final = {"http": 80, "https": 443}


def resolve(host: str, port: int) -> list[Address]:
    """All addresses of a name.

    Raises:
        OSError: it has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(str(each[4][0]).partition("%")[0]) for each in found]


def is_public(address: Address) -> bool:
    """Whether an address is of the open internet, and so is an IPv4 address inside an IPv6 one."""
    if isinstance(address, IPv6Address):
        inside = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if not all(is_public(each) for each in inside if each is not None):
            return False
        if address.ipv4_mapped is not None:
            return True
    return address.is_global and not address.is_multicast and not address.is_reserved


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaFetcher:
    """`domains`: as in `PictureSettings.allow_media_domains`. `timeout_s`: for all of one file.

    `resolve`, `is_public`: which addresses a name has, and which may be connected to.
    """

    domains: Collection[str]
    timeout_s: float
    resolve: Callable[[str, int], list[Address]] = resolve
    is_public: Callable[[Address], bool] = is_public

    def fetch(self, url: str, *, max_bytes: int, param: str) -> tuple[bytes, str]:
        """The file at an address, and the media type of `KINDS` that its server says it is.

        Raises:
            RequestError: it must not be fetched, or cannot be.
        """
        parts, host, port = self._allowed(url, param)
        try:
            addresses = self.resolve(host, port)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise _unavailable(f"{param}: {host} has no address", param)
        if not all(map(self.is_public, addresses)):
            raise refused(
                f"{param}: {host} has an address that is not public, and nothing was fetched; "
                "send the picture as a data: URI",
                param,
            )
        address = addresses[0]
        at = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
        target = f"{parts.scheme}://{at}:{port}{parts.path or '/'}"
        if parts.query:
            target += f"?{parts.query}"
        try:
            with self._opened(target, parts.netloc, host) as response:
                return self._read(response, host, max_bytes, param)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _unavailable(
                f"{param}: {host} did not send the picture ({type(error).__name__})", param
            ) from error

    def _allowed(self, url: str, param: str) -> tuple[SplitResult, str, int]:
        """The parts of a URL, its host and port."""
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "").lower().rstrip(".")
            port = parts.port or _PORTS[parts.scheme]
        except ValueError:
            raise refused(f"{param} is no valid URL", param) from None
        named = {host} if port == _PORTS[parts.scheme] else set[str]()
        if not self.domains:
            raise refused(
                f"{param} is a remote address, and this server fetches none "
                "(--allow-media-domains); send the picture as a data: URI",
                param,
            )
        if parts.username is not None or not (named | {f"{host}:{port}"}) & set(self.domains):
            raise refused(
                f"{param}: {host[:253]!r} is none of the domains that this server fetches from "
                "(--allow-media-domains); send the picture as a data: URI",
                param,
            )
        return parts, host, port

    @contextmanager
    def _opened(self, target: str, netloc: str, host: str) -> Generator[httpx.Response]:
        with (
            # No proxies of the environment: they would connect to what they resolve.
            httpx.Client(trust_env=False, timeout=self.timeout_s) as client,
            client.stream(
                "GET",
                target,
                headers={
                    "Host": netloc,
                    "Accept": ", ".join(KINDS),
                    "Accept-Encoding": "identity",
                },
                extensions={"sni_hostname": host},
                follow_redirects=False,
            ) as response,
        ):
            yield response

    def _read(
        self, response: httpx.Response, host: str, max_bytes: int, param: str
    ) -> tuple[bytes, str]:
        if response.status_code != 200:
            redirects = "; redirects are not followed" if response.is_redirect else ""
            raise _unavailable(
                f"{param}: {host} answered with status {response.status_code}{redirects}", param
            )
        said: str = response.headers.get("content-type", "").partition(";")[0]
        kind = check_kind(said, param)
        ends_s = time.monotonic() + self.timeout_s
        data = bytearray()
        for piece in response.iter_raw():
            data += piece
            if len(data) > max_bytes:
                raise refused(
                    f"{param} has more than {max_bytes} bytes, which is the most that this server "
                    "takes (--max-picture-bytes); make it smaller",
                    param,
                )
            if time.monotonic() > ends_s:
                raise _unavailable(
                    f"{param}: {host} did not send the picture within {self.timeout_s:g} s", param
                )
        return bytes(data), kind


def _unavailable(message: str, param: str) -> RequestError:
    return RequestError(
        f"{message}; send the picture as a data: URI", param=param, code="media_unavailable"
    )
