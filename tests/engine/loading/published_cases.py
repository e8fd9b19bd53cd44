"""Checkpoints of every published format, by name."""

from dataclasses import replace

import torch

from tests.engine.loading.published_files import (
    Case,
    awq,
    bitsandbytes,
    compressed,
    fp8,
    gptq,
    packed_integers,
    plain_integers,
    write_eights,
    write_exponents,
    write_fours,
    write_rows,
)

CHANNEL = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
TENSOR = {**CHANNEL, "strategy": "tensor"}
BLOCKS = {**CHANNEL, "strategy": "block", "block_structure": [128, 128]}
FOURS = {"num_bits": 4, "type": "float", "symmetric": True, "group_size": 16}
WIDE = {"hidden_size": 256, "intermediate_size": 320, "head_dim": 64}

CASES: dict[str, Case] = {
    "gptq-4": gptq(4, 32),
    "gptq-4-symmetric": gptq(4, 32, symmetric=True),
    "gptq-4-v2": gptq(4, 32, second=True),
    "gptq-4-channel": gptq(4, -1),
    "gptq-4-bfloat16": gptq(4, 32, dtype=torch.bfloat16),
    "gptq-4-float32": gptq(4, 32, dtype=torch.float32),
    "gptq-4-ordered": gptq(4, 32, ordered=True),
    "gptq-2": gptq(2, 32, symmetric=True),
    "gptq-3": gptq(3, 32),
    "gptq-8": gptq(8, 32),
    "gptq-8-symmetric": gptq(8, -1, symmetric=True),
    "awq": awq(32),
    "packed-4": packed_integers(4, 32, "Q4_0"),
    "packed-4-zeros": packed_integers(4, 32, "U4_F16", symmetric=False),
    "packed-4-ordered": packed_integers(4, 32, "Q4_0", ordered=True),
    "packed-4-channel": packed_integers(4, None, "Q4_0"),
    "packed-6": packed_integers(6, 32, "Q8_0"),
    "packed-8-zeros": packed_integers(8, None, "U8_F16", symmetric=False),
    "int-channel": plain_integers("channel", "int-quantized", "U8_F32"),
    "int-tensor-zeros": plain_integers("tensor", "naive-quantized", "U8_F32", symmetric=False),
    "float-channel": compressed(
        "float-quantized", CHANNEL, write_eights(1, None, "weight_scale", torch.bfloat16), "E4M3_32"
    ),
    "float-tensor": compressed(
        "naive-quantized", TENSOR, write_eights(None, None, "weight_scale"), "E4M3_32"
    ),
    "float-blocks": replace(
        compressed(
            "float-quantized", BLOCKS, write_eights(128, 128, "weight_scale"), "E4M3_32", "E4M3_128"
        ),
        changes=WIDE,
    ),
    "nvfp4": compressed("nvfp4-pack-quantized", FOURS, write_fours(16, exponents=False), "E2M1_16"),
    "mxfp4-packed": compressed(
        "mxfp4-pack-quantized",
        {**FOURS, "group_size": 32},
        write_fours(32, exponents=True),
        "E2M1_32",
    ),
    "mxfp8": compressed(
        "mxfp8-quantized",
        {**CHANNEL, "strategy": "group", "group_size": 32},
        write_exponents,
        "E4M3_32",
    ),
    "fp8-blocks": replace(
        fp8(
            write_eights(128, 128, "weight_scale_inv"),
            "E4M3_32",
            "E4M3_128",
            weight_block_size=[128, 128],
        ),
        changes=WIDE,
    ),
    "fp8-tensor": fp8(write_eights(None, None, "weight_scale"), "E4M3_32"),
    "fp8-rows": fp8(write_eights(1, None, "weight_scale"), "E4M3_32", method="fbgemm_fp8"),
    "nf4": bitsandbytes("nf4", 64, "NF4_32", "NF4_64", nested=False),
    "nf4-nested": bitsandbytes("nf4", 64, "NF4_32", "NF4_64", nested=True),
    "fp4": bitsandbytes("fp4", 128, "FP4_32", "FP4_64", nested=False),
    "int8-rows": Case(
        config={"quant_method": "bitsandbytes", "load_in_8bit": True},
        write=write_rows,
        kinds=("U8_F32",),
    ),
}
