"""POST /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..conventions.chat import ChatConventions, ThoughtUse
from ..conventions.choose import conventions_of
from ..disconnect import until_disconnect
from ..openapi import documented
from ..presets import served_model
from ..protocol.answers import Text, Tokens
from ..protocol.parse import parse_body, parse_object, validated
from ..protocol.token_bodies import DetokenizeBody, TokenizeChatBody, TokenizeTextBody
from .chat_prompt import chat_prompt
from .common import ignored_headers, json_response, services_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..backend import Backend
    from ..settings.serve import ServeSettings

router = APIRouter()

Answer = tuple[dict[str, Any], tuple[str, ...]]


@router.post("/tokenize", **documented(TokenizeTextBody, TokenizeChatBody, answer=Tokens))
async def tokenize(request: Request) -> Response:
    """Token ids of a text or a chat."""
    return await _answer(request, _tokenize)


@router.post("/detokenize", **documented(DetokenizeBody, answer=Text))
async def detokenize(request: Request) -> Response:
    """Text of token ids."""
    return await _answer(request, _detokenize)


async def _answer(
    request: Request, work: Callable[[Backend, bytes, ServeSettings], Answer]
) -> Response:
    services = services_of(request)
    engine = services.lifecycle.engine
    async with services.bodies.read(request) as raw:
        content, ignored = await until_disconnect(
            request.receive, services.offload.run(work, engine, raw, services.settings)
        )
    return json_response(content, ignored_headers(request, ignored))


def _tokenize(engine: Backend, raw: bytes, settings: ServeSettings) -> Answer:
    tokens: tuple[int, ...]
    fields = parse_object(raw)
    if "messages" in fields:
        chat, ignored = validated(TokenizeChatBody, fields)
        served_model(engine, chat.model, settings.presets)
        chat.check_template(settings.chat_template_kwarg)
        chat.check_tools()
        known = conventions_of(engine.tokenizer, settings.tool_parser, settings.reasoning_parser)
        conventions = ChatConventions(known, engine.tokenizer, chat.tool_use, ThoughtUse())
        rendered = chat_prompt(engine, chat, conventions)
        ignored = (*ignored, *rendered.unread)
        tokens = engine.input_processor.encoder.encode(
            rendered.prompt, param="messages", add_special_tokens=chat.add_special_tokens
        )
        with_strings = chat.return_token_strs
    else:
        body, ignored = validated(TokenizeTextBody, fields)
        served_model(engine, body.model, settings.presets)
        # An empty text is no mistake here, only nothing to generate from.
        tokens = (
            engine.input_processor.encoder.encode(
                body.prompt, param="prompt", add_special_tokens=body.add_special_tokens
            )
            if body.prompt
            else ()
        )
        with_strings = body.return_token_strs
    pieces = [engine.tokenizer.token_piece(token) for token in tokens] if with_strings else None
    content = {
        "count": len(tokens),
        "max_model_len": engine.model.max_length_tokens,
        "tokens": tokens,
        "token_strs": pieces,
    }
    return content, ignored


def _detokenize(engine: Backend, raw: bytes, settings: ServeSettings) -> Answer:
    body, ignored = parse_body(DetokenizeBody, raw)
    served_model(engine, body.model, settings.presets)
    ids = engine.input_processor.encoder.encode(body.tokens, param="tokens") if body.tokens else ()
    return {"prompt": engine.tokenizer.decode(ids, skip_special_tokens=False)}, ignored
