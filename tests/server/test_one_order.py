"""`--deterministic` over HTTP: company and cached prefixes change no bit of a logprob.

Kind: promises that only short prompts kept. The prompt is longer than what Triton's kernels compute
in one split, and computed both as a chunk and as a window. Chunk sizes: tests/engine/
test_deterministic.py, test_bits.py; kernels on 2,000 keys: tests/kernels/test_one_order.py.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.process import ServeProcess
from tests.tiny import save_tiny

pytest.importorskip("triton")

PROMPT = [5 + 7 * i % 280 for i in range(290)]
"""More than the 256 keys of a split; interpreted, a token takes some 10 ms."""
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
BODY: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 2,
    "temperature": 0,
    "logprobs": 5,
    "ignore_eos": True,
}


@pytest.mark.slow
def test_long_prompts(tmp_path: Path) -> None:
    arguments = [
        *(str(save_tiny("llama", tmp_path, **SMALL)), "--served-model-name", "tiny"),
        *("--deterministic", "--attention-backend", "triton", "--dtype", "float32"),
        *("--max-batch-tokens", "300", "--kv-cache-memory", "2000000", "--threads", "1"),
    ]
    environment = {"TRITON_INTERPRET": "1"}
    with (
        ServeProcess(arguments, tmp_path / "log", environment=environment) as server,
        server.client(timeout_s=200.0) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        expected = logprobs(client, PROMPT)
        # Then all but the last rows are cached: what is left is no chunk, but a window.
        again = pool.submit(logprobs, client, PROMPT)
        neighbour = pool.submit(logprobs, client, PROMPT[9:50])
        assert again.result() == expected
        neighbour.result()
        server.wait_idle()


def logprobs(client: httpx.Client, prompt: list[int]) -> Any:
    response = client.post("/v1/completions", json={**BODY, "prompt": prompt})
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["logprobs"]
