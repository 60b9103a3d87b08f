"""Snowflake Arctic: a dense feed-forward part in each layer, and beside it a mixture of many experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.model.attention import GroupedQueryAttention
from moiety.model.config import MAX_LAYERS, num_layers
from moiety.model.families.experts import feed_forwards, routed_experts
from moiety.model.families.grouped_query import heads
from moiety.model.feed_forward import MoeFeedForward
from moiety.model.model import Block

if TYPE_CHECKING:
    from moiety.model.config import Config


def arctic(config: Config) -> list[Block]:
    """Return the layers of an `arctic` model.

    The dense part beside the experts (`use_residual`) is as wide as the model and has a norm of its own; it sees every
    token, as shared experts do.
    """
    residual = config.flag("use_residual", default=False)
    mixture = MoeFeedForward(
        **routed_experts(config, width_keys=("intermediate_size",)),
        shared_intermediate_size=config.integer("hidden_size") if residual else 0,
    )
    step = config.integer("moe_layer_frequency", maximum=MAX_LAYERS, default=2)
    sparse = [(index + 1) % step == 0 for index in range(num_layers(config))]
    attention = GroupedQueryAttention(**heads(config))
    return [
        Block(attention=attention, feed_forward=part, num_norms=3 if residual and part is mixture else 2)
        for part in feed_forwards(config, sparse, mixture)
    ]
