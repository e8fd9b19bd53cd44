"""Settings of the model that is loaded."""

from typing import Annotated, Literal

from pydantic import Field

from penstock.settings import Settings

from ..weights.settings import AS_STORED, FormatName


class ModelSettings(Settings):
    """Model.

    `model`: folder of a transformers model, a GGUF file (of several parts the first), or either on
    the Hub: owner/name, owner/name:file.gguf; default: the embedded model.
    `served_model_name`: name of the model in requests; default: the name of its folder or file.
    `device`: device of the model; auto is cuda if there is one, else cpu.
    `dtype`: dtype of weights and KV cache; auto is bfloat16 on CUDA and float32 on a CPU.
    `quantization`: format of the weights of linear layers; none is the checkpoint's own, int8
    and int4 make them smaller, and installed packages may add others.
    `trust_remote_code`: run Python code from the model folder; only for models that you trust.
    `max_model_len`: longest prompt plus answer in tokens; default: the model's own context.
    `chat_control_tokens`: who may write control tokens in a chat: its template alone, so that the
    same characters in a message are plain text, or anyone.
    `pictures`: load the parts of a model that take pictures: auto does where the model and its
    processor can be served, on refuses to start otherwise, off saves their memory.
    `threads`: CPU threads of the model; default: OMP_NUM_THREADS, else chosen by the size of the
    model and the number of cores.
    """

    model: str | None = None
    served_model_name: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: FormatName = AS_STORED
    trust_remote_code: bool = False
    max_model_len: Annotated[int, Field(ge=16, le=2**24)] | None = None
    chat_control_tokens: Literal["template", "anyone"] = "template"
    pictures: Literal["auto", "on", "off"] = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
