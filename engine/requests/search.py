"""Checks a request with a controller (a search) before any of it runs."""

from typing import Any, cast

from ...decoding.constraint.grammar import Grammars
from ...decoding.search.base import Controller, SearchLimits
from ...decoding.search.budget import Budget, filled
from ...errors import RequestError
from ...registry import Choice
from ..state.request import Conversation, SearchTask
from .chat.turns import content_text
from .grammar import compiled
from .input import Input
from .picture_prompt import IN_TEMPLATE
from .tokenizer import Tokenizer


def search_task(
    controller: Choice[Controller[Any]],
    given: Input,
    *,
    problem: str,
    contexts: int,
    limits: SearchLimits,
    grammars: Grammars,
) -> SearchTask:
    """The request as its controller will see it.

    `contexts`: how many each sequence runs in. `grammars`: compiles the controller's forms.

    Raises:
        RequestError: names the field that this controller cannot work with.
    """
    method = controller.method
    name = f"decoding.{method.name}"
    wanted = method.budget(controller.parameters)
    _check_budget(wanted, limits.budget, f"{name}.budget")
    allowed = filled(wanted, limits.budget)
    method.check(controller.parameters, given.params.n, limits)
    assert allowed.sequences is not None
    if contexts > allowed.sequences:
        raise RequestError(
            f"{name}.budget.sequences is {allowed.sequences}, but each sequence runs in {contexts} "
            "contexts; raise it",
            param=f"{name}.budget.sequences",
            code="invalid_parameter",
        )
    return SearchTask(
        problem=problem,
        conversation=given.conversation,
        max_tokens=given.params.max_tokens,
        sequences=allowed.sequences,
        grammars={
            each: compiled(form, f"{name}.forms.{each}", grammars)
            for each, form in method.forms(controller.parameters).items()
        },
    )


def problem_of(given: Input, ids: tuple[int, ...], tokenizer: Tokenizer) -> str:
    """What a chat's user said last, or else the prompt's text. `ids`: the prompt's tokens."""
    said = None
    if given.conversation is not None:
        said = _said_last(given.conversation)
    elif given.truncation is None and isinstance(given.prompt, str):
        said = given.prompt
    return tokenizer.decode(ids) if said is None else said


def _said_last(conversation: Conversation) -> str | None:
    """Text of a chat's last user message; None: there is none, or it is not text and pictures."""
    for message in reversed(conversation.messages):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                content = [part for part in cast("list[Any]", content) if part != IN_TEMPLATE]
            return content_text(content)
    return None


def _check_budget(wanted: Budget, limits: Budget, where: str) -> None:
    for field in Budget.model_fields:
        value, limit = getattr(wanted, field), getattr(limits, field)
        if value is not None and value > limit:
            raise RequestError(
                f"{where}.{field} is {value:g}, but this server allows at most {limit:g} "
                f"(--search-{field}); lower it",
                param=f"{where}.{field}",
                code="invalid_parameter",
            )
