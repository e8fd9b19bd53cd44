"""Settings of the address, and of who may reach it."""

from ipaddress import ip_address
from socket import SOCK_STREAM, getaddrinfo

from pydantic import Field, field_validator

from penstock.settings import Settings

from ..site import ANY, LOOPBACK_NAMES, Hosts, is_address, is_origin
from .values import Words


class NetworkSettings(Settings):
    """Network.

    `host`: address to listen on; the default is reachable from this machine only.
    `port`: port to listen on; 0 takes a free one and logs it.
    `cors_origin`: origins whose web pages may call; repeat the flag for several, * is all.
    `allowed_hosts`: host names under which this server may be called, * is any; default: on a
    loopback address localhost, 127.0.0.1 and [::1], elsewhere any.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    cors_origin: Words = Field(default=[])
    allowed_hosts: Words = Field(default=[])

    @field_validator("cors_origin")
    @classmethod
    def _origins(cls, origins: list[str]) -> list[str]:
        """As browsers write them."""
        plain = [origin.lower().removesuffix("/") for origin in origins]
        for origin in plain:
            if origin not in {ANY, "null"} and not is_origin(origin):
                raise ValueError(
                    f"{origin!r} is no origin; write scheme and host, as in https://chat.example, "
                    "or * for all"
                )
        return plain

    @field_validator("allowed_hosts")
    @classmethod
    def _names(cls, names: list[str]) -> list[str]:
        for name in names:
            if "/" in name or (":" in name.rpartition("]")[2] and not is_address(name)):
                raise ValueError(f"{name!r} is no name of a host; write no scheme and no port")
        return names

    @property
    def hosts(self) -> Hosts | None:
        """The names that requests may be sent to; None: any."""
        if not (self.is_loopback or self.allowed_hosts):
            return None
        names = {*LOOPBACK_NAMES, self.host, *self.allowed_hosts}
        return Hosts(names, addresses=not self.is_loopback)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            found = getaddrinfo(self.host, None, type=SOCK_STREAM)
        except OSError:
            return False  # which stops the start, when it comes to listening
        return ip_address(str(found[0][4][0])).is_loopback
