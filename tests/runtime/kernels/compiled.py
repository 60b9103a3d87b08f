"""Compile every kernel of the fast path for a GPU of compute capability 9.0, without one; print what each needs.

Run in a process of its own, as Triton's interpreter must be off there. Of the machine code it reports registers that
were spilled to the stack, of the assembly whether it has the tensor cores' and the asynchronous copies' instructions.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moiety.runtime.gates import Gate
from moiety.runtime.kernels import configs, expanded_weights, expert_mlp, quantized_rows, tiles, token_sums

TARGET = GPUTarget("cuda", 90, 32)
INTEGERS = {"order_ptr": "*i64", "row_ptr": "*i64", "keys_ptr": "*i64", "first_ptr": "*i64", "index_ptr": "*i64"}
FORMATS = {
    "offsets_ptr": "*i32",
    "ranks_ptr": "*i32",
    "scale_ptr": "*fp32",
    "sums_ptr": "*fp32",
    "scales_ptr": "*fp32",
    "codes_ptr": "*fp8e4nv",
    "row_block_ptr": "*i32",
    "column_block_ptr": "*i32",
    **INTEGERS,
}
WEIGHTS = {"numbers": None, "codes": "*fp8e4nv"}
"""Their format, where it is not that of the states."""
SCALE_STRIDES = {"scale_slot_stride", "scale_in_stride", "scale_out_stride"}
NO_SCALES = dict.fromkeys(("scales_ptr", "column_block_ptr", *SCALE_STRIDES, "block_offset", "block_size"))
TILED = {"middle": ("BLOCK_M", 1), "half_middle": ("BLOCK_M", 2), "weights": ("BLOCK_N", 1)}
"""Pointers, or with TMA descriptors of tensors whose tiles have so many rows, or a half or the like of them."""
UNALIGNED = {"ranks_ptr", "num_rows", "rows_class", "num_slots", "row_stride", "steps", "num_groups"}
UNALIGNED |= {*SCALE_STRIDES, "block_offset"}


def compiled(
    kernel: Any,  # noqa: ANN401 - Triton's
    constants: dict[str, Any],
    warps: int,
    stages: int,
    states: str,
) -> dict[str, Any]:
    """Compile one kernel; return what it needs."""
    while not isinstance(kernel, triton.runtime.JITFunction):
        kernel = kernel.fn
    names = kernel.arg_names
    signature = {name: format_of(name, constants, states) for name in names}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if name not in UNALIGNED and not signature[name].startswith(("constexpr", "tensordesc"))
    }
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature=signature, constexprs=places, attrs=attributes)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    built = triton.compile(source, target=TARGET, options=options)
    assembly = built.asm["ptx"]
    return {
        "kernel": kernel.__name__,
        "constants": {name: value for name, value in constants.items() if name.isupper()},
        "shared_bytes": built.metadata.shared,
        "stack_bytes": stack_bytes(built.asm["cubin"]),
        "tensor_cores": "wgmma" in assembly or "mma.sync" in assembly,
        "copies_of_16_bytes": ", 0x10" in assembly and "cp.async.cg" in assembly,
        "copies_of_tiles": "cp.async.bulk.tensor" in assembly,
    }


def format_of(name: str, constants: dict[str, Any], states: str) -> str:
    """Return an argument's format as Triton writes it."""
    if name in constants:
        return "constexpr"
    if name in TILED:
        if constants["TMA"]:
            pair = "2, " if "ROW_UNIT" in constants else ""  # gates and ups are fetched together
            kind = FORMATS["weights"] if name == "weights" else states
            rows, parts = TILED[name]
            return f"tensordesc<{kind[1:]}[{pair}{constants[rows] // parts}, {constants['BLOCK_K']}]>"
        return FORMATS.get(name, states)
    return FORMATS.get(name, states if name.endswith("_ptr") else "i32")


def stack_bytes(code: bytes) -> int:
    """Return the bytes of stack that machine code uses: registers that were spilled."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"STACK:(\d+)", usage)
    assert found is not None, usage
    return int(found.group(1))


def products() -> list[dict[str, Any]]:
    """Compile the expert products with every tile size in the lists, and every variant with sizes that suit it."""
    found: list[dict[str, Any]] = []
    for kernels, plain, codes, constants in (
        (expert_mlp.GATE_UP_KERNELS, configs.GATE_UP, configs.GATE_UP_OF_CODES, {"ROW_UNIT": 16, "GATE": 0}),
        (expert_mlp.DOWN_KERNELS, configs.DOWN, configs.DOWN_OF_CODES, {"STAYS": 0}),
    ):
        shared = {"SLOTS": 512, "EVEN_K": True, "WHOLE": False, "UPCAST": False, **constants}
        along_rows, as_gpt_oss = {**shared, "in_stride": 1}, {**shared, "out_stride": 1}
        if "GATE" in shared:
            as_gpt_oss["GATE"] = Gate.GPT_OSS.value
        no_bias = {"bias_ptr": None}
        found += each_size(kernels, plain, "numbers", along_rows | NO_SCALES | no_bias, tiled=True)
        found += each_size(kernels, plain, "numbers, gpt-oss", as_gpt_oss | NO_SCALES, tiled=False)
        found += each_size(kernels, codes, "codes", along_rows | no_bias | {"WHOLE": True}, tiled=True)
        found += each_size(kernels, codes, "codes in cut blocks", along_rows | no_bias, tiled=False)
        found += each_size(kernels, codes, "codes, gpt-oss", as_gpt_oss, tiled=False)
        exact = configs.EXACT[0]
        for name, settings in (("numbers", along_rows | NO_SCALES), ("codes", as_gpt_oss)):
            FORMATS["weights"] = WEIGHTS[name] or "*fp32"
            untiled = settings | {"TMA": False} | exact.kwargs
            compiled(kernels["exact"], untiled, exact.num_warps, exact.num_stages, "*fp32")
            FORMATS["weights"] = WEIGHTS[name] or "*fp16"
            compiled(kernels["exact"], untiled | {"EVEN_K": False}, exact.num_warps, exact.num_stages, "*fp16")
    return found


def each_size(
    kernels: dict[str, Any],
    lists: dict[str, list[triton.Config]],
    variant: str,
    constants: dict[str, Any],
    *,
    tiled: bool,
) -> list[dict[str, Any]]:
    """Compile a variant in BF16 with every tile size; `tiled`: for many rows, by descriptors too."""
    FORMATS["weights"] = WEIGHTS["codes" if variant.startswith("codes") else "numbers"] or "*bf16"
    found: list[dict[str, Any]] = []
    for name, each in lists.items():
        for by_tiles in (way for way in ways_to_fetch(name) if tiled or not way):
            for config in each:
                settings = constants | {"TMA": by_tiles} | config.kwargs
                need = compiled(kernels[name], settings, config.num_warps, config.num_stages, "*bf16")
                found.append({"variant": variant, **need})
    return found


def ways_to_fetch(name: str) -> tuple[bool, ...]:
    """Return whether the accelerator fetches the tiles of a list, or not, or both."""
    return {"few": (False,), "many": (False, True), "most": (True,)}[name.split(maxsplit=1)[0]]


def others() -> None:
    """Compile the other kernels."""
    compiled(tiles.group_rows_kernel, {"KEY_BITS": 48, "SLOTS": 512}, 4, 3, "*i32")
    compiled(token_sums.row_sums_kernel, {"MOST": 8, "BLOCK": 1024}, 4, 3, "*bf16")
    constants = {"FRACTION": 0x600000, "SCALED": 128, "GROUPS": 8, "ROUND": False}
    compiled(quantized_rows.quantize_kernel, constants, 4, 3, "*bf16")
    for codes in ("*fp8e4nv", "*fp8e5"):
        FORMATS["codes_ptr"] = codes
        compiled(expanded_weights.expand_kernel, {"ROWS": 16, "COLUMNS": 256, "ROUND": False}, 4, 3, "*bf16")


if __name__ == "__main__":
    others()
    json.dump(products(), sys.stdout)
