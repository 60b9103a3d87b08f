"""The number formats of a checkpoint's weights, from `torch_dtype` and `quantization_config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.errors import nearest

if TYPE_CHECKING:
    from moiety.dtypes import Dtype
    from moiety.model.config import Config

TORCH_DTYPES: dict[str, Dtype] = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "float8_e4m3fn": "fp8",
    "int8": "int8",
}
_METHODS: dict[str, Dtype] = {"fp8": "fp8", "fbgemm_fp8": "fp8", "finegrained_fp8": "fp8", "mxfp4": "mxfp4"}
_ALGORITHMS: dict[str, Dtype] = {"fp8": "fp8", "mxfp8": "fp8", "nvfp4": "fp4", "mxfp4": "mxfp4", "w4a16_awq": "int4"}
_QUARK: dict[str, Dtype] = {"fp4": "mxfp4", "fp8_e4m3": "fp8", "int8": "int8", "int4": "int4"}
_WIDTHS: dict[tuple[int, str], Dtype] = {
    (8, "float"): "fp8",
    (4, "float"): "fp4",
    (8, "int"): "int8",
    (4, "int"): "int4",
}
_KEPT_KEYS = ("modules_to_not_convert", "ignore", "exclude_modules", "exclude", "ignored_layers")
_SMALL_PARTS = ("norm", "indexer", "sinks")
"""Parts of attention too small to say anything about its projections."""


@dataclass(frozen=True, slots=True)
class WeightFormats:
    """The formats of the dense weights and of the routed experts, and what was assumed about them."""

    dense: Dtype
    experts: Dtype
    warnings: tuple[str, ...] = ()
    block_scales: bool = False
    """FP8 dense weights have a scale for every block of them (`weight_block_size`)."""


def weight_formats(config: Config, top: Config) -> WeightFormats:
    """Return the formats that `config` states, or the whole file `top` where it does not.

    Attention that the quantisation leaves out keeps the dense weights in the checkpoint's own format, as in gpt-oss
    (MXFP4 experts) and NVFP4 or INT4 DeepSeek and Kimi checkpoints.
    """
    holder = config if config.has("quantization_config") else top
    section = holder.section("quantization_config")
    base, warnings = _base(config if config.has("dtype", "torch_dtype") else top, quantized=section is not None)
    if section is None:
        return WeightFormats(base, base, warnings)
    formats = _quantized(section)
    if not formats:
        method = section.text("quant_method") or section.text("quant_algo") or "no method"
        unknown = f"quantization_config: {method!r} is not known, weights are taken as {base}"
        return WeightFormats(base, base, (*warnings, unknown))
    if len(formats) > 1:
        mixed = (
            f"quantization_config mixes {', '.join(formats)}: experts taken as {formats[0]}, the rest as {formats[-1]}"
        )
        warnings = (*warnings, mixed)
    experts = _ALGORITHMS.get((section.text("moe_quant_algo") or "").lower(), formats[0])
    dense = base if _keeps_attention(section) else formats[-1]
    return WeightFormats(dense, experts, warnings, block_scales=dense == "fp8" and section.has("weight_block_size"))


def _base(config: Config, *, quantized: bool) -> tuple[Dtype, tuple[str, ...]]:
    name = config.text("dtype", "torch_dtype")
    if name is None:
        silent = () if quantized else ("dtype is not stated: weights are taken as bf16",)
        return "bf16", silent
    known = TORCH_DTYPES.get(name.removeprefix("torch."))
    if known is None:
        raise config.error(
            "must be a number format of torch",
            config.first_key("dtype", "torch_dtype"),
            remedy=nearest(name, TORCH_DTYPES),
        )
    return known, ()


def _quantized(section: Config) -> list[Dtype]:
    """Return the formats of the quantised weights, narrowest first; empty where the method is not known."""
    if section.has("config_groups"):
        return _grouped(section)
    method = (section.text("quant_method") or "").lower()
    known: Dtype | None = None
    if method in _METHODS:
        known = _METHODS[method]
    elif section.has("quant_algo"):
        known = _ALGORITHMS.get((section.text("quant_algo") or "").lower())
    elif method in {"gptq", "awq", "auto-round", "auto_round"}:
        known = _WIDTHS.get((section.integer("bits", "w_bit", maximum=16), "int"))
    elif method == "bitsandbytes":
        known = "int4" if section.flag("load_in_4bit", "_load_in_4bit", default=False) else "int8"
    elif method == "quark":
        weight = _inside(section, "global_quant_config", "weight")
        known = _QUARK.get(weight.text("dtype") or "") if weight else None
    return [known] if known else []


def _grouped(section: Config) -> list[Dtype]:
    """Return the formats of the groups of weights in the style of compressed-tensors and ModelOpt, narrowest first."""
    groups = section.section("config_groups")
    layout = f"{section.text('format') or ''} {section.text('quant_algo') or ''}".lower()
    formats: set[Dtype] = set()
    for name in groups.values if groups else ():
        weights = _inside(section, "config_groups", name, "weights")
        if weights is None:
            continue
        width = (weights.integer("num_bits", maximum=16), weights.text("type") or "int")
        known = "mxfp4" if width == (4, "float") and "mxfp4" in layout else _WIDTHS.get(width)
        formats |= {known} if known else set()
    return sorted(formats, key=BYTES_PER_ELEMENT.__getitem__)


def _inside(section: Config, *keys: str) -> Config | None:
    inner: Config | None = section
    for key in keys:
        inner = inner.section(key) if inner else None
    return inner


def _keeps_attention(section: Config) -> bool:
    """Say whether the list of modules that stay as they are names attention projections."""
    key = section.first_key(*_KEPT_KEYS)
    return any("attn" in name and not any(part in name for part in _SMALL_PARTS) for name in section.names(key))
