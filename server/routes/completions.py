"""POST /v1/completions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from penstock.errors import RequestError

from ...engine.requests.input import Input
from ..openapi import documented
from ..presets import served_model
from ..protocol.answers import Completion
from ..protocol.completion_answer import CompletionStream, completion_answer
from ..protocol.completion_body import CompletionBody
from ..protocol.echo import Echo, echo_of
from ..protocol.parse import parse_body
from ..protocol.plan import Plan
from ..protocol.spelling import Spelling
from .answer import Asked, answer
from .common import answer_id

if TYPE_CHECKING:
    from ...engine.state.request import Request as EngineRequest
    from ..backend import Backend
    from ..presets import Served

router = APIRouter()

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_CHOICES = 1024


@router.post("/v1/completions", **documented(CompletionBody, answer=Completion, events=Completion))
async def create_completion(request: Request) -> Response:
    """Continue one prompt or several."""
    return await answer(request, plan_completion, whole=completion_answer, stream=CompletionStream)


def plan_completion(engine: Backend, raw: bytes, asked: Asked) -> Plan[CompletionBody]:
    """Check and tokenise a request; runs off the event loop.

    Raises:
        RequestError: it is refused.
    """
    body, ignored = parse_body(CompletionBody, raw)
    served = served_model(engine, body.model, asked.settings.presets)
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
    requests: list[EngineRequest] = []
    for number, prompt in enumerate(prompts):
        requests.append(
            _prepare(
                engine,
                body,
                prompt,
                request_id=f"{identity}-{number}",
                tenant=asked.tenant,
                served=served,
                prompts=len(prompts),
            )
        )
    echo: tuple[Echo, ...] = ()
    if body.echo:
        echo = tuple(
            echo_of(
                engine.tokenizer,
                prompt,
                prepared,
                add_special_tokens=body.add_special_tokens,
            )
            for prompt, prepared in zip(prompts, requests, strict=True)
        )
    return Plan(
        id=identity,
        created=asked.created,
        model=served.id,
        body=body,
        requests=tuple(requests),
        spelling=Spelling.of(engine.tokenizer, body),
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
    served: Served,
    prompts: int,
) -> EngineRequest:
    preset, prompt_logprobs = served.preset, body.prompt_logprobs
    if body.echo and body.logprobs is not None:
        prompt_logprobs = max(body.logprobs, prompt_logprobs or 0)
    return engine.input_processor.prepare(
        Input(
            request_id=request_id,
            prompt=prompt,
            params=body,
            default_max_tokens=DEFAULT_MAX_TOKENS,
            add_special_tokens=body.add_special_tokens,
            suffix=body.suffix,
            logprobs=body.logprobs,
            prompt_logprobs=prompt_logprobs,
            truncation=body.truncation,
            priority=body.priority,
            cache_salt=tenant + (body.cache_salt or ""),
            adapter=served.adapter_key,
            decoding=body.method(preset.decoding),
            kv_cache=preset.kv_cache if body.kv_cache is None else body.kv_cache,
            prompts=prompts,
        )
    )
