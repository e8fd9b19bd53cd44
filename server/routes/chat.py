"""POST /v1/chat/completions."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..disconnect import until_disconnect
from ..generations import collect, submitted
from ..protocol.chat_answer import ChatStream, chat_answer
from ..protocol.chat_body import ChatBody
from ..protocol.parse import parse_body
from ..protocol.plan import Plan
from ..protocol.spelling import Spelling
from ..streaming import EventStream
from .common import (
    answer_id,
    check_model,
    documented,
    ignored_headers,
    json_response,
    services_of,
    tenant_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from ..backend import Backend

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=documented(ChatBody))
async def create_chat_completion(request: Request) -> Response:
    """Answer a chat."""
    services = services_of(request)
    engine = services.lifecycle.engine
    make_plan = partial(
        plan_chat,
        created=int(services.wall_clock()),
        tenant=tenant_of(request),
        allowed_template_kwargs=services.settings.chat_template_kwarg,
    )
    async with services.bodies.read(request) as raw:
        plan = await services.offload.run(make_plan, engine, raw)
    headers = ignored_headers(request, plan.ignored)
    if plan.body.stream:
        return EventStream(
            engine,
            plan.requests,
            ChatStream(plan),
            headers,
            heartbeat_s=services.settings.heartbeat_s,
        )
    with submitted(engine, plan.requests) as generations:
        results = await until_disconnect(request.receive, collect(generations))
        return json_response(chat_answer(plan, results, generations), headers)


def plan_chat(
    engine: Backend,
    raw: bytes,
    *,
    created: int,
    tenant: str,
    allowed_template_kwargs: Collection[str],
) -> Plan[ChatBody]:
    """Check, render and tokenise a request; runs off the event loop.

    Raises:
        RequestError: it is refused.
    """
    body, ignored = parse_body(ChatBody, raw)
    check_model(engine, body.model)
    body.check_together()
    body.check_template(allowed_template_kwargs)
    prompt = engine.tokenizer.render_chat(
        body.template_messages(),
        add_generation_prompt=body.starts_answer,
        continue_final_message=body.continue_final_message,
        template_kwargs=body.template_kwargs(),
    )
    identity = answer_id("chatcmpl")
    request = engine.intake.prepare(
        request_id=identity,
        prompt=prompt,
        params=body.with_max_tokens(),
        add_special_tokens=False,
        prompt_param="messages",
        logprobs=body.alternatives,
        prompt_logprobs=body.prompt_logprobs,
        truncate_prompt_tokens=body.truncate_prompt_tokens,
        priority=body.priority,
        cache_salt=tenant + (body.cache_salt or ""),
        decoding=body.decoding,
        kv_cache=body.kv_cache,
    )
    return Plan(
        id=identity,
        created=created,
        model=engine.model.id,
        body=body,
        requests=(request,),
        spelling=Spelling(engine.tokenizer),
        ignored=ignored,
    )
