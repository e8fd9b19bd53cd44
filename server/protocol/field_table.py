"""What every field means that a client may send to /v1/completions or /v1/chat/completions.

The fields are those that OpenAI, vLLM, SGLang, llama.cpp's server, Ollama and TGI document. Each is
one of six kinds, by one question: would the server that documents it answer differently?

done        it would, and so does this one
alias       the same as a field that is done, value for value, under another name
part        the same as one part of a field that is done
refused     it would, and this one cannot: 400, unless the value asks for nothing
no effect   it would not (billing, storing, caching, scheduling): accepted
hint        a word for the model: given to a chat template that reads it, else named as ignored

A name that is not here is documented by none of them: ignored, and named in a header.
docs/api.md is made of this table.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

ANYTHING: Final = (...,)
"""As `neutral`: whatever the value, it asks for nothing."""

Kind = Literal["done", "alias", "part", "refused", "no effect", "hint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldMeaning:
    """One field.

    `meaning`: what it does here; of what is refused, what to do instead, if there is something.
    `neutral`: values that ask for nothing: of what is refused, and of what an endpoint does not
    have. `same_as`: of an alias, the field that it stands for; of a part, `field.part`.
    """

    name: str
    kind: Kind
    meaning: str = ""
    neutral: tuple[object, ...] = ()
    same_as: str | None = None


_ABSENT: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "top_logprobs": (0,),
    "add_generation_prompt": (False,),
    "continue_final_message": (False,),
    "chat_template_kwargs": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "include_reasoning": (True, False),
    "separate_reasoning": (True, False),
    "thinking": ({},),
}
"""Values of fields that one endpoint has, which ask for nothing of the other."""


def _done(**meanings: str) -> list[FieldMeaning]:
    return [
        FieldMeaning(name=n, kind="done", meaning=m, neutral=_ABSENT.get(n, ()))
        for n, m in meanings.items()
    ]


def _aliases(of: str, *names: str) -> list[FieldMeaning]:
    return [
        FieldMeaning(name=n, kind="alias", meaning=f"another name of `{of}`", same_as=of)
        for n in names
    ]


def _parts(same: str, *names: str, neutral: object = "") -> list[FieldMeaning]:
    meaning = f"another name of `{same}`"
    return [
        FieldMeaning(name=n, kind="part", meaning=meaning, neutral=(neutral,), same_as=same)
        for n in names
    ]


def _refused(name: str, *neutral: object, instead: str = "") -> FieldMeaning:
    return FieldMeaning(name=name, kind="refused", meaning=instead, neutral=neutral)


def _beside(switch: str, *names: str) -> list[FieldMeaning]:
    """Details of a field that is refused itself: alone they ask for nothing."""
    meaning = f"counts only beside `{switch}`"
    return [FieldMeaning(name=n, kind="refused", meaning=meaning, neutral=ANYTHING) for n in names]


def _no_effect(why: str, *names: str) -> list[FieldMeaning]:
    return [FieldMeaning(name=n, kind="no effect", meaning=why) for n in names]


def _hint(name: str, meaning: str) -> FieldMeaning:
    return FieldMeaning(name=name, kind="hint", meaning=meaning)


_DONE = _done(
    model="which of `GET /v1/models`; may be left out or empty",
    prompt="a text, a list of texts, token ids, or a list of lists of them",
    suffix="the text behind the answer, for models with control tokens for filling in the middle: "
    "others refuse it",
    messages="the chat",
    max_tokens="length of the answer at most; -1, and the default of chats: all that the context "
    "leaves (completions: 16, as OpenAI); 0: nothing but the prompt's logprobs",
    min_tokens="no stop token and no stop string before so many tokens",
    n="choices for each prompt",
    best_of="as OpenAI: so many answers are generated, and the `n` with the best mean logprob are "
    "returned; equal to `n` it changes nothing, above it stands for `decoding.best_of`",
    temperature="0 always takes the likeliest token; default: generation_config of the model, or 1",
    top_p="the likeliest tokens with so much probability together; 0: the likeliest alone",
    top_k="the likeliest so many; 0 and -1: all",
    min_p="tokens at least so probable, compared with the likeliest",
    repetition_penalty="of tokens in prompt and answer; 1: none",
    presence_penalty="of tokens in the answer; 0: none",
    frequency_penalty="of tokens in the answer, each time; 0: none",
    logit_bias="token id -> value added to its logit",
    seed="same seed, prompt and fields give the same answer; -1: none",
    stop="a string, or a list of them, that ends the answer; empty strings count as absent",
    stop_token_ids="tokens that end the answer, beside the model's own",
    ignore_eos="the model's own end tokens do not end the answer",
    bad_words="texts that must not occur",
    allowed_token_ids="only these tokens",
    skip_special_tokens="false: special tokens are part of the text",
    spaces_between_special_tokens="false: none between special tokens that are shown",
    include_stop_str_in_output="true: the stop string, or the text of the stop token, is part of "
    "the answer",
    stream="events as the text comes",
    stream_options="`include_usage`: a last chunk with token counts; `continuous_usage_stats`: "
    "beside it, counts in every chunk; `include_obfuscation`: no effect",
    echo="completions: the prompt before the answer; chats: the last message before the answer, "
    "where it is the assistant's",
    logprobs="completions: so many alternatives beside each token; chats: whether logprobs come",
    top_logprobs="so many alternatives beside each token; needs `logprobs`",
    prompt_logprobs="the same for the prompt's tokens; not in streams",
    return_tokens_as_token_ids="logprobs spell tokens `token_id:N`",
    return_token_ids="ids of the prompt and of the answer, `prompt_token_ids` and `token_ids`",
    truncate_prompt_tokens="so many tokens of the prompt at most; -1: what fits into the context "
    "beside the answer",
    truncation_side="which end of it goes: `left` (default) or `right`",
    add_special_tokens="those that the tokenizer adds to texts; in chats the template has written "
    "them already (default false)",
    add_generation_prompt="whether the prompt ends with the beginning of an answer",
    continue_final_message="the answer continues the last message",
    chat_template_kwargs="further words for the template, of those that the operator allows",
    priority="lower runs earlier",
    cache_salt="prefixes are shared only between requests of equal salt",
    response_format="what the answer has to be: `text`, `json_object`, `json_schema` or "
    "`structural_tag` ([docs/decoding/structured.md](decoding/structured.md))",
    tools="functions that the model may call ([docs/tools.md](tools.md))",
    tool_choice="`auto`, `none`, `required`, the tool to call, or `allowed_tools`",
    parallel_tool_calls="false: at most one call in an answer",
    thinking="`budget`: tokens that a thought may have, which is then closed; `type`: `enabled` or "
    "`disabled`, as `think`",
    include_reasoning="false: thoughts are left out of the answer",
    separate_reasoning="false: thoughts are part of `content`, as the model writes them",
    structured_outputs="the same, and `regex`, `choice` or `grammar`",
    decoding="methods by name ([docs/decoding](decoding/README.md))",
    kv_cache="a policy by name, and `drop_thinking` ([docs/kv-cache](kv-cache/README.md))",
)

_ALIASES = [
    *_aliases("max_tokens", "max_completion_tokens", "n_predict", "num_predict", "max_new_tokens"),
    *_aliases("n", "n_cmpl"),
    *_aliases("include_stop_str_in_output", "no_stop_trim"),
]

_HINTS = [
    _hint("reasoning_effort", "template variable `reasoning_effort`; and `enable_thinking` and "
          "`thinking`: false for `none`, true for all others"),
    _hint("reasoning", "an object: its `effort` as `reasoning_effort`"),
    _hint("think", "true or false: `enable_thinking` and `thinking`; else as `reasoning_effort`"),
    _hint("verbosity", "template variable `verbosity`"),
]  # fmt: skip

_NO_EFFECT = [
    *_no_effect("names who asks", "user", "safety_identifier", "custom_labels", "extra_key"),
    *_no_effect("names the request", "request_id", "rid", "session_id"),
    *_no_effect("nothing is stored", "store", "metadata"),
    *_no_effect("nothing is billed", "service_tier"),
    *_no_effect("prefixes are cached anyway", "prompt_cache_key", "prompt_cache_retention",
                "prompt_cache_options", "cache_prompt", "n_cache_reuse", "id_slot", "slot_id"),
    *_no_effect("drafting never changes the text", "prediction", "ngram_corpus_id",
                "draft_num_predict", "speculative.n_max", "speculative.n_min", "speculative.p_min"),
    *_no_effect("a matter of how the server runs", "keep_alive", "num_batch", "num_gpu", "main_gpu",
                "num_thread", "use_mmap", "numa", "bootstrap_host", "bootstrap_port",
                "bootstrap_room", "routed_dp_rank", "disagg_prefill_dp_rank", "data_parallel_rank"),
    *_no_effect("a matter of how a stream is cut", "stream_interval", "sse_ping_interval"),
    *_no_effect("of endpoints that only render", "return_token_offsets", "return_mm_kwargs"),
    *_no_effect("a context is never shifted", "n_keep", "num_keep", "n_discard"),
]  # fmt: skip

_TOOLS = [
    _refused("functions", [], instead="`tools` takes functions"),
    _refused("function_call", "none", "auto", instead="`tool_choice` says it"),
    _refused("tool_prompt", "", instead="the model's own template describes tools"),
    _refused("web_search_options"),
]

_STRUCTURE = [
    *_parts("structured_outputs.json", "json_schema", "guided_json", "format"),
    *_parts("structured_outputs.regex", "regex", "guided_regex"),
    *_parts("structured_outputs.choice", "guided_choice"),
    *_parts("structured_outputs.grammar", "grammar", "ebnf", "guided_grammar"),
    *_parts("thinking.budget", "thinking_token_budget", "thinking_budget", neutral=-1),
]

_SAMPLING = [
    _refused("mirostat", 0),
    *_beside("mirostat", "mirostat_tau", "mirostat_eta"),
    _refused("repeat_penalty", 1, instead="it looks back `repeat_last_n` tokens; "
             "`repetition_penalty` is over all of them"),
    *_beside("repeat_penalty", "repeat_last_n", "penalize_newline"),
    _refused("typical_p", 1),
    _refused("tfs_z", 1),
    _refused("top_n_sigma", -1),
    _refused("dynatemp_range", 0),
    *_beside("dynatemp_range", "dynatemp_exponent"),
    _refused("dry_multiplier", 0),
    *_beside("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n",
             "dry_sequence_breakers"),
    _refused("xtc_probability", 0),
    *_beside("xtc_probability", "xtc_threshold"),
    _refused("adaptive_target", -1),
    *_beside("adaptive_target", "adaptive_decay"),
    _refused("min_keep", 0),
    _refused("samplers", []),
    _refused("do_sample", instead="`temperature` 0 takes the likeliest token"),
    _refused("use_beam_search", False, instead="`decoding.beam` is beam search"),
    *_beside("use_beam_search", "length_penalty", "early_stopping"),
    _refused("watermark", False),
    _refused("watermarking", False),
    _refused("logits_processors", []),
    _refused("custom_logit_processor", ""),
    *_beside("custom_logit_processor", "custom_params"),
    _refused("vllm_xargs", {}),
    _refused("repetition_detection"),
]  # fmt: skip

_ENDS = [
    _refused("stop_regex", "", [], instead="`stop` takes texts"),
    _refused("n_indent", 0),
    _refused("t_max_predict_ms", 0, instead="`max_tokens` bounds an answer"),
    _refused("shift", False),
]

_PROMPT = [
    _refused("system", "", instead="a message of the role system says it"),
    _refused("context", [], instead="send the whole prompt"),
    _refused("raw", True),
    _refused("truncate", False, instead="`truncate_prompt_tokens` does it"),
    _refused("num_ctx", instead="the operator sets the context (`--max-model-len`)"),
    _refused("options", {}, instead="send its fields beside `messages` or `prompt`"),
    _refused("prompt_embeds"),
    _refused("input_ids", instead="`prompt` of /v1/completions takes token ids"),
    _refused("documents", []),
    _refused("task"),
    _refused("chat_template", instead="the model's own is used"),
    _refused("template", "", instead="the model's own is used"),
    _refused("session_params", {}),
    _refused("kv_transfer_params", {}),
    _refused("ec_transfer_params", {}),
]

_OTHER_MODELS = [
    _refused("lora", []),
    _refused("lora_path", ""),
    _refused("adapter_id", ""),
    _refused("modalities", ["text"]),
    _refused("audio"),
    _refused("images", []),
    _refused("image_data", []),
    *_beside("images", "images_config", "max_dynamic_patch", "min_dynamic_patch",
             "use_audio_in_video", "media_io_kwargs", "mm_processor_kwargs"),
    _refused("moderation"),
]  # fmt: skip

_ANSWER = [
    _refused("n_probs", 0, instead="`logprobs` reports probabilities"),
    _refused("top_n_tokens", 0, instead="`logprobs` reports probabilities"),
    _refused("post_sampling_probs", False),
    _refused("logprob_token_ids"),
    _refused("decoder_input_details", False, instead="`prompt_logprobs` reports them"),
    _refused("details", False),
    _refused("return_full_text", False, instead="`echo` of /v1/completions does it"),
    _refused("return_tokens", False, instead="`return_token_ids` does it"),
    _refused("return_prompt_token_ids", False, instead="`return_token_ids` does it"),
    _refused("return_prompt_text", False, instead="`return_token_ids` and /detokenize show it"),
    _refused("return_hidden_states", False),
    _refused("return_routed_experts", False),
    *_beside("return_routed_experts", "routed_experts_start_len", "routed_experts_prompt_start"),
    _refused("return_cached_tokens_details", False, instead="`usage` counts cached tokens"),
    _refused("return_meta_info", False),
    _refused("return_progress", False),
    _refused("timings_per_token", False),
    _refused("response_fields", []),
    _refused("_debug_render_only", False, instead="/tokenize shows what a prompt becomes"),
    _refused(
        "reasoning_format", "auto", "deepseek", instead="`separate_reasoning` false: one text"
    ),
    _refused("stream_reasoning", True),
    _refused("reasoning_control", False),
]


def _by_name(fields: Iterable[FieldMeaning]) -> dict[str, FieldMeaning]:
    return {field.name: field for field in fields}


FIELDS = _by_name(
    [
        *_DONE,
        *_ALIASES,
        *_HINTS,
        *_NO_EFFECT,
        *_TOOLS,
        *_STRUCTURE,
        *_SAMPLING,
        *_ENDS,
        *_PROMPT,
        *_OTHER_MODELS,
        *_ANSWER,
    ]
)
"""All of them by name."""
