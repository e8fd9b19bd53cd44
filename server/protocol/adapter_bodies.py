"""The bodies of /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them."""

from pydantic import BaseModel

from .fields import STRICT, Name


class LoadAdapterBody(BaseModel):
    """Load an adapter. `load_inplace`: in place of one of the same name."""

    model_config = STRICT

    lora_name: Name
    lora_path: str
    load_inplace: bool = False


class UnloadAdapterBody(BaseModel):
    """Serve an adapter no more."""

    model_config = STRICT

    lora_name: Name
