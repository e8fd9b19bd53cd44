"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...engine.requests.input import Input
from ..conventions.chat import ChatConventions
from ..conventions.choose import conventions_of
from ..openapi import documented
from ..presets import served_model
from ..protocol.answers import ChatCompletion, ChatCompletionChunk
from ..protocol.chat_answer import ChatStream, chat_answer
from ..protocol.chat_body import ChatBody
from ..protocol.echo import Echo
from ..protocol.parse import parse_body
from ..protocol.plan import Plan
from ..protocol.spelling import Spelling
from .answer import Asked, answer
from .chat_prompt import chat_prompt
from .common import answer_id

if TYPE_CHECKING:
    from ..backend import Backend

router = APIRouter()


@router.post(
    "/v1/chat/completions",
    **documented(ChatBody, answer=ChatCompletion, events=ChatCompletionChunk),
)
async def create_chat_completion(request: Request) -> Response:
    """Answer a chat."""
    return await answer(request, plan_chat, whole=chat_answer, stream=ChatStream)


def plan_chat(engine: Backend, raw: bytes, asked: Asked) -> Plan[ChatBody]:
    """Check, render and tokenise a request; runs off the event loop.

    Raises:
        RequestError: it is refused.
    """
    body, ignored = parse_body(ChatBody, raw)
    served = served_model(engine, body.model, asked.settings.presets)
    body.check_together()
    body.check_template(asked.settings.chat_template_kwarg)
    chat = ChatConventions(
        conventions_of(
            engine.tokenizer, asked.settings.tool_parser, asked.settings.reasoning_parser
        ),
        engine.tokenizer,
        body.tool_use,
        body.thought_use,
    )
    rendered = chat_prompt(engine, body, chat)
    prompt = rendered.prompt
    identity = answer_id("chatcmpl")
    request = engine.input_processor.prepare(
        Input(
            request_id=identity,
            prompt=prompt,
            params=body,
            add_special_tokens=body.add_special_tokens,
            prompt_param="messages",
            logprobs=body.alternatives,
            prompt_logprobs=body.prompt_logprobs,
            truncation=body.truncation,
            priority=body.priority,
            cache_salt=asked.tenant + (body.cache_salt or ""),
            adapter=served.adapter_key,
            decoding=served.preset.decoding if body.decoding is None else body.decoding,
            kv_cache=served.preset.kv_cache if body.kv_cache is None else body.kv_cache,
            conversation=rendered.conversation,
            frame=chat.frame(prompt),
            thinking=chat.thinking(prompt),
            thought_closed=chat.thought_closed(prompt),
            shown_tokens=chat.shown_tokens,
            pictures=rendered.pictures,
        )
    )
    return Plan(
        id=identity,
        created=asked.created,
        model=served.id,
        body=body,
        requests=(request,),
        spelling=Spelling.of(engine.tokenizer, body),
        echo=(Echo(text=body.echoed),) if body.echoed else (),
        reading=chat.reading(prompt),
        ignored=(*ignored, *rendered.unread),
    )
