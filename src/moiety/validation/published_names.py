"""What published rows call models, systems, engines and number formats, and what the catalogue calls them."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from moiety.cluster.catalog import catalog_devices
from moiety.model.catalog import catalog_models
from moiety.validation.skipped import SkippedRow

if TYPE_CHECKING:
    from moiety.calibration.calibration import Engine
    from moiety.dtypes import Dtype

_SAME_SHAPE = {
    "deepseek-r1-distill-llama-70b": "llama-3.1-70b",
    "deepseek-r1-distill-llama-8b": "llama-3.1-8b",
    "deepseek-r1-distill-qwen-14b": "qwen2.5-14b",
    "deepseek-r1-distill-qwen-32b": "qwen2.5-32b",
    "deepseek-v3.1": "deepseek-v3",
    "deepseek-v3.1-terminus": "deepseek-v3",
    "glm-4.6": "glm-4.5",
    "glm-4.7": "glm-4.5",
    "glm-5.1": "glm-5",
    "kimi-k2.5": "kimi-k2-thinking",
    "kimi-k2.6": "kimi-k2-thinking",
    "llama-3-70b": "llama-3.1-70b",
    "llama-3-8b": "llama-3.1-8b",
    "llama-3.1-nemotron-70b": "llama-3.1-70b",
    "llama-3.3-70b": "llama-3.1-70b",
    "llama-4-maverick-17b-128e": "llama-4-maverick",
    "llama-4-scout-17b-16e": "llama-4-scout",
    "minimax-m2.1": "minimax-m2",
    "minimax-m2.5": "minimax-m2",
    "minimax-m2.7": "minimax-m2",
    "olmoe-1b-7b-0125": "olmoe-1b-7b",
    "qwen3-coder-30b-a3b": "qwen3-30b-a3b",
    "qwen3-coder-next": "qwen3-next-80b-a3b",
    "qwen3-vl-235b-a22b": "qwen3-235b-a22b",
    "qwen3-vl-30b-a3b": "qwen3-30b-a3b",
}
"""Releases whose layers have the shape of a model of the catalogue, by their published configs."""
_DRESS = re.compile(
    r"-(instruct|chat|base|hf|it|thinking|exp|preview|dynamic|block|kv|awq|gptq|autoround|modelopt"
    r"|(nv|mx)?fp[48]|bf16|fp16|u?int[48]|[48]bit|(quantized\.)?w[48]a(4|8|16|fp8)|g(32|64|128)|v[0-9](\.[0-9])?|[0-9]{4})$"
)
"""The last word of a name that says how a model was trained further, dated, or quantized, and not how large it is."""
_MAKERS = re.compile(r"^(meta-(?=llama)|nvidia-(?=nemotron))")
_UNDASHED = re.compile(r"^(llama|qwen|deepseek)(?=[0-9rv])")
"""Names that publishers write together: llama3.1-8b."""

_ENGINE_WORDS: tuple[tuple[str, Engine], ...] = (
    ("vllm", "vllm"),
    ("sglang", "sglang"),
    ("trt", "tensorrt-llm"),
    ("tensorrt", "tensorrt-llm"),
)
"""Words that name an engine, also behind what drives it: dynamo-trtllm."""

_SYSTEM_NOISE = re.compile(r"(?<=rtx)(?=pro)|(?<=pro)(?=6000)")
_VARIANTS = frozenset({"pcie", "nvl", "nvl4", "40gb", "40g", "3e", "workstation", "max"})
"""Words that make another device of one with the same name, unless the catalogue has the two apart."""
_ARCHITECTURES = {"sm90": "h100", "sm100": "b200"}

_FORMATS: dict[str, Dtype] = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "float16": "fp16",
    "half": "fp16",
    "fp8": "fp8",
    "mxfp8": "fp8",
    "float8": "fp8",
    "fp4": "fp4",
    "nvfp4": "fp4",
    "mxfp4": "fp4",
    "int8": "int8",
    "int4": "int4",
}
"""Formats of weights by the word that states them; scales are of the format's own size."""
_METHODS: dict[str, Dtype] = {
    "awq": "int4",
    "gptq": "int4",
    "4bit": "int4",
    "w4a16": "int4",
    "w4a8": "int4",
    "w4afp8": "int4",
    "w8a8": "int8",
    "w8a16": "int8",
}
"""What they are where words say only how they were made, or how wide weights and activations are."""


@cache
def model_name(stated: str) -> str:
    """Return the catalogue's name of a published one such as `Qwen/Qwen3-235B-A22B-FP8`; raise SkippedRow."""
    known = catalog_models()
    bare = stated.rpartition("/")[2].lower().replace("_", "-")
    bare = _UNDASHED.sub(lambda name: name[0] if name[0] == "qwen" else f"{name[0]}-", _MAKERS.sub("", bare))
    while bare not in known and bare not in _SAME_SHAPE and _DRESS.search(bare):
        bare = _DRESS.sub("", bare)
    bare = _SAME_SHAPE.get(bare, bare)
    if bare not in known:
        raise SkippedRow(f"model {stated!r} is not in the catalogue")
    return bare


@cache
def engine_name(stated: str) -> Engine:
    """Return the engine that a row's `backend` names; raise SkippedRow where none of ours."""
    lower = stated.lower()
    for word, engine in _ENGINE_WORDS:
        if word in lower:
            return engine
    raise SkippedRow(
        f"backend {stated!r} is not known; known: {', '.join(sorted({engine for _, engine in _ENGINE_WORDS}))}"
    )


@cache
def device_name(stated: str) -> str | None:
    """Return the catalogue's device that a system such as `h200_sxm` or `DGX-GB200` is made of; None for no such.

    A variant that the catalogue does not have (`a100_pcie`) is not taken for the device it is named after.
    """
    words = re.split(r"[^a-z0-9]+", _SYSTEM_NOISE.sub("-", stated.lower().partition("(")[0]))
    words = [_ARCHITECTURES.get(word, word) for word in words]
    found = [name for name in catalog_devices() if set(name.split("-")) <= set(words)]
    if not found:
        return None
    best = max(found, key=lambda name: name.count("-"))
    return None if _VARIANTS & (set(words) - set(best.split("-"))) else best


@cache
def weight_format(stated: str) -> Dtype | None:
    """Return the format that a precision or a checkpoint's name states, such as `NVFP4`; None where it states none."""
    words = [word for word in re.split(r"[^a-z0-9]+", stated.lower()) if word]
    return next((known[word] for known in (_FORMATS, _METHODS) for word in words if word in known), None)
