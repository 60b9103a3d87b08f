"""Back ends of experts: which one a layer gets, why not another, and that all compute the same."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import transformers
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from moiety.errors import InputError
from moiety.placement.serving.rule import serving_table
from moiety.runtime.dispatch.serving import SlotChooser
from moiety.runtime.experts import backends
from moiety.runtime.experts.backends import BACKENDS, backend_for, is_silu_gate
from moiety.runtime.experts.layer import HeldLayer, LocalExperts
from moiety.runtime.experts.weights import ExpertWeights
from moiety.runtime.telemetry import Silent

if TYPE_CHECKING:
    from collections.abc import Callable

has_triton = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not has_triton, reason="the kernels are Triton's")

SIZES = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 8}


def silu_gate(middle: torch.Tensor) -> torch.Tensor:
    gate, up = middle.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def clamped_gate(middle: torch.Tensor) -> torch.Tensor:
    return silu_gate(middle.clamp(max=100.0))


def interleaved_gate(middle: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(middle[..., ::2]) * middle[..., 1::2]


def gelu_gate(middle: torch.Tensor) -> torch.Tensor:
    gate, up = middle.chunk(2, dim=-1)
    return torch.nn.functional.gelu(gate) * up


def weights_of(gate: Callable[[torch.Tensor], torch.Tensor] = silu_gate) -> ExpertWeights:
    generator = torch.Generator().manual_seed(0)
    gate_up = torch.randn(4, 48, 32, generator=generator) / 6
    down = torch.randn(4, 32, 24, generator=generator) / 5
    return ExpertWeights(gate_up.transpose(1, 2), down.transpose(1, 2), None, None, gate)


def test_cpus_get_torchs_products() -> None:
    assert backend_for(weights_of()).name == "grouped_mm"


@needs_triton
def test_gpus_get_the_kernels_where_these_know_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    preferred = replace(BACKENDS["triton"], is_preferred=lambda _: True)  # as on a GPU
    monkeypatch.setitem(backends.BACKENDS, "triton", preferred)
    assert backend_for(weights_of()).name == "triton"
    assert backend_for(weights_of(clamped_gate)).name == "grouped_mm"
    assert backend_for(weights_of(), "grouped_mm").name == "grouped_mm"


@pytest.mark.parametrize("gate", [clamped_gate, interleaved_gate, gelu_gate])
def test_a_gate_that_is_not_silu_is_told_from_it(gate: Callable[[torch.Tensor], torch.Tensor]) -> None:
    assert is_silu_gate(silu_gate)
    assert not is_silu_gate(gate)


def test_the_gates_of_transformers_are_recognized() -> None:
    with torch.device("meta"):
        qwen = Qwen3MoeExperts(transformers.Qwen3MoeConfig(**SIZES, moe_intermediate_size=8, num_experts=2))
        gpt_oss = GptOssExperts(transformers.GptOssConfig(**SIZES, num_local_experts=2))
    assert is_silu_gate(qwen._apply_gate)  # noqa: SLF001 - transformers' name
    assert not is_silu_gate(gpt_oss._apply_gate)  # noqa: SLF001 - likewise


@needs_triton
@pytest.mark.parametrize("gate", [clamped_gate, interleaved_gate])
def test_a_back_end_by_name_that_cannot_compute_the_weights_is_refused(
    gate: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    with pytest.raises(InputError, match="one gate"):
        backend_for(weights_of(gate), "triton")
    biased = replace(weights_of(), down_bias=torch.zeros(4, 32))
    with pytest.raises(InputError, match="biases"):
        backend_for(biased, "triton")


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="triton, grouped_mm"):
        backend_for(weights_of(), "cutlass")


def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="not installed"):
        backend_for(weights_of(), "triton")


@needs_triton
def test_a_layer_gives_the_same_sums_by_every_back_end() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(9, 32, generator=generator)
    experts = torch.rand(9, 6, generator=generator).topk(3, dim=1).indices  # two of the six live on another rank
    given = torch.rand(9, 3, generator=generator)
    table = serving_table(np.arange(6), num_experts=6, num_gpus=1, num_nodes=1)
    chooser = SlotChooser(torch.arange(6), table, home=0, first_token=0, token_step=1)
    routed = LocalExperts(first_slot=1, num_slots=4, recorder=Silent())
    weights = weights_of()
    sums = [
        routed(hidden, experts, given, HeldLayer(0, chooser, weights, backend_for(weights, name))) for name in BACKENDS
    ]
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-4, atol=1e-6)
