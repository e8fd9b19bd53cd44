"""What the operator grants a caller, and whose requests are whose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Final

from penstock.errors import ConfigurationError

if TYPE_CHECKING:
    from starlette.requests import Request

    from ..engine.state.request import Request as EngineRequest

MAX_WEIGHT: Final = 1000.0
MAX_PRIORITY: Final = 2**31 - 1
_IPV6_SITE_BITS: Final = 64
"""Of an address: whoever has one of them has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """`weight`: of the caller's share. `priority`: the most urgent that it may ask for."""

    weight: float = 1.0
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """`owner`: whose share requests use, the same for all requests of a key or an address."""

    owner: str
    policy: Policy

    def own(self, request: EngineRequest) -> EngineRequest:
        """The request with its owner, and no more urgent than is granted."""
        return replace(
            request,
            owner=self.owner,
            weight=self.policy.weight,
            priority=max(request.priority, self.policy.priority),
        )


def caller_of(request: Request, default: Policy) -> Caller:
    """Who sent it: the owner of its API key or, where no keys are set, its client's address."""
    state = request.state
    tenant: str = getattr(state, "tenant", "")
    if tenant:
        policy: Policy = state.policy
        return Caller(owner=tenant, policy=policy)
    return Caller(owner=_site(request.client.host if request.client else ""), policy=default)


def key_policy(line: str, default: Policy, where: str) -> tuple[str, Policy]:
    """A line of the key file: a key, and what differs from the default, as in `weight=2`.

    Raises:
        ConfigurationError: something else stands behind the key.
    """
    key, *words = line.split()
    policy = default
    for word in words:
        name, _, value = word.partition("=")
        try:
            if name == "weight" and 0 < float(value) <= MAX_WEIGHT:
                policy = replace(policy, weight=float(value))
                continue
            if name == "priority" and abs(int(value)) <= MAX_PRIORITY:
                policy = replace(policy, priority=int(value))
                continue
        except ValueError:
            pass
        # The key's own text must not get into a log.
        raise ConfigurationError(
            f"{where}: behind a key there may be weight=NUMBER (above 0, up to {MAX_WEIGHT:g}) and "
            f"priority=NUMBER (from -{MAX_PRIORITY} to {MAX_PRIORITY}), nothing else"
        )
    return key, policy


def _site(host: str) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ip_network((address, _IPV6_SITE_BITS), strict=False).network_address)
    return host
