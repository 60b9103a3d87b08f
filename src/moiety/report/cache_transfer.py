"""The KV transfer of a disaggregated plan: which pools take part and how much a prompt carries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.cost.memory import cache_bytes_per_token, state_bytes
from moiety.dtypes import CACHE_BYTES_PER_ELEMENT
from moiety.model.attention import LinearAttention
from moiety.report.operator_text import tier_text
from moiety.units import format_si

if TYPE_CHECKING:
    from moiety.plan import Plan


def cache_roles(plan: Plan) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the numbers of the pools that send KV caches and of those that take them; both empty if none do."""
    sending = tuple(number for number, pool in enumerate(plan.pools) if pool.role == "prefill")
    taking = tuple(number for number, pool in enumerate(plan.pools) if pool.role == "decode")
    return (sending, taking) if sending and taking else ((), ())


def prompt_cache_bytes(plan: Plan) -> float:
    """Return the bytes of cache and state that one prompt leaves behind in all layers."""
    tokens = plan.workload.input_tokens
    element = CACHE_BYTES_PER_ELEMENT[plan.options.dtypes.kv_cache]
    total = 0.0
    for attention in (block.attention for block in plan.model.layers if block.attention is not None):
        total += tokens * cache_bytes_per_token(attention, 1, element)
        if isinstance(attention, LinearAttention):
            total += state_bytes(attention, plan.options.dtypes)
    return total


def transfer_lines(plan: Plan) -> tuple[str, ...]:
    """Return the text of the transfer's box."""
    sending, taking = cache_roles(plan)
    ends = [plan.pools[numbers[0]] for numbers in (sending, taking)]
    low, high = ends[0].first_rank, ends[1].first_rank + ends[1].num_gpus - 1
    tier = plan.cluster.tier_between(min(low, ends[1].first_rank), max(high, ends[0].first_rank))
    return (
        "KV transfer: prefill pool to decode pool",
        f"{format_si(prompt_cache_bytes(plan), 'B')} for a prompt of {plan.workload.input_tokens:,} tokens",
        f"{plan.model.num_layers} layers, {plan.options.dtypes.kv_cache}",
        tier_text(plan.cluster, tier),
    )
