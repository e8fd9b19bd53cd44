"""The way that completions and chats share: read, plan, submit, answer whole or as a stream."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from penstock.errors import RequestError

from ..disconnect import until_disconnect
from ..generations import collect, submitted
from ..policies import Caller, caller_of
from ..protocol.generation import GenerationBody
from ..protocol.parse import named_as_sent
from ..streaming import EventStream
from .common import ignored_headers, json_response, services_of, tenant_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from ...engine.outputs.choice_result import ChoiceResult
    from ..backend import Backend
    from ..protocol.plan import Answered, Plan, StreamWriter
    from ..settings.requests import RequestSettings

B = TypeVar("B", bound=GenerationBody)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a plan depends on besides the body. `created`: Unix time in seconds.

    `tenant`: whose cached prefixes the request may share (`tenant_of`).
    """

    created: int
    tenant: str
    settings: RequestSettings


async def answer(
    request: Request,
    make_plan: Callable[[Backend, bytes, Asked], Plan[B]],
    *,
    whole: Callable[[Plan[B], Sequence[Sequence[ChoiceResult]], Sequence[Answered]], bytes],
    stream: Callable[[Plan[B]], StreamWriter],
) -> Response:
    """Answer a request: `make_plan` runs off the event loop on the body's bytes.

    `whole` and `stream` are the two forms of the answer; the body says which.
    """
    since_s = asyncio.get_running_loop().time()
    services = services_of(request)
    engine = services.lifecycle.engine
    asked = Asked(
        created=int(services.wall_clock()),
        tenant=tenant_of(request),
        settings=services.settings,
    )
    async with services.bodies.read(request) as raw:
        plan = await until_disconnect(
            request.receive, services.offload.run(_planned, make_plan, engine, raw, asked)
        )
    plan = _owned(plan, caller_of(request, services.settings.policy))
    headers = ignored_headers(request, plan.ignored)
    if plan.body.stream:
        return EventStream(
            engine,
            plan.requests,
            stream(plan),
            headers,
            heartbeat_s=services.settings.heartbeat_s,
            since_s=since_s,
        )
    with submitted(engine, plan.requests) as generations:
        results = await until_disconnect(request.receive, collect(generations))
        return json_response(whole(plan, results, generations), headers)


def _planned(
    make_plan: Callable[[Backend, bytes, Asked], Plan[B]], engine: Backend, raw: bytes, asked: Asked
) -> Plan[B]:
    """The plan; a refusal names fields as the caller does."""
    try:
        return make_plan(engine, raw, asked)
    except RequestError as error:
        raise named_as_sent(error, raw) from None


def _owned(plan: Plan[B], caller: Caller) -> Plan[B]:
    """The plan with its caller's requests; a priority that is not granted counts as ignored."""
    requests = tuple(caller.own(each) for each in plan.requests)
    granted = all(
        own.priority == asked.priority for own, asked in zip(requests, plan.requests, strict=True)
    )
    ignored = plan.ignored if granted else (*plan.ignored, "priority")
    return replace(plan, requests=requests, ignored=ignored)
