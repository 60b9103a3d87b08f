"""Meituan's LongCat-Flash: two layers of latent attention and dense networks around each mixture of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.model.config import MAX_EXPERTS, MAX_LAYERS
from moiety.model.families.deepseek import latent_attention
from moiety.model.feed_forward import DenseFeedForward, MoeFeedForward
from moiety.model.model import Block

if TYPE_CHECKING:
    from moiety.model.config import Config


def longcat_flash(config: Config) -> list[Block]:
    """Return the layers of a `longcat_flash` model: of each of its `num_layers` three, the experts' being the second.

    The mixture takes what the first attention gives and adds to what the second network does. Of a token's `moe_topk`
    choices those of the `zero_expert_num` cost nothing; as many fall on the others as an even router gives them.
    """
    layers = config.integer("num_layers", maximum=MAX_LAYERS)
    experts = config.integer("n_routed_experts", maximum=MAX_EXPERTS)
    idle = config.integer("zero_expert_num", minimum=0, maximum=MAX_EXPERTS, default=0)
    chosen = config.integer("moe_topk", maximum=experts)
    mixture = MoeFeedForward(
        num_experts=experts,
        top_k=max(1, round(chosen * experts / (experts + idle))),
        num_idle_experts=idle,
        expert_intermediate_size=config.integer("expert_ffn_hidden_size"),
        router_bias=config.flag("router_bias", default=False),
    )
    half = Block(
        attention=latent_attention(config),
        feed_forward=DenseFeedForward(intermediate_size=config.integer("ffn_hidden_size")),
    )
    return [half, Block(attention=None, feed_forward=mixture, num_norms=0), half] * layers
