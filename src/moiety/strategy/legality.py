"""The named rules a strategy must obey; each says what is wrong and the nearest degrees that are right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.model.attention import GroupedQueryAttention, LinearAttention
from moiety.model.feed_forward import DenseFeedForward

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.dtypes import Dtype
    from moiety.model.model import Model
    from moiety.strategy.strategy import Strategy


SCALE_BLOCKS: dict[Dtype, int] = {"fp8": 128, "mxfp4": 32, "fp4": 16, "int4": 128}
"""Columns of a weight that share a scale."""


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """The name of a rule that a strategy breaks, and the sentence that says how."""

    rule: str
    reason: str


def divisors(number: int) -> list[int]:
    """Return the divisors of `number` in ascending order."""
    small = [each for each in range(1, int(number**0.5) + 1) if number % each == 0]
    return sorted({*small, *(number // each for each in small)})


def _nearest(number: int, degree: int) -> str:
    candidates = sorted(divisors(number), key=lambda each: (abs(each - degree), each))[:3]
    return ", ".join(str(each) for each in sorted(candidates))


def _not_dividing(name: str, degree: int, what: str, number: int) -> str | None:
    if number % degree == 0:
        return None
    return f"{name}={degree} does not divide {what}={number}; try {_nearest(number, degree)}"


def _experts_divide(model: Model, strategy: Strategy, redundant_experts: int) -> str | None:
    moe = model.moe
    if moe is None:
        return None
    slots = moe.num_experts + redundant_experts
    what = (
        "num_experts"
        if redundant_experts == 0
        else f"num_experts + redundant ({moe.num_experts} + {redundant_experts})"
    )
    each = slots // strategy.ep
    if strategy.ep > 1 and each > moe.num_experts:
        return f"ep={strategy.ep} gives a rank {each} slots, more than the {moe.num_experts} experts; try a larger ep"
    return _not_dividing("ep", strategy.ep, what, slots)


def _dense_has_no_experts(model: Model, strategy: Strategy, _redundant: int) -> str | None:
    if model.moe is None and (strategy.ep > 1 or strategy.attn_dp > strategy.cp):
        dp = strategy.attn_dp
        return f"the model has no experts, so ep={strategy.ep} and attention dp={dp} must be 1; use instances"
    return None


def _heads_divide(model: Model, strategy: Strategy, _redundant: int) -> str | None:
    for attention in (block.attention for block in model.blocks if block.attention is not None):
        heads = attention.num_value_heads if isinstance(attention, LinearAttention) else attention.num_heads
        wrong = _not_dividing("tp", strategy.tp, "num_attention_heads", heads)
        if wrong:
            return wrong
    return None


def _kv_heads_divide(model: Model, strategy: Strategy, _redundant: int) -> str | None:
    for block in model.blocks:
        attention = block.attention
        if isinstance(attention, GroupedQueryAttention):
            shared = attention.num_kv_heads
        elif isinstance(attention, LinearAttention):
            shared = attention.num_key_heads
        else:
            continue
        if shared % strategy.tp and strategy.tp % shared:
            return (
                f"tp={strategy.tp} neither divides num_key_value_heads={shared} nor is a multiple of it; "
                f"try {_nearest(shared, strategy.tp)}"
            )
    return None


def _expert_width_divides(model: Model, strategy: Strategy, _redundant: int) -> str | None:
    for part in (block.moe for block in model.blocks if block.moe is not None):
        wrong = _not_dividing("etp", strategy.etp, "expert intermediate size", part.expert_intermediate_size)
        if wrong:
            return wrong
        scaled = SCALE_BLOCKS.get(model.expert_dtype)
        width = part.expert_intermediate_size // strategy.etp
        if scaled and strategy.etp > 1 and width % scaled:
            return (
                f"etp={strategy.etp} leaves {width} columns an expert, which cuts through the {scaled}-wide "
                f"scale blocks of {model.expert_dtype}; try a smaller etp"
            )
    return None


def _dense_width_divides(model: Model, strategy: Strategy, _redundant: int) -> str | None:
    for part in (block.feed_forward for block in model.blocks if block.feed_forward is not None):
        width = part.intermediate_size if isinstance(part, DenseFeedForward) else part.shared_intermediate_size
        wrong = _not_dividing("tp", strategy.tp, "intermediate size", width)
        if wrong:
            return wrong
    return None


def _stages_have_layers(model: Model, strategy: Strategy, _redundant: int) -> str | None:
    if strategy.pp > model.num_layers:
        return f"pp={strategy.pp} leaves stages without a layer; the model has {model.num_layers}"
    return None


def _expert_mesh_nests(_model: Model, strategy: Strategy, _redundant: int) -> str | None:
    if strategy.etp % strategy.tp and strategy.tp % strategy.etp:
        return f"etp={strategy.etp} and tp={strategy.tp} must divide one another, so that tensor-parallel groups nest"
    return None


RULES: dict[str, Callable[[Model, Strategy, int], str | None]] = {
    "dense-model-has-no-expert-parallelism": _dense_has_no_experts,
    "experts-divide-over-ep": _experts_divide,
    "expert-width-divides-over-etp": _expert_width_divides,
    "heads-divide-over-tp": _heads_divide,
    "kv-heads-divide-over-tp": _kv_heads_divide,
    "dense-width-divides-over-tp": _dense_width_divides,
    "stages-have-layers": _stages_have_layers,
    "expert-mesh-nests": _expert_mesh_nests,
}


def broken_rules(model: Model, strategy: Strategy, redundant_experts: int = 0) -> tuple[BrokenRule, ...]:
    """Return every rule that `strategy` breaks for `model`; empty where it is legal."""
    found = ((name, rule(model, strategy, redundant_experts)) for name, rule in RULES.items())
    return tuple(BrokenRule(name, reason) for name, reason in found if reason)
