"""Completes sampling parameters for a model: its defaults, stop tokens, seed and logit rules."""

import secrets
from typing import Final

from ...decoding.compiled_rules import standing, words_of
from ...decoding.rules import Rules
from ...decoding.sampling import Sampling
from ...decoding.sampling_params import SamplingFields
from ...errors import RequestError
from .traits import ModelTraits

_REPLACEMENT: Final = "\ufffd".encode()


def stop_token_ids(params: SamplingFields, model: ModelTraits) -> frozenset[int]:
    """Tokens that end the answer: the caller's, and the model's own unless it ignores them."""
    given = frozenset(params.stop_token_ids or ())
    return given if params.ignore_eos else given | model.eos_token_ids


def sampling_of(params: SamplingFields, stop_ids: frozenset[int], model: ModelTraits) -> Sampling:
    """The resolved parameters. `stop_ids`: all tokens that end the answer.

    Raises:
        RequestError: a token is outside the vocabulary, or the rules allow none.
    """
    seed = params.seed if params.seed is not None else secrets.randbits(63)
    top_p = _pick(params, "top_p", 1.0, model)
    alone = top_p == 0  # greedy: only the likeliest token is left
    rules = _rules(params, stop_ids, model)
    if rules is not None and params.max_tokens != 0:
        _check_leave_something(rules, model)
    return Sampling(
        temperature=0.0 if alone else _pick(params, "temperature", 1.0, model),
        top_k=max(0, int(_pick(params, "top_k", 0, model))),
        top_p=1.0 if alone else top_p,
        min_p=_pick(params, "min_p", 0.0, model),
        rules=rules,
        seed=seed,
    )


def _pick(params: SamplingFields, name: str, neutral: float, model: ModelTraits) -> float:
    """A parameter as the caller gave it, or the model's default, or the neutral value."""
    value = getattr(params, name)
    return float(model.defaults.get(name, neutral) if value is None else value)


def _rules(params: SamplingFields, stop_ids: frozenset[int], model: ModelTraits) -> Rules | None:
    """The logit rules; None where all are neutral, so that steps can skip them."""
    model.check_vocabulary("allowed_token_ids", params.allowed_token_ids)
    model.check_vocabulary("stop_token_ids", params.stop_token_ids)
    allowed = params.allowed_token_ids
    rules = Rules(
        allowed_token_ids=None if allowed is None else tuple(sorted(set(allowed))),
        bad_words=_bad_words(params),
        shows_special=bool(params.bad_words) and not params.skip_special_tokens,
        logit_bias=_logit_bias(params, model),
        min_tokens=params.min_tokens,
        suppressed_until_min=tuple(sorted(stop_ids)) if params.min_tokens else (),
        repetition_penalty=_pick(params, "repetition_penalty", 1.0, model),
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
    )
    return None if rules == Rules() else rules


def _check_leave_something(rules: Rules, model: ModelTraits) -> None:
    """Raise RequestError where the rules allow no token, whatever the text."""
    pieces = model.tokenizer.pieces(model.vocab_size) if rules.bad_words else None
    words = None if pieces is None else words_of(rules, pieces)
    left = standing(rules, words, model.vocab_size) == 0
    if not left.any():
        count = len(rules.allowed_token_ids or ()) or model.vocab_size
        raise RequestError(
            f"bad_words occur in each of the {count} tokens that are allowed, so that no token "
            "is left; allow more tokens or forbid fewer words",
            param="bad_words",
            code="no_allowed_token",
        )
    left[list(rules.suppressed_until_min)] = False
    if not left.any():
        raise RequestError(
            f"min_tokens is {rules.min_tokens}, but every token that is allowed would end the "
            "answer; allow others or leave min_tokens out",
            param="min_tokens",
            code="no_allowed_token",
        )


def _logit_bias(params: SamplingFields, model: ModelTraits) -> tuple[tuple[int, float], ...]:
    pairs: list[tuple[int, float]] = []
    for key, value in (params.logit_bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise RequestError(
                f"logit_bias: {key[:32]!r} is not a token id",
                param="logit_bias",
                code="invalid_token",
            )
        pairs.append((int(key), float(value)))
    model.check_vocabulary("logit_bias", [token for token, _ in pairs])
    return tuple(pairs)


def _bad_words(params: SamplingFields) -> tuple[bytes, ...]:
    """The words as UTF-8, each once."""
    found: set[bytes] = set()
    for index, word in enumerate(params.bad_words or ()):
        try:
            word_bytes = word.encode()
        except UnicodeEncodeError:
            word_bytes = _REPLACEMENT
        if _REPLACEMENT in word_bytes:
            raise RequestError(
                f"bad_words[{index}] has U+FFFD or half of a surrogate pair, which stand for bytes "
                "that are no character; leave it out",
                param="bad_words",
                code="invalid_parameter",
            )
        found.add(word_bytes)
    return tuple(sorted(found))
