"""Fields that ask for something this server does not do: refused, never decoded without."""

from collections.abc import Mapping
from typing import Any, cast

from penstock.errors import RequestError

# Field -> the values that ask for nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "suffix": ("",),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "use_beam_search": (False,),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "logits_processors": ([],),
    "prompt_embeds": (),
    "documents": ([],),
}


def refuse_unsupported(fields: Mapping[str, Any]) -> None:
    """Raise RequestError for the first field that asks for what is not there yet."""
    for name, neutral in _NEUTRAL.items():
        if name in fields and not any(_same(fields[name], value) for value in neutral):
            raise RequestError(
                f"{name} is not supported yet by this server; leave it out",
                param=name,
                code="unsupported_parameter",
            )
    _refuse_format(fields.get("response_format"))
    if "chat_template" in fields:
        raise RequestError(
            "chat_template cannot be sent with a request: the model's own is used; leave it out",
            param="chat_template",
            code="unsupported_parameter",
        )


def _refuse_format(value: object) -> None:
    if value is None:
        return
    kind = cast("Mapping[str, Any]", value).get("type") if isinstance(value, dict) else None
    if kind != "text":
        raise RequestError(
            'response_format other than {"type": "text"} is not supported yet by this server; '
            "leave it out",
            param="response_format",
            code="unsupported_parameter",
        )


def _same(value: object, neutral: object) -> bool:
    # 0 == False and 1 == True in Python, but not in JSON.
    return type(value) is type(neutral) and value == neutral
