"""The two kinds of feed-forward part that a layer can have: dense, or a mixture of experts."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moiety.model.attention import Count
from moiety.records import Record


def _network_parameters(width: int, intermediate_size: int, *, gated: bool, bias: bool) -> int:
    """Return the parameters of up and down projections, with a gate projection beside if gated."""
    into = 2 if gated else 1
    return (into + 1) * width * intermediate_size + (into * intermediate_size + width if bias else 0)


class DenseFeedForward(Record):
    """A feed-forward network: gate (SwiGLU and its kin), up and down projections."""

    kind: Literal["dense"] = "dense"
    intermediate_size: Count
    bias: bool = False
    """Each projection has a bias (`mlp_bias`)."""
    gated: bool = True
    """Whether there is a gate projection; without one the activation is of the up projection alone (squared ReLU)."""

    def num_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters, the layer's norm excluded."""
        return _network_parameters(hidden_size, self.intermediate_size, gated=self.gated, bias=self.bias)

    def num_active_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters that one token uses."""
        return self.num_parameters(hidden_size)


class MoeFeedForward(Record):
    """A router that sends each token to `top_k` of `num_experts` experts, beside shared experts if any."""

    kind: Literal["moe"] = "moe"
    num_experts: Count
    top_k: Count
    expert_intermediate_size: Count
    shared_intermediate_size: int = Field(default=0, ge=0, le=2**40)
    """Width of the shared experts together; 0: there are none."""
    shared_gate: bool = False
    """The shared experts' output is scaled by a learned gate per token (Qwen2-MoE)."""
    shared_bias: bool = False
    """Each projection of the shared experts has a bias (`mlp_bias` of DeepSeek-V2), and those of the latent."""
    router_bias: bool = False
    """The router has a trained bias parameter (gpt-oss); DeepSeek's correction bias is a buffer, not a parameter."""
    router_in_fp32: bool = Field(default=False, exclude_if=lambda value: not value)
    """The router's weight is FP32 whatever the others are (ERNIE 4.5, Hunyuan)."""
    expert_bias: bool = False
    """Every expert projection has a bias (gpt-oss)."""
    gated: bool = True
    """Whether routed and shared experts have a gate projection, as in `DenseFeedForward`."""
    latent_size: Count | None = None
    """Width of the rows that routed experts work on, projected down before dispatch and up after combine (LatentMoE,
    Nemotron 3 Super, arXiv 2604.12374); None: the model's own."""
    num_idle_experts: int = Field(default=0, ge=0, le=2**40, exclude_if=lambda value: value == 0)
    """Outputs of the router that stand for no network: what they take stays as it is (LongCat-Flash)."""
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

    def row_size(self, hidden_size: int) -> int:
        """Return the width of the rows that routed experts take, and give back: the latent's, else the model's."""
        return self.latent_size or hidden_size

    def expert_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters of one routed expert."""
        width = self.row_size(hidden_size)
        return _network_parameters(width, self.expert_intermediate_size, gated=self.gated, bias=self.expert_bias)

    def latent_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters of the projections to and from the latent."""
        if self.latent_size is None:
            return 0
        bias = self.latent_size + hidden_size if self.shared_bias else 0
        return 2 * hidden_size * self.latent_size + bias

    def shared_parameters(self, hidden_size: int) -> int:
        """Return the parameters of router, shared experts with their gate, and latent: what every rank keeps."""
        outputs = self.num_experts + self.num_idle_experts
        router = hidden_size * outputs + (outputs if self.router_bias else 0)
        shared = hidden_size if self.shared_gate else 0
        if self.shared_intermediate_size:
            width = self.shared_intermediate_size
            shared += _network_parameters(hidden_size, width, gated=self.gated, bias=self.shared_bias)
        return router + shared + self.latent_parameters(hidden_size)

    def num_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters, the layer's norm excluded."""
        return self.shared_parameters(hidden_size) + self.num_experts * self.expert_parameters(hidden_size)

    def num_active_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters that one token uses."""
        return self.shared_parameters(hidden_size) + self.top_k * self.expert_parameters(hidden_size)


FeedForward = Annotated[DenseFeedForward | MoeFeedForward, Field(discriminator="kind")]
