"""Builds an engine from settings: sizes, page pool, model runner, input processor."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..decoding.base import DecodingMethod
from ..decoding.drafting.base import Vocabulary
from ..decoding.methods import Methods
from ..decoding.prefill import Prefill
from ..decoding.search.base import SearchLimits
from ..errors import ConfigurationError, RequestError
from ..kernels.backend import BackendChoice, Kernels, choose, load
from ..kvcache.base import CachePolicy
from ..kvcache.store import KVStore
from ..registry import Choice, Registry
from .adapters.settings import AdapterSettings
from .adapters.step import StepAdapters
from .adapters.store import AdapterStore, start_key
from .config import EngineConfig
from .core.engine import Engine
from .loading.adapter_folder import read_adapter
from .loading.loader import LoadedModel, ModelInfo, load_model
from .loading.stages import stage
from .model.adapting import take_adapters
from .model.cache_dtype import cache_dtype
from .model.cuda_graphs import decode_graphs
from .model.fused.compiled import CompiledDecoder
from .model.memory import free_bytes, give_back, pool_pages
from .model.numerics import AS_THEY_ARE, deterministic
from .model.picture_encoder import PictureEncoder
from .model.profile import CudaMeter, longest_prompt, step_bytes
from .model.recurrent import recurrent_runner
from .model.runner import ModelRunner
from .model.threads import multiplies_little, torch_gets_one
from .model.warmup import warm_up
from .pictures.processor import PictureProcessor
from .requests.grammar_vocabulary import grammars_of
from .requests.infill import infilling_of
from .requests.input_processor import InputProcessor
from .requests.limits import Limits
from .requests.picture_prompt import PicturePrompts
from .requests.settings import SparsePrefillSettings
from .requests.tokenizer import Tokenizer
from .requests.traits import ModelTraits
from .search.evaluators import registered

logger = logging.getLogger(__name__)

_BATCH_TOKENS_CPU = 256
_BATCH_TOKENS_GPU = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An engine, its input processor and the loaded model."""

    engine: Engine
    input_processor: InputProcessor
    info: ModelInfo
    loaded: LoadedModel


@stage("the engine cannot be set up")
def build_engine(config: EngineConfig, clock: Callable[[], float]) -> Built:
    """Load the model and size the engine for the machine.

    Raises:
        ConfigurationError: settings and model do not fit together.
    """
    loaded = load_model(config)
    step_adapters, adapters = _adapters(config, loaded)
    give_back()
    dtype = cache_dtype(config.kv_cache_dtype, loaded.dtype, loaded.device)
    backend = _backend(config, loaded)
    numerics = AS_THEY_ARE
    if config.deterministic and loaded.stateful is not None:
        raise ConfigurationError(
            "--deterministic is not to be had with this model: states of its layers are torch's "
            "sums, which add up in another order where there are more rows; leave it out"
        )
    if config.deterministic:
        model, numerics = deterministic(loaded.model, backend, loaded.weights)
        loaded = replace(loaded, model=model)
    batch_tokens = config.batch_tokens(
        default=_BATCH_TOKENS_CPU if loaded.device.type == "cpu" else _BATCH_TOKENS_GPU
    )
    kernels = load(backend, splits_keys=not config.deterministic)
    taken = _step_bytes(loaded, kernels, dtype, config.page_size, batch_tokens)
    recurrent, max_running = recurrent_runner(
        config, loaded.stateful, loaded.device, max_running=config.max_running, step_bytes=taken
    )
    pages = pool_pages(
        config,
        loaded.layers,
        dtype=dtype,
        device=loaded.device,
        max_running=max_running,
        max_length_tokens=loaded.info.max_length_tokens,
        step_bytes=taken,
        state_bytes=0 if recurrent is None else recurrent.pool.store.bytes,
    )
    info = _fit_context(config, loaded.info, pages)
    store = KVStore(
        loaded.layers,
        pages=pages,
        page_size=config.page_size,
        dtype=dtype,
        device=loaded.device,
    )
    _leave_threads(config, loaded, kernels)
    engine = Engine(
        runner=ModelRunner(
            loaded.model,
            store,
            loaded.device,
            kernels,
            adapters=step_adapters,
            recurrent=recurrent,
            pictures=_encoder(config, loaded),
        ),
        store=store,
        prefix_cache=config.prefix_cache,
        max_running=max_running,
        max_batch_tokens=batch_tokens,
        chunk_tokens=config.chunk_tokens or batch_tokens,
        vocabulary=Vocabulary(
            size=info.vocab_size, pad_id=_pad_id(loaded.tokenizer, info.vocab_size)
        ),
        clock=clock,
        pieces=loaded.tokenizer.pieces(info.vocab_size),
        numerics=numerics,
        # A state has read one text, so all of a draft's tokens have to be in line.
        draft_trees=not config.deterministic and recurrent is None,
        adapters=adapters,
    )
    input_processor = make_input_processor(
        config,
        pages=pages,
        max_running=max_running,
        tokenizer=loaded.tokenizer,
        info=info,
        eos_token_ids=loaded.eos_token_ids,
        sampling_defaults=loaded.sampling_defaults,
        picture_processor=None if loaded.pictures is None else loaded.pictures.processor,
    )
    logger.info("attention backend: %s (%s)", backend.backend, backend.reason)
    warm_up(
        loaded.model,
        store,
        kernels,
        loaded.device,
        clock,
        evicts=info.can_evict,
        sparse=info.sparse_unsupported_reason is None,
    )
    if config.cuda_graphs and recurrent is None:
        engine.runner.graphs = decode_graphs(
            loaded.model, store, kernels, loaded.device, rows=batch_tokens
        )
    _log_capacity(info, engine, store, tokens=pages * config.page_size)
    return Built(engine=engine, input_processor=input_processor, info=info, loaded=loaded)


def _backend(config: EngineConfig, loaded: LoadedModel) -> BackendChoice:
    return choose(
        config.attention_backend,
        device=loaded.device,
        dtype=loaded.dtype,
        head_size=max(max(layer.key_size, layer.value_size) for layer in loaded.layers),
    )


def _leave_threads(config: EngineConfig, loaded: LoadedModel, kernels: Kernels) -> None:
    """Leave torch one thread, where compiled code has threads of its own and torch little to do."""
    if kernels.backend != "native":
        return
    compiled = isinstance(loaded.model, CompiledDecoder) or (
        loaded.pictures is None and multiplies_little(loaded.model)
    )
    # torch splits the sum over a single long row among threads, but not over several rows.
    if config.deterministic or (compiled and torch_gets_one(loaded.info.vocab_size)):
        torch.set_num_threads(1)


def _log_capacity(info: ModelInfo, engine: Engine, store: KVStore, *, tokens: int) -> None:
    logger.info(
        "%s (%s, %.1fM parameters), %s on %s; KV cache in %s: %d tokens, %d bytes each, %d MiB; "
        "%.1f requests of the full context of %d tokens fit at once",
        info.id,
        info.architecture,
        info.parameters / 1e6,
        info.dtype,
        info.device,
        str(store.dtype).removeprefix("torch."),
        tokens,
        engine.bytes_per_token,
        store.bytes >> 20,
        tokens / info.max_length_tokens,
        info.max_length_tokens,
    )
    if engine.states is not None:
        states = engine.states.store
        logger.info(
            "states beside keys and values: %d bytes a sequence, %d slots, %d MiB; %d sequences "
            "run at once, the other slots are for snapshots of prompts",
            states.slot_bytes,
            states.slots,
            states.bytes >> 20,
            engine.states.running,
        )


def make_input_processor(
    config: EngineConfig,
    *,
    pages: int,
    max_running: int,
    tokenizer: Tokenizer,
    info: ModelInfo,
    eos_token_ids: frozenset[int],
    sampling_defaults: dict[str, Any],
    picture_processor: PictureProcessor | None,
) -> InputProcessor:
    """The input processor for an engine with these limits.

    `picture_processor`: None if `info` says why the model takes no pictures.
    """
    decoding = Registry[DecodingMethod[Any]].from_entry_points("decoding", "penstock.decoding")
    return InputProcessor(
        model=ModelTraits(
            tokenizer=tokenizer,
            vocab_size=info.vocab_size,
            eos_token_ids=eos_token_ids,
            defaults=sampling_defaults,
            can_evict=info.can_evict,
            has_states=info.has_states,
            sparse_unsupported_reason=info.sparse_unsupported_reason,
            infilling=infilling_of(tokenizer),
            picture_token=info.picture_token,
            pictures_see_ahead=info.pictures_see_ahead,
        ),
        limits=Limits(
            max_length_tokens=info.max_length_tokens,
            context_tokens=info.context_tokens,
            max_sequences=max_running,
            pages=pages,
            page_size=config.page_size,
        ),
        decoding=decoding,
        kv_cache=Registry[CachePolicy[Any]].from_entry_points("kv_cache", "penstock.kv_cache"),
        search_limits=SearchLimits(
            budget=config.search_budget(max_running),
            evaluators=frozenset(registered()),
        ),
        default_prefill=_prefill(config, decoding, info),
        grammars=grammars_of(tokenizer, info.vocab_size),
        pictures=PicturePrompts(
            processor=picture_processor or info.pictures_unsupported_reason or "",
            placeholder=_text_of(tokenizer, info.picture_token),
            max_length_tokens=info.max_length_tokens,
            settings=config,
        ),
    )


def _text_of(tokenizer: Tokenizer, token: int | None) -> str:
    return "" if token is None else tokenizer.added_text(token) or ""


def _encoder(config: EngineConfig, loaded: LoadedModel) -> PictureEncoder | None:
    """What makes embeddings of pictures; None: the model takes none."""
    part = loaded.pictures
    if part is None:
        return None
    return PictureEncoder(
        tower=part.tower,
        form=part.form,
        alone=part.alone,
        cache_bytes=config.picture_cache_bytes,
    )


def _prefill(
    settings: SparsePrefillSettings, decoding: Registry[DecodingMethod[Any]], info: ModelInfo
) -> Choice[Prefill[Any]] | None:
    """The prefill method for requests that do not name one; None: dense prefill.

    Raises:
        ConfigurationError: the model or another setting does not allow it.
    """
    if settings.sparse_prefill == "off":
        return None
    if info.sparse_unsupported_reason is not None:
        raise ConfigurationError(
            f"--sparse-prefill {settings.sparse_prefill} cannot serve this model: "
            f"{info.sparse_unsupported_reason}; leave it out"
        )
    wanted = {
        "method": settings.sparse_prefill,
        "min_tokens": settings.sparse_prefill_min_tokens,
        "recent": settings.sparse_prefill_recent,
        "keep": settings.sparse_prefill_keep,
        "buckets": settings.sparse_prefill_buckets,
    }
    try:
        return Methods.of(decoding.resolve({"sparse_prefill": wanted})).prefill
    except RequestError as error:
        raise ConfigurationError(f"--sparse-prefill: {error}") from error


def _adapters(
    config: AdapterSettings, loaded: LoadedModel
) -> tuple[StepAdapters | None, AdapterStore | None]:
    """What the model's layers read in each step, and the adapters, those of the start loaded.

    Raises:
        ConfigurationError: an adapter cannot be read, or is not for this model.
    """
    if not config.takes_adapters:
        return None, None
    if loaded.stateful is not None:
        raise ConfigurationError(
            "this model takes no adapters: its layers keep states beside keys and values; leave "
            "--adapters and --adapter-folder out"
        )
    step, prepare = take_adapters(loaded.model, loaded.device, loaded.dtype)
    store = AdapterStore(
        lambda folder: prepare(read_adapter(folder, max_rank=config.max_adapter_rank))
    )
    for name, folder in config.adapter_folders.items():
        store.load(start_key(name), folder)
        logger.info("adapter %s: loaded from %s", name, folder)
    return step, store


def _pad_id(tokenizer: Tokenizer, vocab_size: int) -> int:
    """The padding token, where the model has an embedding for it; else token 0."""
    pad_id = tokenizer.hf.pad_token_id
    return pad_id if isinstance(pad_id, int) and 0 <= pad_id < vocab_size else 0


def _fit_context(config: EngineConfig, info: ModelInfo, pages: int) -> ModelInfo:
    """Cut the context to the KV cache: one that does not fit whole could never finish."""
    tokens = pages * config.page_size
    if tokens >= info.max_length_tokens:
        return info
    if config.max_model_len is not None:
        raise ConfigurationError(
            f"--max-model-len is {config.max_model_len} tokens but the KV cache holds only "
            f"{tokens}; lower it or raise --kv-cache-memory"
        )
    logger.warning(
        "the KV cache holds %d tokens, less than the model's context of %d: requests that keep "
        "every key are limited to %d tokens (raise --kv-cache-memory for more)",
        tokens,
        info.max_length_tokens,
        tokens,
    )
    return replace(info, max_length_tokens=tokens)


def _step_bytes(
    loaded: LoadedModel, kernels: Kernels, dtype: torch.dtype, page_size: int, batch_tokens: int
) -> int:
    """Memory of the largest step, measured on CUDA; 0 on a CPU, where it is not measured."""
    if loaded.device.type != "cuda":
        return 0
    rows = min(batch_tokens, loaded.info.context_tokens)
    meter = CudaMeter(loaded.device)
    attention = None
    if loaded.info.sparse_unsupported_reason is None:
        per_token = sum(layer.bytes_per_token(dtype) for layer in loaded.layers)
        room = free_bytes(loaded.device) // per_token  # a prompt must fit in the pages
        attention = longest_prompt(
            loaded.layers,
            kernels,
            loaded.device,
            rows=rows,
            keys=max(rows, min(loaded.info.max_length_tokens, room)),
            page_size=page_size,
            dtype=dtype,
        )
    # Prompt logprobs may need the logits of every row.
    return step_bytes(
        loaded.model, loaded.device, meter, rows=rows, wanted=rows, attention=attention
    )
