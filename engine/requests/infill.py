"""Fill in the middle (FIM): models trained to write the text between a prefix and a suffix.

Such a model has control tokens for where the prefix begins, where the suffix begins, and where it
writes the middle (Bavarian et al. 2022, arXiv:2207.14255). Its vocabulary tells which ones it has.
A vocabulary with these tokens does not prove that the model was trained on them: Qwen's models
that are not for code have them, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """The control tokens of a family of models. `ends`: tokens that end a middle, besides EOS.

    `middle`: None where the suffix comes first and the model then continues the prefix.
    """

    prefix: str
    suffix: str
    middle: str | None
    ends: tuple[str, ...] = ()


CONVENTIONS = (
    # Qwen2.5-Coder and Qwen3-Coder (github.com/QwenLM/Qwen3-Coder, examples/Qwen2.5-Coder-fim.py),
    # CodeGemma (ai.google.dev/gemma/docs/codegemma), Granite 4
    Convention(
        prefix="<|fim_prefix|>",
        suffix="<|fim_suffix|>",
        middle="<|fim_middle|>",
        ends=(
            "<|fim_prefix|>",
            "<|fim_suffix|>",
            "<|fim_middle|>",
            "<|fim_pad|>",
            "<|repo_name|>",
            "<|file_sep|>",
            "<|file_separator|>",
            "<|endoftext|>",
            "<|im_end|>",
        ),
    ),
    # StarCoder and StarCoder 2 (huggingface.co/bigcode/starcoder), StableCode, Granite Code
    Convention(
        prefix="<fim_prefix>",
        suffix="<fim_suffix>",
        middle="<fim_middle>",
        ends=("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>", "<file_sep>"),
    ),
    # SantaCoder (huggingface.co/bigcode/santacoder)
    Convention(
        prefix="<fim-prefix>",
        suffix="<fim-suffix>",
        middle="<fim-middle>",
        ends=("<fim-prefix>", "<fim-suffix>", "<fim-middle>", "<fim-pad>"),
    ),
    # Code Llama (github.com/meta-llama/codellama, llama/generation.py: infilling_prompt_tokens)
    Convention(prefix="▁<PRE>", suffix="▁<SUF>", middle="▁<MID>", ends=("▁<EOT>",)),
    # DeepSeek-Coder and -V2 (github.com/deepseek-ai/DeepSeek-Coder, "Code Insertion")
    Convention(
        prefix="<｜fim▁begin｜>",
        suffix="<｜fim▁hole｜>",
        middle="<｜fim▁end｜>",
        ends=("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ),
    # Codestral (github.com/mistralai/mistral-common, encode_fim)
    Convention(prefix="[PREFIX]", suffix="[SUFFIX]", middle=None, ends=("[PREFIX]", "[SUFFIX]")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillPrompt:
    """`ids`: of the whole prompt. `begin`, `end`: where the prefix lies in them."""

    ids: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Infilling:
    """The convention of one model, as token ids.

    `ends`: tokens that end a middle, besides the model's own end-of-sequence tokens.
    """

    prefix: int
    suffix: int
    middle: int | None
    ends: frozenset[int]

    @property
    def controls(self) -> int:
        """How many control tokens a prompt has."""
        return 2 if self.middle is None else 3

    def prompt(
        self,
        before: tuple[int, ...],
        behind: tuple[int, ...],
        *,
        opening: tuple[int, ...] = (),
        keep: int | None = None,
    ) -> InfillPrompt:
        """The prompt for prefix and suffix. `opening`: the tokens that begin every prompt.

        `keep`: at most this many tokens in all. What is nearest to the middle is kept; where both
        texts are long, the prefix gets three quarters.
        """
        if keep is not None:
            room = keep - self.controls - len(opening)
            kept = min(len(behind), max(room // 4, room - len(before)))
            behind = behind[:kept]
            before = before[len(before) - min(len(before), room - kept) :]
        if self.middle is None:
            ahead = (*opening, self.suffix, *behind, self.prefix)
            ids = (*ahead, *before)
        else:
            ahead = (*opening, self.prefix)
            ids = (*ahead, *before, self.suffix, *behind, self.middle)
        return InfillPrompt(ids=ids, begin=len(ahead), end=len(ahead) + len(before))


def infilling_of(tokenizer: Tokenizer) -> Infilling | None:
    """The first convention whose tokens are all in the vocabulary; None: the model has none."""
    vocabulary = tokenizer.hf.get_vocab()
    for convention in CONVENTIONS:
        names = (convention.prefix, convention.suffix, convention.middle)
        if all(name is None or name in vocabulary for name in names):
            return Infilling(
                prefix=vocabulary[convention.prefix],
                suffix=vocabulary[convention.suffix],
                middle=None if convention.middle is None else vocabulary[convention.middle],
                ends=frozenset(vocabulary[end] for end in convention.ends if end in vocabulary),
            )
    return None
