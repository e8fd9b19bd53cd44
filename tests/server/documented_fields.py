"""Names of the fields that other servers document for completions and chats, as of a version.

Facts, not code: each list names the page or the file that it was read from. OpenAI's are read from
the installed SDK's types by the test itself.
"""

LLAMA_CPP = """
prompt temperature dynatemp_range dynatemp_exponent top_k top_p min_p n_predict n_indent n_keep
n_cmpl n_cache_reuse stream stop typical_p repeat_penalty repeat_last_n presence_penalty
frequency_penalty dry_multiplier dry_base dry_allowed_length dry_penalty_last_n
dry_sequence_breakers xtc_probability xtc_threshold mirostat mirostat_tau mirostat_eta grammar
json_schema seed ignore_eos logit_bias n_probs min_keep t_max_predict_ms id_slot cache_prompt
return_tokens samplers timings_per_token return_progress sse_ping_interval post_sampling_probs
response_fields lora messages chat_template_kwargs reasoning_effort reasoning_format
reasoning_control parallel_tool_calls response_format tools tool_choice max_tokens n_discard
top_n_sigma adaptive_target adaptive_decay speculative.n_max speculative.n_min speculative.p_min
"""
"""ggml-org/llama.cpp, tools/server/README.md, commit 00dc8057ab28."""

VLLM = """
messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens
n presence_penalty response_format seed stop stream stream_options temperature top_p tools
tool_choice reasoning_effort thinking_token_budget include_reasoning parallel_tool_calls user
use_beam_search top_k min_p repetition_penalty watermarking length_penalty stop_token_ids
include_stop_str_in_output ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens
truncate_prompt_tokens truncation_side prompt_logprobs logprob_token_ids allowed_token_ids bad_words
echo add_generation_prompt continue_final_message add_special_tokens documents chat_template
chat_template_kwargs media_io_kwargs mm_processor_kwargs structured_outputs priority request_id
session_id return_tokens_as_token_ids return_token_ids routed_experts_prompt_start
return_token_offsets return_prompt_text return_mm_kwargs cache_salt kv_transfer_params
ec_transfer_params vllm_xargs repetition_detection stream_interval prompt suffix prompt_embeds
guided_json guided_regex guided_choice guided_grammar logits_processors best_of
"""
"""vllm-project/vllm, vllm/entrypoints/openai/{chat_completion,completion}/protocol.py, commit
002032ee2b18; the last line: of earlier versions, which clients still send."""

SGLANG = """
model prompt best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed
stop stream stream_options suffix temperature top_p user return_hidden_states return_routed_experts
routed_experts_start_len return_cached_tokens_details return_token_ids top_k min_p min_tokens
json_schema regex ebnf repetition_penalty stop_token_ids stop_regex no_stop_trim ignore_eos
skip_special_tokens lora_path session_id session_params response_format custom_params
custom_logit_processor images_config bootstrap_host bootstrap_port bootstrap_room routed_dp_rank
disagg_prefill_dp_rank data_parallel_rank rid extra_key cache_salt ngram_corpus_id priority
custom_labels messages top_logprobs max_completion_tokens tools tool_choice parallel_tool_calls
return_prompt_token_ids return_meta_info reasoning_effort task continue_final_message
separate_reasoning stream_reasoning chat_template_kwargs max_dynamic_patch min_dynamic_patch
use_audio_in_video input_ids reasoning
"""
"""sgl-project/sglang, python/sglang/srt/entrypoints/openai/protocol.py, commit 004c82e07d87."""

OLLAMA = """
model messages prompt suffix system template context stream raw format keep_alive images options
think truncate shift _debug_render_only logprobs top_logprobs tools stream_options max_tokens seed
stop temperature frequency_penalty presence_penalty top_p response_format reasoning reasoning_effort
tool_choice logit_bias user n best_of echo num_keep num_predict top_k min_p typical_p repeat_last_n
repeat_penalty penalize_newline draft_num_predict numa num_ctx num_batch num_gpu main_gpu use_mmap
num_thread mirostat mirostat_tau mirostat_eta tfs_z
"""
"""ollama/ollama, docs/api.md, docs/modelfile.mdx, docs/api/openai-compatibility.mdx, api/types.go
and openai/openai.go, commit fb3076099687; the last four: of earlier versions."""

TGI = """
frequency_penalty logit_bias logprobs max_tokens messages model n presence_penalty response_format
seed stop stream stream_options temperature tool_choice tool_prompt tools top_logprobs top_p prompt
repetition_penalty suffix adapter_id best_of decoder_input_details details do_sample grammar
max_new_tokens return_full_text top_k top_n_tokens truncate typical_p watermark
"""
"""huggingface/text-generation-inference, docs/openapi.json (3.3.6-dev0), commit db931fcf42da:
ChatRequest, CompletionRequest and GenerateParameters."""

DOCUMENTED: dict[str, frozenset[str]] = {
    server: frozenset(names.split())
    for server, names in {
        "vllm": VLLM,
        "sglang": SGLANG,
        "llama.cpp": LLAMA_CPP,
        "ollama": OLLAMA,
        "tgi": TGI,
    }.items()
}
