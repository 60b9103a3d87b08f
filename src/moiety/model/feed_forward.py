"""The two kinds of feed-forward part a layer can have: dense, or a mixture of experts."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moiety.model.attention import Count
from moiety.records import Record


class DenseFeedForward(Record):
    """A gated feed-forward network (SwiGLU and its kin): gate, up and down projections."""

    kind: Literal["dense"] = "dense"
    intermediate_size: Count
    bias: bool = False
    """Each of the three projections has a bias (`mlp_bias`)."""

    def num_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters, the layer's norm excluded."""
        bias = 2 * self.intermediate_size + hidden_size if self.bias else 0
        return 3 * hidden_size * self.intermediate_size + bias

    def num_active_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters that one token uses."""
        return self.num_parameters(hidden_size)


class MoeFeedForward(Record):
    """A router that sends each token to `top_k` of `num_experts` gated experts, beside shared experts if any."""

    kind: Literal["moe"] = "moe"
    num_experts: Count
    top_k: Count
    expert_intermediate_size: Count
    shared_intermediate_size: int = Field(default=0, ge=0, le=2**40)
    """Width of the shared experts together; 0: there are none."""
    shared_gate: bool = False
    """The shared experts' output is scaled by a learned gate per token (Qwen2-MoE)."""
    shared_bias: bool = False
    """Each projection of the shared experts has a bias (`mlp_bias` of DeepSeek-V2)."""
    router_bias: bool = False
    """The router has a trained bias parameter (gpt-oss); DeepSeek's correction bias is a buffer, not a parameter."""
    expert_bias: bool = False
    """Every expert projection has a bias (gpt-oss)."""
    num_groups: Count = 1
    """Groups that the experts are divided into for group-limited routing."""
    top_k_groups: Count = 1
    """Groups that one token may choose from."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.top_k > self.num_experts:
            msg = f"top_k={self.top_k} must not exceed num_experts={self.num_experts}"
            raise ValueError(msg)
        if self.num_experts % self.num_groups or self.top_k_groups > self.num_groups:
            msg = (
                f"num_groups={self.num_groups} must divide num_experts={self.num_experts} and "
                f"top_k_groups={self.top_k_groups} must not exceed it"
            )
            raise ValueError(msg)
        return self

    def expert_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters of one routed expert."""
        bias = 2 * self.expert_intermediate_size + hidden_size if self.expert_bias else 0
        return 3 * hidden_size * self.expert_intermediate_size + bias

    def shared_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters of the router, the shared experts and their gate: what every rank keeps."""
        router = hidden_size * self.num_experts + (self.num_experts if self.router_bias else 0)
        shared = 3 * hidden_size * self.shared_intermediate_size + (hidden_size if self.shared_gate else 0)
        if self.shared_bias and self.shared_intermediate_size:
            shared += 2 * self.shared_intermediate_size + hidden_size
        return router + shared

    def num_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters, the layer's norm excluded."""
        return self.shared_parameters(hidden_size) + self.num_experts * self.expert_parameters(hidden_size)

    def num_active_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters that one token uses."""
        return self.shared_parameters(hidden_size) + self.top_k * self.expert_parameters(hidden_size)


FeedForward = Annotated[DenseFeedForward | MoeFeedForward, Field(discriminator="kind")]
