"""Turns a caller's input into a `Request` that the engine can run, or refuses it clearly.

Shared by the HTTP server and `LLM`: whatever depends on the model (context length, vocabulary,
generation_config) is checked here; what does not is checked by `SamplingFields`.
"""

from dataclasses import dataclass, replace
from typing import Any

from ...decoding.base import DecodingMethod
from ...decoding.constraint.grammar import Grammar, GrammarError, Grammars
from ...decoding.constraint.thinking import Thinking
from ...decoding.methods import Methods
from ...decoding.prefill import Prefill
from ...decoding.search.base import SearchLimits
from ...kvcache.base import CachePolicy
from ...registry import Choice, Registry
from ..state.request import Request, SearchTask
from .compatibility import Combination, broken_rule, check
from .encoded_prompt import encode_prompt
from .grammar import grammar_of, refused
from .input import Input
from .kv_cache import split_kv_cache
from .limits import Demand, Limits
from .picture_prompt import NO_PICTURES, PicturePrompts, check_pictures
from .prompt_encoder import PromptEncoder
from .sampling import sampling_of, stop_token_ids
from .search import problem_of, search_task
from .target_prompt import TargetPrompt
from .tokenizer import Tokenizer
from .traits import ModelTraits


@dataclass(frozen=True, slots=True, kw_only=True)
class InputProcessor:
    """Checks and completes requests for one model.

    `decoding`, `kv_cache`: the methods that requests may name. `search_limits`: what one search may
    use, and the known evaluators. `grammars`: compiles what answers have to be. `default_prefill`:
    for requests that name no prefill method. `pictures`: puts pictures into prompts.
    """

    model: ModelTraits
    limits: Limits
    decoding: Registry[DecodingMethod[Any]]
    kv_cache: Registry[CachePolicy[Any]]
    search_limits: SearchLimits
    grammars: Grammars
    default_prefill: Choice[Prefill[Any]] | None = None
    pictures: PicturePrompts = NO_PICTURES

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.model.tokenizer

    @property
    def encoder(self) -> PromptEncoder:
        """What turns prompts into tokens."""
        return PromptEncoder(model=self.model, max_length_tokens=self.limits.max_length_tokens)

    def prepare(self, given: Input) -> Request:
        """Resolve methods, tokenise, check limits and combinations, and build the request.

        Raises:
            RequestError: a field asks for something that this model or server cannot do.
        """
        self.limits.check_sequences(given.params.n)
        given = given.with_length_resolved()
        methods = Methods.of(self.decoding.resolve(given.decoding))
        policy_spec, drops_thinking = split_kv_cache(given.kv_cache)
        (policy,) = self.kv_cache.resolve(policy_spec or "full")
        prompt = encode_prompt(given, self.encoder)
        if given.pictures:
            check_pictures(given, prompt.ids, self.model)
        contexts = None if given.params.max_tokens == 0 else self.contexts(methods, prompt.ids)
        demand = self._demand(given, methods, policy, (prompt.ids, *(contexts or ())))
        combination = self._combination(given, methods, policy, demand, drops_thinking)
        methods = _with_prefill(combination, self.default_prefill)
        params = given.params
        max_tokens = self.limits.max_tokens(demand, params, given.default_max_tokens)
        check(replace(combination, will_evict=demand.evicts(max_tokens)), "policy")
        self.limits.check_pages(demand, max_tokens)
        check(combination, "controller")
        search = self._search(given, methods, prompt.ids, demand)
        stop_ids = stop_token_ids(params, self.model) | prompt.ends
        sampling = sampling_of(params, stop_ids, self.model)
        check(combination, "target")
        grammar = grammar_of(params, self.grammars, given.frame)
        thinking = self._thinking(given.thinking, grammar)
        return Request(
            id=given.request_id,
            prompt_ids=prompt.ids,
            before=prompt.before,
            sampling=sampling,
            max_tokens=max_tokens,
            n=params.n,
            stop_strings=params.stop_strings,
            stop_token_ids=stop_ids,
            text=replace(params.text_options, shown_tokens=given.shown_tokens),
            logprobs=given.logprobs,
            prompt_logprobs=given.prompt_logprobs,
            priority=given.priority,
            cache_salt=given.cache_salt,
            adapter=given.adapter,
            methods=methods,
            policy=policy,
            contexts=contexts or (),
            combines=contexts is not None,
            grammar=grammar,
            thinking=thinking,
            dropped_thinking=given.thinking if drops_thinking else None,
            pictures=given.pictures,
            search=search,
        )

    def room(self, part: Request, ids: tuple[int, ...]) -> int:
        """Tokens that a search's subrequest can generate after `ids`; may be below 1."""
        prompts = tuple(map(len, (ids, *part.contexts)))
        return self.limits.room(
            Demand(prompts=prompts, n=part.n, retention=replace(part, prompt_ids=ids).retention)
        )

    def contexts(
        self, methods: Methods, ids: tuple[int, ...]
    ) -> tuple[tuple[int, ...], ...] | None:
        """Prompts of the target's further contexts; None: no target, or one without effect."""
        target = methods.target
        if target is None:
            return None
        return target.method.contexts(target.parameters, TargetPrompt(ids, self.encoder))

    def _demand(
        self,
        given: Input,
        methods: Methods,
        policy: Choice[CachePolicy[Any]],
        prompts: tuple[tuple[int, ...], ...],
    ) -> Demand:
        lengths = tuple(map(len, prompts))
        target, field = "", None
        if methods.target is not None:
            target = f"{self.decoding.field}.{methods.target.method.name}"
            field = methods.target.method.prompt_field(methods.target.parameters)
        return Demand(
            prompts=lengths,
            n=given.params.n,
            # Shares count from the longest prompt: all contexts will hold the same answer.
            retention=policy.method.retention(policy.parameters, max(lengths)),
            prompt_param=given.prompt_param,
            target=target,
            target_param=target if field is None else f"{target}.{field}",
            policy_param=f"{self.kv_cache.field}.{policy.method.name}",
        )

    def _combination(
        self,
        given: Input,
        methods: Methods,
        policy: Choice[CachePolicy[Any]],
        demand: Demand,
        drops_thinking: bool,
    ) -> Combination:
        retention = demand.retention
        return Combination(
            methods=methods,
            policy=policy.method,
            evicts=retention is not None,
            observes=policy.method.observe(policy.parameters) is not None,
            contexts=demand.contexts,
            prompts=given.prompts,
            max_tokens=given.params.max_tokens,
            logprobs=given.logprobs,
            prompt_logprobs=given.prompt_logprobs,
            bad_words=bool(given.params.bad_words),
            form=given.form_field,
            drops_thinking=drops_thinking,
            marks_thinking=given.thinking is not None or given.thought_closed,
            can_evict=self.model.can_evict,
            has_states=self.model.has_states,
            sees_ahead=bool(given.pictures) and self.model.pictures_see_ahead,
            sparse_unsupported_reason=self.model.sparse_unsupported_reason,
        )

    def _thinking(self, thinking: Thinking | None, grammar: Grammar | None) -> Thinking | None:
        """What the engine has to know of thoughts; None: nothing, they are as any text."""
        if thinking is None or (thinking.budget is None and grammar is None):
            return None
        try:
            return self.grammars.completed(thinking)
        except GrammarError as error:
            raise refused("thinking.budget", str(error)) from None

    def _search(
        self, given: Input, methods: Methods, ids: tuple[int, ...], demand: Demand
    ) -> SearchTask | None:
        if methods.controller is None:
            return None
        return search_task(
            methods.controller,
            given,
            problem=problem_of(given, ids, self.tokenizer),
            contexts=demand.contexts,
            limits=self.search_limits,
            grammars=self.grammars,
        )


def _with_prefill(combination: Combination, default: Choice[Prefill[Any]] | None) -> Methods:
    """The methods, with the default in the `prefill` slot where the request names none.

    A default that cannot be combined with the rest is dropped, and so is a method that changes
    nothing.

    Raises:
        RequestError: the request's own choice cannot be served.
    """
    methods = combination.methods
    prefill = methods.prefill or default
    if prefill is None or prefill.method.first(prefill.parameters) is None:
        return replace(methods, prefill=None)
    with_prefill = replace(combination, methods=replace(methods, prefill=prefill))
    if methods.prefill is not None:
        check(with_prefill, "prefill")
    return methods if broken_rule(with_prefill, "prefill") else with_prefill.methods
