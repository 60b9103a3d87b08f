"""Model FLOPs as publishers count them, where that differs from `graph/model_flops.py`: what their TFLOPS are made of.

Megatron's count (`num_floating_point_operations` of Megatron-LM; `training/utils/flop_utils.py` of Megatron-Bridge, by
its release tags): three times the products of a forward pass; half of the scores; no routers, norms or biases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.graph.model_flops import attention_flops_per_token
from moiety.model.attention import GroupedQueryAttention, LinearAttention
from moiety.model.feed_forward import MoeFeedForward
from moiety.projection.training_predictions import prediction_blocks
from moiety.validation.training_recipes import stated_release

if TYPE_CHECKING:
    from moiety.model.attention import Attention
    from moiety.model.feed_forward import FeedForward
    from moiety.model.model import Block, Model
    from moiety.projection.training_run import TrainingRun
    from moiety.validation.system_row import SystemRow

_GATED_OTHERWISE = frozenset({"gpt_oss"})
"""Architectures whose gate is no SiLU: gpt-oss clamps x and takes x sigmoid(1.702 x)."""
_SCAN_FLOPS = 7
"""Of each element of a Mamba-2 layer's state, as Megatron counts them."""


@dataclass(frozen=True, slots=True)
class FlopConvention:
    """A way to count the FLOPs of a trained token."""

    name: str
    publishers: tuple[str, ...]
    """How the sources of the rows begin that are counted so."""
    before: str | None = None
    """The first release of the publisher that counts otherwise; None: none does."""
    windows: bool = True
    """Tokens beyond a sliding window do not count."""
    every_gate: bool = True
    """A gate counts as the product that it is, not only one with SiLU."""

    def holds(self, row: SystemRow) -> bool:
        """Return whether a row's publisher counts so in the row's release."""
        return row.source.startswith(self.publishers) and (self.before is None or stated_release(row) < self.before)

    def per_token(self, model: Model, sequence_tokens: int, predictions: int) -> float:
        """Return the FLOPs of a trained token, `predictions` tokens beyond the next among what it learns."""
        hidden, layers = model.hidden_size, list(model.layers)
        layers += predictions * [model.blocks[kind] for kind in prediction_blocks(model)]
        forward = sum(self._layer(model, block, sequence_tokens) for block in layers)
        forward += 2.0 * hidden * model.vocab_size * (1 + predictions)
        hybrid = any(block.attention is None or block.feed_forward is None for block in model.blocks)
        joined = 0.0 if hybrid else 2.0 * predictions * (2 * hidden + 3) * hidden
        return 3 * (forward + joined)

    def _layer(self, model: Model, block: Block, sequence_tokens: int) -> float:
        flops = 0.0
        if block.attention is not None:
            flops += self._attention(block.attention, model.hidden_size, sequence_tokens)
        if block.feed_forward is not None:
            three = self.every_gate or model.architecture not in _GATED_OTHERWISE
            flops += _feed_forward(block.feed_forward, model.hidden_size, counts_gate=three)
        return flops

    def _attention(self, attention: Attention, hidden: int, sequence_tokens: int) -> float:
        if isinstance(attention, LinearAttention) and attention.variant == "mamba2":
            return _mamba2(attention, hidden)
        products = 2.0 * attention.num_parameters(hidden)
        if isinstance(attention, LinearAttention):
            return products + attention_flops_per_token(attention, 0)
        context = sequence_tokens / 2
        if isinstance(attention, GroupedQueryAttention):
            window = attention.sliding_window if self.windows else None
            whole = attention.model_copy(update={"sliding_window": None})
            if window is not None and window < sequence_tokens:
                context = window - window * (window - 1) / (2 * sequence_tokens)
            return products + attention_flops_per_token(whole, context)
        return products + attention_flops_per_token(attention, context)


MEGATRON_2025 = FlopConvention(
    "megatron-2025",
    ("NVIDIA-NeMo/Megatron-Bridge", "NVIDIA/Megatron-LM", "yanring/Megatron-MoE-ModelZoo", "MoE Parallel Folding"),
    before="26.06",
    windows=False,
    every_gate=False,
)
"""Megatron-Bridge 0.2 to 0.4, and Megatron-LM since March 2025 (its commit 8873b55d6a; before, all scores counted)."""
MEGATRON_2026 = FlopConvention("megatron-2026", ("NVIDIA-NeMo/Megatron-Bridge",))
"""Megatron-Bridge from 0.5 on, in containers from 26.06 on (its commit baa0259bd)."""
CONVENTIONS = (MEGATRON_2025, MEGATRON_2026)


def convention_of(row: SystemRow) -> FlopConvention | None:
    """Return how the publisher of a row counts; None where that is not known: then our own count is as good as any."""
    return next((each for each in CONVENTIONS if each.holds(row)), None)


def published_flops_per_token(row: SystemRow, run: TrainingRun) -> float:
    """Return the FLOPs of a trained token that a row's TFLOPS and MFU are made of."""
    convention = convention_of(row)
    if convention is None:
        return run.flops_per_token
    return convention.per_token(run.model, run.sequence_tokens, run.predictions)


def _feed_forward(part: FeedForward, hidden: int, *, counts_gate: bool) -> float:
    """Return the forward FLOPs of a token's products; the router's do not count."""
    products = 3 if part.gated and counts_gate else 2
    if not isinstance(part, MoeFeedForward):
        return 2.0 * products * hidden * part.intermediate_size
    routed = products * part.top_k * part.expert_intermediate_size * part.row_size(hidden)
    latent = 2 * hidden * part.latent_size if part.latent_size else 0
    return 2.0 * (routed + products * hidden * part.shared_intermediate_size + latent)


def _mamba2(attention: LinearAttention, hidden: int) -> float:
    """Return the forward FLOPs that Megatron counts: it takes every such layer to be twice as wide as the model."""
    inner, states = 2 * hidden, attention.num_key_heads * attention.key_head_dim
    emitted = 2 * inner + 2 * states + attention.num_value_heads
    return 2.0 * hidden * (emitted + inner) + _SCAN_FLOPS * inner * attention.key_head_dim
