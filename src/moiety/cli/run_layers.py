"""The kinds of layer that the run time has modules for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.errors import InputError
from moiety.model.attention import GroupedQueryAttention, LinearAttention

if TYPE_CHECKING:
    from moiety.model.attention import Attention
    from moiety.model.model import Block, Model


def check_layers(model: Model, source: str) -> None:
    """Raise InputError for a plan's model with a layer that is planned but not executed; it names the first one."""
    for index, layer in enumerate(model.layers):
        found = _not_executed(layer)
        if found is not None:
            field, value, name = found
            rule = f"{name} is planned but not executed"
            raise InputError(rule, source=source, field=f"model.layers[{index}].{field}", value=value)


def _not_executed(layer: Block) -> tuple[str, str | int, str] | None:
    """Return the field of a layer that there is no module for, its value and its name; None if there is nothing."""
    attention, part = layer.attention, layer.feed_forward
    if attention is None:
        return "attention", "null", "a layer without attention"
    special = _special_attention(attention)
    if special is not None:
        return special
    if part is None:
        return "feed_forward", "null", "a layer without a feed-forward part"
    if not part.gated:
        return "feed_forward.gated", "false", "a feed-forward part without a gate"
    if layer.moe is not None and layer.moe.latent_size is not None:
        return "feed_forward.latent_size", layer.moe.latent_size, "a mixture of experts in a latent"
    return None


def _special_attention(attention: Attention) -> tuple[str, str | int, str] | None:
    if isinstance(attention, LinearAttention):
        name = "a Mamba-2 layer" if attention.variant == "mamba2" else "linear attention"
        return "attention.variant", attention.variant, name
    if isinstance(attention, GroupedQueryAttention) and attention.q_lora_rank is not None:
        return "attention.q_lora_rank", attention.q_lora_rank, "grouped-query attention with queries of a low rank"
    return None
