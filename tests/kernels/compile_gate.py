"""Compiles what the launchers launch, for Hopper, on a machine without a GPU; prints JSON.

Run as a program, without TRITON_INTERPRET: `python -m tests.kernels.compile_gate [NAME...]`.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGET = GPUTarget("cuda", 90, 32)
_DIVISIBLE = [["tt.divisibility", 16]]
_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """`registers` a thread; `local_bytes`: spilled; `shared_bytes` a program."""

    registers: int
    local_bytes: int
    shared_bytes: int
    cp_async: bool


class Recorder:
    """Stands in for a kernel: compiles for the arguments that it is launched with."""

    def __init__(self, kernel: Any, note: Callable[[Compiled], None]) -> None:
        self._kernel = kernel
        self._note = note

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._compile

    def _compile(self, *args: Any, num_warps: int, num_stages: int = 3, **constants: Any) -> None:
        signature: dict[str, str] = {}
        constexprs: dict[str, Any] = {}
        attrs: dict[tuple[int], Any] = {}
        named = dict(zip(self._kernel.arg_names, args, strict=False)) | constants
        for place, parameter in enumerate(self._kernel.params):
            name, value = parameter.name, named[parameter.name]
            free = parameter.do_not_specialize
            one = type(value) is int and value == 1 and not free
            if parameter.is_constexpr or value is None or one:
                signature[name], constexprs[name] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[name] = _POINTERS[value.dtype]
                attrs[place,] = _DIVISIBLE
            elif isinstance(value, float):
                signature[name] = "fp32"
            else:
                signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                if value % 16 == 0 and not free:
                    attrs[place,] = _DIVISIBLE
        source = ASTSource(self._kernel, signature, constexprs, attrs)
        options = {"num_warps": num_warps, "num_stages": num_stages}
        compiled = triton.compile(source, target=TARGET, options=options)
        self._note(_measured(compiled))


def _measured(compiled: Any) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage))
    return Compiled(
        registers=int(found["REG"]),
        local_bytes=int(found["LOCAL"]) + int(found["STACK"]),
        shared_bytes=compiled.metadata.shared,
        cp_async="cp.async" in compiled.asm["ptx"],
    )


def main(names: list[str]) -> None:
    """Compile the named cases, or all."""
    from tests.kernels.compile_cases import CASES

    found: dict[str, Any] = {}

    def stand(name: str, kernel: Any) -> Recorder:
        def note(compiled: Compiled) -> None:
            found[f"{name} {kernel.__name__}"] = asdict(compiled)

        return Recorder(kernel, note)

    for name in names or CASES:
        CASES[name](partial(stand, name))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
