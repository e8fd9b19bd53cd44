"""What cannot be combined in one request: one table, for validation and for `GET /v1/decoding`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from ...decoding.base import DecodingMethod, Slot
from ...decoding.methods import Methods
from ...errors import RequestError
from ...kvcache.base import CachePolicy
from ...kvcache.full import FULL
from ...registry import Choice, NoParameters
from .kv_cache import DROP_THINKING

Refused = Slot | Literal["policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """Methods that meet in one request, and what else the rules look at.

    The defaults describe methods alone, without a request and a model.

    `evicts`: whether the policy evicts at all; `will_evict`: whether it does before this answer can
    end. `observes`: whether it observes the attention that keys receive. `contexts`: of each
    sequence. `prompts`: in the same body. `form`: the field that says what the answer has to be.
    `drops_thinking`: whether the keys of a thought go when it has ended; `marks_thinking`: whether
    it is known how thoughts are marked. `sees_ahead`: the prompt has pictures whose rows see each
    other. `can_evict`, `has_states`, `sparse_unsupported_reason`: of the model.
    """

    methods: Methods
    policy: CachePolicy[Any]
    evicts: bool
    observes: bool
    will_evict: bool = False
    contexts: int = 1
    prompts: int = 1
    max_tokens: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    bad_words: bool = False
    form: str | None = None
    drops_thinking: bool = False
    marks_thinking: bool = True
    can_evict: bool = True
    has_states: bool = False
    sees_ahead: bool = False
    sparse_unsupported_reason: str | None = None

    @classmethod
    def of(cls, methods: Iterable[DecodingMethod[Any]], policy: CachePolicy[Any]) -> "Combination":
        """Methods alone; they have no parameters, so rules ask for a field before those."""
        choices = (Choice(method=method, parameters=NoParameters()) for method in methods)
        return cls(
            methods=Methods.of(choices),
            policy=policy,
            evicts=policy.name != FULL.name,
            observes=policy.observes,
        )

    @property
    def words(self) -> dict[str, object]:
        """What the sentences of rules may name: fields of the request, `prompts` and `reason`."""
        return {
            **{each.method.slot: f"decoding.{each.method.name}" for each in self.methods.chosen},
            "policy": f"kv_cache.{self.policy.name}",
            "prompts": self.prompts,
            "form": self.form,
            "reason": self.sparse_unsupported_reason,
        }

    @property
    def searches(self) -> bool:
        """Whether a controller decides which sequences live."""
        return self.methods.controller is not None

    @property
    def composes(self) -> bool:
        """Whether a controller composes answers itself, so that token rules do not bind them."""
        controller = self.methods.controller
        return controller is not None and controller.method.composes(controller.parameters)

    @property
    def continues_evicted(self) -> bool:
        """Whether a controller would continue sequences in a way that eviction does not allow."""
        controller = self.methods.controller
        return controller is not None and not controller.method.evicts and self.evicts

    @property
    def continues_dropped(self) -> bool:
        """Whether a controller would continue sequences whose thoughts were dropped."""
        controller = self.methods.controller
        return controller is not None and not controller.method.evicts and self.drops_thinking


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing that cannot be combined with another.

    `refuses`: the method that is refused. `breaks`: whether a combination breaks the rule. `param`,
    `sentence`, `code`: of the error; words in braces are `Combination.words`.
    """

    refuses: Refused
    breaks: Callable[[Combination], bool]
    param: str
    sentence: str
    code: str


_CANNOT_EVICT: Final = (
    "{policy}: the layers of this model have different numbers of KV heads, of which it cannot "
    "evict alike; leave it out"
)
_NO_LOGPROBS: Final = (
    "{field} is not available with {{controller}}, whose answer many sequences take part in; leave "
    "it out"
)
RULES: Final[tuple[Rule, ...]] = (
    Rule(
        refuses="prefill",
        breaks=lambda c: c.methods.prefill is not None and c.sparse_unsupported_reason is not None,
        param="{prefill}",
        sentence="{prefill} cannot serve this model: {reason}; leave it out",
        code="unsupported_parameter",
    ),
    Rule(
        refuses="prefill",
        breaks=lambda c: c.methods.prefill is not None and c.sees_ahead,
        param="{prefill}",
        sentence="{prefill} cannot be combined with pictures in this model, whose rows of a "
        "picture all see each other; leave it out",
        code="unsupported_combination",
    ),
    Rule(
        refuses="prefill",
        breaks=lambda c: c.methods.prefill is not None and c.observes,
        param="{prefill}",
        sentence="{prefill} cannot be combined with {policy}, which counts the attention that each "
        "key receives, from every row; leave it out",
        code="unsupported_combination",
    ),
    Rule(
        refuses="policy",
        breaks=lambda c: c.will_evict and not c.can_evict,
        param="{policy}",
        sentence=_CANNOT_EVICT,
        code="unsupported_parameter",
    ),
    Rule(
        refuses="policy",
        breaks=lambda c: c.drops_thinking and not c.marks_thinking,
        param=DROP_THINKING,
        sentence=f"{DROP_THINKING} drops thoughts, and none are known here: it takes a chat, and a "
        "model that marks its thoughts with tokens of their own; leave it out",
        code="unsupported_parameter",
    ),
    Rule(
        refuses="policy",
        breaks=lambda c: c.drops_thinking and c.has_states,
        param=DROP_THINKING,
        sentence=f"{DROP_THINKING} cannot be had with this model: its layers keep states beside "
        "keys and values, which cannot forget what they have read; leave it out",
        code="unsupported_parameter",
    ),
    Rule(
        refuses="controller",
        breaks=lambda c: c.searches and c.logprobs is not None,
        param="logprobs",
        sentence=_NO_LOGPROBS.format(field="logprobs"),
        code="unsupported_parameter",
    ),
    Rule(
        refuses="controller",
        breaks=lambda c: c.searches and c.prompt_logprobs is not None,
        param="prompt_logprobs",
        sentence=_NO_LOGPROBS.format(field="prompt_logprobs"),
        code="unsupported_parameter",
    ),
    Rule(
        refuses="controller",
        breaks=lambda c: c.searches and c.max_tokens == 0,
        param="max_tokens",
        sentence="max_tokens is 0, but {controller} generates; send at least 1",
        code="invalid_parameter",
    ),
    Rule(
        refuses="controller",
        breaks=lambda c: c.bad_words and c.composes,
        param="bad_words",
        sentence="bad_words cannot be kept out of what {controller} puts together here from "
        "several answers of the model; leave them out, or let it sample the answer itself",
        code="unsupported_combination",
    ),
    Rule(
        refuses="controller",
        breaks=lambda c: c.form is not None and c.composes,
        param="{form}",
        sentence="{form} cannot hold what {controller} puts together here from several answers of "
        "the model; leave it out, or let it sample the answer itself",
        code="unsupported_combination",
    ),
    Rule(
        refuses="controller",
        breaks=lambda c: c.continues_evicted,
        param="{policy}",
        sentence="{policy} cannot be combined with {controller}, which continues sequences token "
        "by token and would read them again each time; leave one of them out",
        code="unsupported_combination",
    ),
    Rule(
        refuses="controller",
        breaks=lambda c: c.continues_dropped,
        param=DROP_THINKING,
        sentence=f"{DROP_THINKING} cannot be combined with {{controller}}, which continues "
        "sequences token by token and would read their thoughts again each time; leave one of them "
        "out",
        code="unsupported_combination",
    ),
    # Sequences of a search may become longer than the request says.
    Rule(
        refuses="controller",
        breaks=lambda c: c.searches and c.evicts and not c.can_evict,
        param="{policy}",
        sentence=_CANNOT_EVICT,
        code="unsupported_parameter",
    ),
    # A further context belongs to one prompt; which one of several it was written for is unknown.
    Rule(
        refuses="target",
        breaks=lambda c: c.contexts > 1 and c.prompts > 1,
        param="{target}",
        sentence="prompt has {prompts} prompts, and {target} takes one; send several requests",
        code="invalid_parameter",
    ),
)


def broken_rule(combination: Combination, refuses: Refused | None = None) -> Rule | None:
    """The first rule that is broken, of those that refuse `refuses` if it is named."""
    for rule in RULES:
        if refuses in (None, rule.refuses) and rule.breaks(combination):
            return rule
    return None


def check(combination: Combination, refuses: Refused) -> None:
    """Raise RequestError for the first rule that is broken, of those that refuse `refuses`."""
    rule = broken_rule(combination, refuses)
    if rule is not None:
        words = combination.words
        raise RequestError(
            rule.sentence.format(**words), param=rule.param.format(**words), code=rule.code
        )
