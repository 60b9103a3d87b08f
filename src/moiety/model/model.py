"""Model: the shape of a language model, layer by layer; numbers only, no weights."""

from __future__ import annotations

from collections import Counter
from typing import Literal, Self

from pydantic import Field, computed_field, model_validator

from moiety.dtypes import Dtype
from moiety.model.attention import Attention, Count
from moiety.model.feed_forward import FeedForward, MoeFeedForward
from moiety.records import DerivedRecord, Record

Part = Literal["attention", "feed_forward"]


class Block(Record):
    """One kind of layer: attention, then a feed-forward part, each behind a norm; in some hybrids only one of them."""

    attention: Attention | None
    feed_forward: FeedForward | None
    num_norms: int = Field(default=2, ge=0)
    """Norm vectors of `hidden_size` in the layer, those inside the attention excluded."""
    norms_behind: tuple[Part, ...] = Field(default=(), exclude_if=lambda value: not value)
    """Parts that one of these norms comes behind, before what the part made is added to its input."""

    @model_validator(mode="after")
    def _has_a_part(self) -> Self:
        if self.attention is None and self.feed_forward is None:
            msg = "a layer has attention, a feed-forward part, or both"
            raise ValueError(msg)
        return self

    @property
    def moe(self) -> MoeFeedForward | None:
        """The mixture of experts of the layer, if it has one."""
        return self.feed_forward if isinstance(self.feed_forward, MoeFeedForward) else None

    def num_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters of one such layer."""
        parts = (part.num_parameters(hidden_size) for part in (self.attention, self.feed_forward) if part is not None)
        return sum(parts) + self.num_norms * hidden_size

    def num_active_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters of one such layer that one token uses."""
        moe = self.moe
        inactive = 0 if moe is None else moe.num_parameters(hidden_size) - moe.num_active_parameters(hidden_size)
        return self.num_parameters(hidden_size) - inactive


class Model(DerivedRecord):
    """The shape of a decoder-only language model.

    `blocks` are its distinct kinds of layer and `layer_blocks` says for each layer, in order, which of them it is.
    """

    name: str
    architecture: str
    """Hugging Face `model_type` (of the text part)."""
    hidden_size: Count
    vocab_size: Count
    blocks: tuple[Block, ...] = Field(min_length=1)
    layer_blocks: tuple[int, ...] = Field(min_length=1)
    tie_word_embeddings: bool = False
    head_bias: bool = Field(default=False, exclude_if=lambda value: not value)
    """The output head has a bias (Phi-3.5-MoE)."""
    num_final_norms: int = Field(default=1, ge=0, exclude_if=lambda value: value == 1)
    """Norm vectors of `hidden_size` after the last layer: 2 where the norm has a bias."""
    max_position_embeddings: Count | None = None
    num_mtp_layers: int = Field(default=0, ge=0, le=10_000)
    """Multi-token-prediction layers that the checkpoint carries beside `layer_blocks`; not counted as parameters."""
    weight_dtype: Dtype = "bf16"
    """Format of the dense weights in the checkpoint."""
    block_scales: bool = Field(default=False, exclude_if=lambda value: not value)
    """Dense FP8 weights have a scale for every block of them in the checkpoint."""
    expert_dtype: Dtype = "bf16"
    """Format of the routed experts' weights in the checkpoint."""
    source: str = ""
    """Where the numbers come from."""
    warnings: tuple[str, ...] = ()
    """What was assumed when the model was read."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        wrong = [index for index in self.layer_blocks if not 0 <= index < len(self.blocks)]
        if wrong:
            msg = f"layer_blocks names block {wrong[0]}, but there are {len(self.blocks)}"
            raise ValueError(msg)
        return self

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.layer_blocks)

    @property
    def layers(self) -> tuple[Block, ...]:
        """The layers, in order."""
        return tuple(self.blocks[index] for index in self.layer_blocks)

    @property
    def num_moe_layers(self) -> int:
        """Number of layers whose feed-forward part is a mixture of experts."""
        return sum(block.moe is not None for block in self.layers)

    @property
    def moe(self) -> MoeFeedForward | None:
        """The mixture of experts of the first MoE layer, None for a dense model."""
        kinds = (self.blocks[index] for index in dict.fromkeys(self.layer_blocks))
        return next((block.moe for block in kinds if block.moe is not None), None)

    @property
    def head_parameters(self) -> int:
        """Parameters of the output head of its own: its bias alone where it is tied to the embedding."""
        weight = 0 if self.tie_word_embeddings else self.hidden_size * self.vocab_size
        return weight + (self.vocab_size if self.head_bias else 0)

    @computed_field
    @property
    def num_parameters(self) -> int:
        """Number of parameters, equal to what `transformers` builds."""
        layers = sum(
            number * self.blocks[index].num_parameters(self.hidden_size)
            for index, number in Counter(self.layer_blocks).items()
        )
        embedding, norms = self.hidden_size * self.vocab_size, self.hidden_size * self.num_final_norms
        return embedding + layers + norms + self.head_parameters

    @computed_field
    @property
    def num_active_parameters(self) -> int:
        """Number of parameters that multiply one token: `top_k` experts a layer, the head, no embedding table."""
        inactive = sum(
            number
            * (
                self.blocks[index].num_parameters(self.hidden_size)
                - self.blocks[index].num_active_parameters(self.hidden_size)
            )
            for index, number in Counter(self.layer_blocks).items()
        )
        lookup = 0 if self.tie_word_embeddings else self.hidden_size * self.vocab_size
        return self.num_parameters - inactive - lookup
