"""Which web pages may call: the names that this server goes by, and the origins it trusts.

A browser lets every page send requests to every address, this machine's own included. It says in
`Origin` and `Sec-Fetch-Site` whose page it is, except where the page's own name has been made to
point here (DNS rebinding); there `Host` holds that name. Programs that are no browsers send
neither `Origin` nor `Sec-Fetch-Site`.
"""

import re
from collections.abc import Collection
from ipaddress import ip_address

ANY = "*"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+?)\.?)(?::([0-9]*))?")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class Hosts:
    """The names by which this server may be called. `addresses`: and any IP address.

    A page's name can be made to point here; an IP address cannot.
    """

    def __init__(self, names: Collection[str], *, addresses: bool) -> None:
        self._names = frozenset(name.lower().strip("[]") for name in names)
        self._addresses = addresses

    def accept(self, host: str | None) -> bool:
        """Whether a `Host` header, or none, is one of these names."""
        if host is None or ANY in self._names:
            return True
        name, _ = _split(host)
        return name in self._names or (self._addresses and is_address(name))


def is_origin(text: str) -> bool:
    """Whether a text in lower case is an origin: a scheme and a host, and no path."""
    parts = _ORIGIN.fullmatch(text)
    return parts is not None and _split(parts[2])[0] != ""


def is_same_origin(origin: str, host: str) -> bool:
    """Whether an origin is this server's own; a proxy may have taken the encryption off."""
    parts = _ORIGIN.fullmatch(origin.lower())
    if parts is None:
        return False
    default = _DEFAULT_PORTS.get(parts[1], "")
    name, port = _split(parts[2])
    own_name, own_port = _split(host)
    return bool(name) and (name, port or default) == (own_name, own_port or default)


def _split(authority: str) -> tuple[str, str]:
    """Name and port, the first empty where it is none."""
    parts = _AUTHORITY.fullmatch(authority.lower())
    return ("", "") if parts is None else (parts[1] or parts[2], parts[3] or "")


def is_address(name: str) -> bool:
    """Whether a name is an IP address."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
