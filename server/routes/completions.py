"""POST /v1/completions."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from penstock.errors import RequestError

from ..protocol.completion_answer import CompletionStream, completion_answer
from ..protocol.completion_body import CompletionBody
from ..protocol.parse import parse_body
from ..protocol.plan import Plan
from ..protocol.spelling import Spelling
from .answer import answer
from .common import (
    answer_id,
    check_model,
    documented,
    services_of,
    tenant_of,
)

if TYPE_CHECKING:
    from ...engine.request import Request as EngineRequest
    from ..backend import Backend

router = APIRouter()

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_CHOICES = 1024


@router.post("/v1/completions", openapi_extra=documented(CompletionBody))
async def create_completion(request: Request) -> Response:
    """Continue one prompt or several."""
    created = int(services_of(request).wall_clock())
    make_plan = partial(plan_completion, created=created, tenant=tenant_of(request))
    return await answer(request, make_plan, whole=completion_answer, stream=CompletionStream)


def plan_completion(
    engine: Backend, raw: bytes, *, created: int, tenant: str
) -> Plan[CompletionBody]:
    """Check and tokenise a request; runs off the event loop.

    Raises:
        RequestError: it is refused.
    """
    body, ignored = parse_body(CompletionBody, raw)
    check_model(engine, body.model)
    body.check_together()
    prompts = body.prompts
    if len(prompts) * body.n > MAX_CHOICES:
        raise RequestError(
            f"{len(prompts)} prompts with n = {body.n} make {len(prompts) * body.n} choices; "
            f"the limit is {MAX_CHOICES}; send several requests",
            param="prompt",
            code="invalid_parameter",
        )
    identity = answer_id("cmpl")
    requests = tuple(
        _prepare(engine, body, prompt, request_id=f"{identity}-{number}", tenant=tenant)
        for number, prompt in enumerate(prompts)
    )
    echo: tuple[str, ...] = ()
    if body.echo:
        echo = tuple(
            # A truncated prompt is echoed as the model saw it.
            prompt
            if isinstance(prompt, str) and body.truncate_prompt_tokens is None
            else engine.tokenizer.decode(prepared.prompt_ids)
            for prompt, prepared in zip(prompts, requests, strict=True)
        )
    return Plan(
        id=identity,
        created=created,
        model=engine.model.id,
        body=body,
        requests=requests,
        spelling=Spelling(engine.tokenizer),
        echo=echo,
        ignored=ignored,
    )


def _prepare(
    engine: Backend,
    body: CompletionBody,
    prompt: str | list[int],
    *,
    request_id: str,
    tenant: str,
) -> EngineRequest:
    prompt_logprobs = body.prompt_logprobs
    if body.echo and body.logprobs is not None:
        prompt_logprobs = max(body.logprobs, prompt_logprobs or 0)
    return engine.intake.prepare(
        request_id=request_id,
        prompt=prompt,
        params=body,
        default_max_tokens=DEFAULT_MAX_TOKENS,
        add_special_tokens=body.add_special_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=prompt_logprobs,
        truncate_prompt_tokens=body.truncate_prompt_tokens,
        priority=body.priority,
        cache_salt=tenant + (body.cache_salt or ""),
        decoding=body.decoding,
        kv_cache=body.kv_cache,
    )
