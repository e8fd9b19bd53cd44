"""Checks a request with a controller (a search) before any of it runs."""

from collections.abc import Mapping
from typing import Any

from ...decoding.sampling_params import SamplingParams
from ...decoding.search.base import Controller, SearchLimits
from ...decoding.search.budget import Budget, filled
from ...errors import RequestError
from ...kvcache.base import CachePolicy, Retention
from ...registry import Choice
from ..state.request import Conversation, SearchTask
from .chat.turns import content_text


def search_task(
    controller: Choice[Controller[Any]],
    *,
    params: SamplingParams,
    problem: str,
    conversation: Conversation | None,
    contexts: int,
    wants_logprobs: Mapping[str, int | None],
    policy: Choice[CachePolicy[Any]],
    retention: Retention | None,
    can_evict: bool,
    limits: SearchLimits,
) -> SearchTask:
    """The request as its controller will see it.

    `contexts`: how many each sequence runs in. `wants_logprobs`: the request's fields for logprobs.

    Raises:
        RequestError: names the field that controllers, or this controller, cannot work with.
    """
    method = controller.method
    name = f"decoding.{method.name}"
    for field, value in wants_logprobs.items():
        if value is not None:
            raise RequestError(
                f"{field} is not available with {name}, whose answer many sequences take part in; "
                "leave it out",
                param=field,
                code="unsupported_parameter",
            )
    if params.max_tokens == 0:
        raise RequestError(
            f"max_tokens is 0, but {name} generates; send at least 1",
            param="max_tokens",
            code="invalid_parameter",
        )
    if params.bad_words and method.composes(controller.parameters):
        raise RequestError(
            f"bad_words cannot be kept out of what {name} puts together here from several answers "
            "of the model; leave them out, or let it sample the answer itself",
            param="bad_words",
            code="unsupported_combination",
        )
    if retention is not None:
        _check_eviction(method, f"kv_cache.{policy.method.name}", can_evict=can_evict)
    wanted = method.budget(controller.parameters)
    _check_budget(wanted, limits.budget, f"{name}.budget")
    allowed = filled(wanted, limits.budget)
    method.check(controller.parameters, params.n, limits)
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
        conversation=conversation,
        max_tokens=params.max_tokens,
        sequences=allowed.sequences,
    )


def said_last(conversation: Conversation) -> str | None:
    """Text of a chat's last user message; None: there is none, or it is not only text."""
    for message in reversed(conversation.messages):
        if message.get("role") == "user":
            return content_text(message.get("content"))
    return None


def _check_eviction(method: Controller[Any], param: str, *, can_evict: bool) -> None:
    if not method.evicts:
        raise RequestError(
            f"{param} cannot be combined with decoding.{method.name}, which continues sequences "
            "token by token and would read them again each time; leave one of them out",
            param=param,
            code="unsupported_combination",
        )
    if not can_evict:
        raise RequestError(
            f"{param}: the layers of this model have different numbers of KV heads, of which it "
            "cannot evict alike; leave it out",
            param=param,
            code="unsupported_parameter",
        )


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
