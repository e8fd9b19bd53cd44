"""How text is split before byte pairs are merged, by `tokenizer.ggml.pre`.

The expressions are those of the models' own tokenizers, under the names that llama.cpp gives
them. A name that is not here is refused: with another model's expression most texts would still
become the right tokens, and numbers or spaces would not.
"""

from dataclasses import dataclass
from typing import Final

_CONTRACTIONS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD: Final = r"[^\r\n\p{L}\p{N}]?"

GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT: Final = r"\p{N}"
_LLAMA3: Final = (
    rf"{_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
)
_QWEN2: Final = rf"{_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_TEKKEN: Final = (
    rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
_GPT4O: Final = (
    rf"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
_DEEPSEEK3: Final = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_TAIL}"
)
_FALCON: Final = r"[\p{P}\$\+<=>\^~\|`]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """`expressions`: applied one after the other, to what the one before has left.

    `whole_words`: a word that is a token is that token, whatever merges would make of it.
    `begins`: prompts begin with the BOS token where the file does not say.
    """

    expressions: tuple[str, ...]
    whole_words: bool = False
    begins: bool = False


_LIKE_LLAMA3: Final = Split(expressions=(_LLAMA3,), whole_words=True, begins=True)
_LIKE_QWEN2: Final = Split(expressions=(_QWEN2,))
_LIKE_GPT4O: Final = Split(expressions=(_GPT4O,))
_DIGITS_APART: Final = Split(expressions=(_DIGIT, GPT2))
_LIKE_GPT2: Final = Split(expressions=(GPT2,))
_LIKE_DEEPSEEK3: Final = Split(expressions=(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3))

SPLITS: Final[dict[str, Split]] = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"), _LIKE_LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), Split(expressions=(_LLAMA3,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"), _LIKE_QWEN2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS_APART),
    **dict.fromkeys(("exaone", "minerva-7b"), _DIGITS_APART),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4"), _LIKE_GPT2),
    **dict.fromkeys(("gpt-4o", "llama4"), _LIKE_GPT4O),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), _LIKE_DEEPSEEK3),
    "tekken": Split(expressions=(_TEKKEN,), whole_words=True, begins=True),
    "falcon": Split(expressions=(_FALCON, GPT2, "[0-9][0-9][0-9]")),
    "default": Split(expressions=(_FALCON, GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
