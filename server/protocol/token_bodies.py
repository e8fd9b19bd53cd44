"""The bodies of /tokenize and /detokenize, as vLLM has them."""

from pydantic import BaseModel

from .chat_body import ConversationFields
from .fields import STRICT, Name, TokenIds


class TokenizeTextBody(BaseModel):
    """Tokenise a text."""

    model_config = STRICT

    model: Name | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChatBody(ConversationFields):
    """Tokenise a chat as /v1/chat/completions would."""

    model: Name | None = None
    return_token_strs: bool = False


class DetokenizeBody(BaseModel):
    """Text of token ids, special tokens included."""

    model_config = STRICT

    model: Name | None = None
    tokens: TokenIds
