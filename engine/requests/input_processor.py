"""Turns a caller's input into a `Request` that the engine can run, or refuses it clearly.

Shared by the HTTP server and `LLM`: whatever depends on the model (context length, vocabulary,
generation_config) is checked here; what does not is checked by `SamplingParams`.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ...decoding.base import DecodingMethod
from ...decoding.compiled_rules import standing, words_of
from ...decoding.methods import Methods
from ...decoding.prefill import Prefill
from ...decoding.rules import Rules
from ...decoding.sampling import Sampling
from ...decoding.sampling_params import ALL_THAT_IS_LEFT, SamplingParams
from ...decoding.search.base import SearchLimits
from ...decoding.target import Target
from ...errors import ContextLengthError, RequestError
from ...kvcache.base import CachePolicy, Retention
from ...registry import Choice, Registry, Spec
from ..state.request import Conversation, Request
from .chat.template import RenderedChat
from .infill import Infilling, encode_behind, infill_prompt
from .prefill import settled
from .prompt import Prompt, TargetPrompt
from .search import said_last, search_task
from .tokenizer import Tokenizer
from .truncation import Truncation

_REPLACEMENT: Final = "\ufffd".encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class InputProcessor:
    """Checks and completes requests for one model.

    `max_length_tokens`: prompt plus answer, where every key is kept. `context_tokens`: the model's
    own limit, which applies to requests that evict. `max_sequences`: of one request: its choices
    times their contexts. `pages`, `page_size`: of the KV cache. `can_evict`: whether the model's
    layers allow eviction. `search_limits`: what one search may use, and the known evaluators.
    `defaults`: sampling fields of the model's generation_config. `sparse_unsupported_reason`: why
    sparse prefill cannot serve this model; None: it can. `infilling`: the model's convention for
    filling in the middle; None: it has none. `default_prefill`: that of requests that do not
    name one."""

    tokenizer: Tokenizer
    max_length_tokens: int
    context_tokens: int
    max_sequences: int
    pages: int
    page_size: int
    can_evict: bool
    vocab_size: int
    eos_token_ids: frozenset[int]
    defaults: dict[str, Any]
    decoding: Registry[DecodingMethod[Any]]
    kv_cache: Registry[CachePolicy[Any]]
    search_limits: SearchLimits
    sparse_unsupported_reason: str | None = None
    infilling: Infilling | None = None
    default_prefill: Choice[Prefill[Any]] | None = None

    def encode(
        self,
        prompt: Prompt,
        *,
        param: str,
        add_special_tokens: bool | None = None,
        behind: bool = False,
    ) -> tuple[int, ...]:
        """Token ids of a prompt; a text too long to fit is refused before it is tokenised.

        `add_special_tokens`: those that begin a prompt; None: for texts but not for chats, whose
        template writes them. `behind`: the text follows another one.
        """
        if isinstance(prompt, str | RenderedChat):
            text = prompt if isinstance(prompt, str) else prompt.text
            limit = self.max_length_tokens * self.tokenizer.longest_token_chars
            if len(text) > limit:
                raise ContextLengthError(
                    f"{param} has {len(text)} characters, which cannot fit however they are "
                    "tokenised; shorten it",
                    limit_tokens=self.max_length_tokens,
                    param=param,
                )
            try:
                ids = self._tokens(prompt, add_special_tokens, behind=behind)
            except RequestError as error:
                raise RequestError(error.message, param=param, code=error.code) from error
        else:
            ids = prompt
        # A tokenizer may know more tokens than the model has embeddings for.
        self._check_vocabulary(param, ids)
        if not ids:
            raise RequestError(
                f"{param} is empty; give at least one token", param=param, code="empty_prompt"
            )
        return tuple(ids)

    def _tokens(
        self, prompt: str | RenderedChat, add_special_tokens: bool | None, *, behind: bool
    ) -> Sequence[int]:
        if isinstance(prompt, str):
            if behind:
                return encode_behind(self.tokenizer, prompt)
            wanted = add_special_tokens is not False
            return self.tokenizer.encode(prompt, add_special_tokens=wanted)
        return self.tokenizer.encode_chat(prompt, add_special_tokens=add_special_tokens is True)

    def prepare(
        self,
        *,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        default_max_tokens: int | None = None,
        add_special_tokens: bool | None = None,
        prompt_param: str = "prompt",
        suffix: str | None = None,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        truncation: Truncation | None = None,
        priority: int = 0,
        cache_salt: str = "",
        decoding: Spec = None,
        kv_cache: Spec = None,
        conversation: Conversation | None = None,
    ) -> Request:
        """Tokenise, check and complete one request.

        `conversation`: the chat that the prompt was rendered from, if any. `suffix`: the text after
        the answer, which then fills in the middle; empty: none.

        `default_max_tokens`: used when `params.max_tokens` is None; None means all that is left.

        Raises:
            RequestError: a field asks for something that this model or server cannot do.
        """
        self._check_sequences(params.n)
        if params.max_tokens == ALL_THAT_IS_LEFT:
            params = params.model_copy(update={"max_tokens": None})
            default_max_tokens = None
        methods = Methods.of(self.decoding.resolve(decoding))
        (policy,) = self.kv_cache.resolve(kv_cache or "full")
        if truncation is not None:
            longest = self.max_length_tokens * self.tokenizer.longest_token_chars
            prompt = truncation.of_text(prompt, longest)
        room = self.max_length_tokens - max(1, params.max_tokens or 1)
        infill = None
        if suffix:
            infill = infill_prompt(
                self.infilling,
                self.tokenizer,
                self.encode,
                prompt,
                suffix,
                keep=None if truncation is None else truncation.keep(room),
                side="left" if truncation is None else truncation.side,
                begins=add_special_tokens is not False,
            )
            ids = infill.ids
        else:
            ids = self.encode(prompt, param=prompt_param, add_special_tokens=add_special_tokens)
            if truncation is not None:
                ids = truncation.of_ids(ids, room)
        contexts = None if params.max_tokens == 0 else self.contexts(methods, ids)
        prompts = (ids, *(contexts or ()))
        # Fractions count from the longest prompt, for all contexts: they will hold the same answer.
        retention = policy.method.retention(policy.parameters, max(map(len, prompts)))
        methods = settled(
            methods,
            self.default_prefill,
            unsupported_reason=self.sparse_unsupported_reason,
            policy=policy,
            retention=retention,
        )
        # With eviction, memory does not grow: positions are the limit, not pages.
        limit = self.max_length_tokens if retention is None else self.context_tokens
        target = ""
        if contexts:
            assert methods.target is not None
            target = self._prompt_param(methods.target)
            name = methods.target.method.name
            self._check_sequences(params.n, 1 + len(contexts), f"{self.decoding.field}.{name}")
            room = self._room(prompts, limit, target, shares_pool=retention is None)
            default_max_tokens = min(default_max_tokens or room, room)
        max_tokens = self._max_tokens(params, len(ids), default_max_tokens, limit, prompt_param)
        if contexts:
            self._check_contexts(prompts, max_tokens, limit, target)
        if retention is None:
            self._check_pages(prompts, max_tokens)
        else:
            param = f"{self.kv_cache.field}.{policy.method.name}"
            self._check_retention(retention, prompts, max_tokens, params.n, param)
        search = None
        if methods.controller is not None:
            said = said_last(conversation) if conversation is not None else prompt
            if truncation is not None and conversation is None:
                said = None
            search = search_task(
                methods.controller,
                params=params,
                problem=said if isinstance(said, str) else self.tokenizer.decode(ids),
                conversation=conversation,
                contexts=len(prompts),
                wants_logprobs={"logprobs": logprobs, "prompt_logprobs": prompt_logprobs},
                policy=policy,
                retention=retention,
                can_evict=self.can_evict,
                limits=self.search_limits,
            )
        stop_ids = frozenset(params.stop_token_ids or ())
        if not params.ignore_eos:
            stop_ids |= self.eos_token_ids
            if infill is not None and self.infilling is not None:
                stop_ids |= self.infilling.ends
        return Request(
            id=request_id,
            prompt_ids=ids,
            before=None if infill is None else (infill.begin, infill.end),
            sampling=self._sampling(params, stop_ids),
            max_tokens=max_tokens,
            n=params.n,
            stop_strings=params.stop_strings,
            stop_token_ids=stop_ids,
            text=params.text_options,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            priority=priority,
            cache_salt=cache_salt,
            methods=methods,
            policy=policy,
            contexts=contexts or (),
            combines=contexts is not None,
            search=search,
        )

    def room(self, part: Request, ids: tuple[int, ...]) -> int:
        """Tokens that a search's subrequest can generate after `ids`; may be below 1."""
        prompts = (ids, *part.contexts)
        longest = max(map(len, prompts))
        policy = part.policy
        retention = policy.method.retention(policy.parameters, longest)
        try:
            if retention is not None:
                room = self.context_tokens - longest
                self._check_retention(retention, prompts, room, part.n, "")
                return room
            if part.contexts:
                return self._room(prompts, self.max_length_tokens, "", shares_pool=True)
        except ContextLengthError:
            return 0
        return self.max_length_tokens - longest

    def contexts(
        self, methods: Methods, ids: tuple[int, ...]
    ) -> tuple[tuple[int, ...], ...] | None:
        """Prompts of the target's further contexts; None: no target, or one without effect."""
        target = methods.target
        if target is None:
            return None
        prompt = TargetPrompt(ids, self.tokenizer, self.encode)
        return target.method.contexts(target.parameters, prompt)

    def _prompt_param(self, target: Choice[Target[Any]]) -> str:
        """The field that a target's further prompts come from."""
        field = target.method.prompt_field(target.parameters)
        name = f"{self.decoding.field}.{target.method.name}"
        return name if field is None else f"{name}.{field}"

    def _check_retention(
        self,
        retention: Retention,
        prompts: Sequence[tuple[int, ...]],
        max_tokens: int,
        n: int,
        param: str,
    ) -> None:
        """At the first eviction the keys kept take new pages before the old ones are freed."""
        needed = 0
        for ids in prompts:
            whole = len(ids) + max_tokens
            if retention.evicts(len(ids), max_tokens):
                if not self.can_evict:
                    raise RequestError(
                        f"{param}: the layers of this model have different numbers of KV heads, of "
                        "which it cannot evict alike; leave it out",
                        param=param,
                        code="unsupported_parameter",
                    )
                whole = max(len(ids), retention.keep + 1)
                # If the prompt alone is too long, all choices evict in the step that forks them.
                at_once = n if len(ids) > retention.keep else 1
                needed += at_once * -(-retention.slots // self.page_size)
            needed += -(-whole // self.page_size)
        if needed > self.pages:
            raise ContextLengthError(
                f"{param}: the prompt and what is kept of it need {needed * self.page_size} tokens "
                f"of KV cache, but this server has {self.pages * self.page_size}; keep less, lower "
                "n or max_tokens, or shorten the prompt",
                limit_tokens=self.context_tokens,
                param=param,
            )

    def _check_sequences(self, n: int, contexts: int = 1, target: str = "") -> None:
        if contexts > self.max_sequences:
            raise RequestError(
                f"{target} takes {contexts} sequences, but this server runs at most "
                f"{self.max_sequences} at once (--max-running)",
                param=target,
                code="invalid_parameter",
            )
        if n * contexts > self.max_sequences:
            each = f", each in {contexts} contexts," if contexts > 1 else ""
            raise RequestError(
                f"n is {n}{each} but this server runs at most {self.max_sequences} sequences at "
                f"once; lower n or send several requests",
                param="n",
                code="invalid_parameter",
            )

    def _room(
        self, prompts: Sequence[tuple[int, ...]], limit: int, target: str, *, shares_pool: bool
    ) -> int:
        """Tokens of the longest answer that fits in all contexts."""
        longest = max(map(len, prompts[1:]))
        room = limit - longest
        if room < 1:
            raise ContextLengthError(
                f"{target}: its further prompt has {longest} tokens and leaves no room for an "
                "answer; shorten it",
                limit_tokens=limit,
                param=target,
            )
        room = min(room, max(1, limit - len(prompts[0])))
        if shares_pool:
            # Each context may leave its last page partly empty.
            spare = self.pages - sum(-(-len(ids) // self.page_size) for ids in prompts)
            room = min(room, max(1, spare // len(prompts) * self.page_size))
        return room

    def _check_contexts(
        self, prompts: Sequence[tuple[int, ...]], max_tokens: int, limit: int, target: str
    ) -> None:
        longest = max(map(len, prompts[1:]))
        if longest + max_tokens > limit:
            raise ContextLengthError(
                f"{target}: with its further prompt you requested {longest + max_tokens} tokens "
                f"({longest} in that prompt, {max_tokens} in the completion); lower max_tokens to "
                f"{limit - longest} or shorten that prompt",
                limit_tokens=limit,
                param=target,
            )

    def _check_pages(self, prompts: Sequence[tuple[int, ...]], max_tokens: int) -> None:
        """All contexts of a choice run together, so all of them must fit at once."""
        needed = sum(-(-(len(ids) + max_tokens) // self.page_size) for ids in prompts)
        if needed > self.pages:
            raise ContextLengthError(
                f"the {len(prompts)} contexts need {needed * self.page_size} tokens of KV cache "
                f"with max_tokens {max_tokens}, but this server has {self.pages * self.page_size}; "
                "lower max_tokens or shorten the prompts",
                limit_tokens=self.max_length_tokens,
                param="max_tokens",
            )

    def _max_tokens(
        self,
        params: SamplingParams,
        prompt_tokens: int,
        default: int | None,
        limit: int,
        param: str,
    ) -> int:
        room = limit - prompt_tokens
        asked = params.max_tokens
        if room < (0 if asked == 0 else 1):
            raise ContextLengthError(
                f"However, your {param} resulted in {prompt_tokens} tokens, which leaves no room "
                "for an answer; shorten it",
                limit_tokens=limit,
                param=param,
            )
        if asked is not None and asked > room:
            raise ContextLengthError(
                f"However, you requested {prompt_tokens + asked} tokens ({prompt_tokens} in the "
                f"{param}, {asked} in the completion); lower max_tokens to {room} or shorten the "
                f"{param}",
                limit_tokens=limit,
                param="max_tokens",
            )
        if asked is None:
            asked = room if default is None else min(default, room)
        if params.min_tokens > asked:
            raise RequestError(
                f"min_tokens is {params.min_tokens} but at most {asked} tokens will be generated",
                param="min_tokens",
                code="invalid_parameter",
            )
        return asked

    def _sampling(self, params: SamplingParams, stop_ids: frozenset[int]) -> Sampling:
        def pick(name: str, neutral: float) -> Any:
            value = getattr(params, name)
            return self.defaults.get(name, neutral) if value is None else value

        seed = params.seed if params.seed is not None else secrets.randbits(63)
        top_p = float(pick("top_p", 1.0))
        alone = top_p == 0  # greedy: only the likeliest token is left
        return Sampling(
            temperature=0.0 if alone else float(pick("temperature", 1.0)),
            top_k=max(0, int(pick("top_k", 0))),
            top_p=1.0 if alone else top_p,
            min_p=float(pick("min_p", 0.0)),
            rules=self._rules(params, stop_ids, float(pick("repetition_penalty", 1.0))),
            seed=seed,
        )

    def _rules(
        self, params: SamplingParams, stop_ids: frozenset[int], repetition_penalty: float
    ) -> Rules | None:
        """The logit rules; None where all are neutral, so that steps can skip them.

        Raises:
            RequestError: they allow no token, whatever the text.
        """
        self._check_vocabulary("allowed_token_ids", params.allowed_token_ids)
        self._check_vocabulary("stop_token_ids", params.stop_token_ids)
        allowed = params.allowed_token_ids
        rules = Rules(
            allowed_token_ids=None if allowed is None else tuple(sorted(set(allowed))),
            bad_words=_bad_words(params),
            shows_special=bool(params.bad_words) and not params.skip_special_tokens,
            logit_bias=self._logit_bias(params),
            min_tokens=params.min_tokens,
            suppressed_until_min=tuple(sorted(stop_ids)) if params.min_tokens else (),
            repetition_penalty=repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
        )
        if rules == Rules():
            return None
        if params.max_tokens != 0:
            self._check_leave_something(rules)
        return rules

    def _check_leave_something(self, rules: Rules) -> None:
        words = words_of(rules, self.tokenizer.pieces(self.vocab_size)) if rules.bad_words else None
        left = standing(rules, words, self.vocab_size) == 0
        if not left.any():
            count = len(rules.allowed_token_ids or ()) or self.vocab_size
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

    def _check_vocabulary(self, param: str, ids: Sequence[int] | None) -> None:
        if ids and not (min(ids) >= 0 and max(ids) < self.vocab_size):
            bad = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise RequestError(
                f"{param}: token id {bad} is outside the vocabulary (0 to {self.vocab_size - 1})",
                param=param,
                code="invalid_token",
            )

    def _logit_bias(self, params: SamplingParams) -> tuple[tuple[int, float], ...]:
        pairs: list[tuple[int, float]] = []
        for key, value in (params.logit_bias or {}).items():
            if not (key.isascii() and key.isdigit() and len(key) <= 10):
                raise RequestError(
                    f"logit_bias: {key[:32]!r} is not a token id",
                    param="logit_bias",
                    code="invalid_token",
                )
            pairs.append((int(key), float(value)))
        self._check_vocabulary("logit_bias", [token for token, _ in pairs])
        return tuple(pairs)


def _bad_words(params: SamplingParams) -> tuple[bytes, ...]:
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
