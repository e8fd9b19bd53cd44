"""From the messages of a chat to its prompt, for /v1/chat/completions and /tokenize."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...engine.requests.picture_prompt import without_pictures
from ...engine.state.request import Conversation

if TYPE_CHECKING:
    from ...engine.requests.chat.template import RenderedChat
    from ...engine.state.pictures import Picture
    from ..backend import Backend
    from ..conventions.chat import ChatConventions
    from ..protocol.chat_body import ConversationFields


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A chat as its model's template has rendered it. `unread`: hints that it does not read."""

    prompt: RenderedChat
    pictures: tuple[Picture, ...]
    conversation: Conversation
    unread: tuple[str, ...]


def chat_prompt(engine: Backend, body: ConversationFields, chat: ChatConventions) -> ChatPrompt:
    """Render a chat and read its pictures.

    Raises:
        RequestError: the template refuses these messages, or a picture is not taken.
    """
    turns, sources = without_pictures(body.template_messages())
    messages = chat.messages(turns)
    reads = engine.tokenizer.template_variables
    template_kwargs = body.template_kwargs(reads)
    prompt = engine.tokenizer.render_chat(
        messages,
        add_generation_prompt=body.starts_answer,
        continue_final_message=body.continue_final_message,
        template_kwargs=template_kwargs,
        tools=chat.template_tools,
    )
    pictures = engine.input_processor.pictures.read(sources)
    return ChatPrompt(
        prompt=engine.input_processor.pictures.put(prompt, pictures),
        pictures=pictures,
        conversation=Conversation(messages=messages, template_kwargs=template_kwargs),
        unread=body.hints.unread(reads),
    )
