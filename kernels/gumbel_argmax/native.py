"""`gumbel_argmax` compiled for CPUs (native.h), with the reference's signatures."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..native.library import Library, address


def launchers(library: Library) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """`argmax` and `gumbel_argmax` of this build, with as many threads as torch has now."""
    run: Any = library.call.gumbel_argmax
    threads = torch.get_num_threads()

    def call(logits: Tensor, *of_rows: Tensor | None) -> Tensor:
        rows, size = logits.shape
        out = torch.empty(rows, dtype=torch.int64)
        logits = logits.contiguous()
        where = [address(each) for each in of_rows]
        run(logits.data_ptr(), rows, size, *where, out.data_ptr(), threads)
        return out

    def argmax(logits_RV: Tensor) -> Tensor:
        return call(logits_RV, None, None, None)

    def gumbel_argmax(
        logits_RV: Tensor, temperature_R1: Tensor, keys_R2: Tensor, greedy_R: Tensor
    ) -> Tensor:
        return call(
            logits_RV, temperature_R1.contiguous(), keys_R2.contiguous(), greedy_R.contiguous()
        )

    return argmax, gumbel_argmax
