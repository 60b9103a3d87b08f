"""Back ends of experts: which one a layer gets, why not another, and that all compute the same."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from moiety.errors import InputError
from moiety.placement.serving.rule import serving_table
from moiety.runtime.block_scaled import BlockScaled, quantised, stacked
from moiety.runtime.dispatch.serving import SlotChooser
from moiety.runtime.dispatch.wire import Rows
from moiety.runtime.expansion import whole
from moiety.runtime.experts import backends, libraries
from moiety.runtime.experts.backends import BACKENDS, backend_for
from moiety.runtime.experts.layer import HeldLayer
from moiety.runtime.experts.libraries import aligned_places
from moiety.runtime.experts.local import LocalExperts
from moiety.runtime.experts.weights import ExpertWeights
from moiety.runtime.gates import Gate, known_gate
from moiety.runtime.telemetry import Silent
from tests.runtime.test_block_scaled import pairs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

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


def less_clamped_gate(middle: torch.Tensor) -> torch.Tensor:
    gate, up = middle[..., ::2].clamp(max=8.0), middle[..., 1::2].clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


def gelu_gate(middle: torch.Tensor) -> torch.Tensor:
    gate, up = middle.chunk(2, dim=-1)
    return torch.nn.functional.gelu(gate) * up


def weights_of(
    gate: Callable[[torch.Tensor], torch.Tensor] = silu_gate, width: int = 24, dtype: torch.dtype = torch.float32
) -> ExpertWeights:
    generator = torch.Generator().manual_seed(0)
    gate_up = (torch.randn(4, 2 * width, 32, generator=generator) / 6).to(dtype)
    down = (torch.randn(4, 32, width, generator=generator) / 5).to(dtype)
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


@pytest.mark.parametrize("gate", [clamped_gate, interleaved_gate, gelu_gate, less_clamped_gate])
def test_a_gate_that_is_another_is_told_from_the_known_ones(gate: Callable[[torch.Tensor], torch.Tensor]) -> None:
    assert known_gate(silu_gate) is Gate.SILU
    assert known_gate(gate) is None


def test_the_gates_of_transformers_are_recognized() -> None:
    with torch.device("meta"):
        qwen = Qwen3MoeExperts(transformers.Qwen3MoeConfig(**SIZES, moe_intermediate_size=8, num_experts=2))
        gpt_oss = GptOssExperts(transformers.GptOssConfig(**SIZES, num_local_experts=2))
    assert known_gate(qwen._apply_gate) is Gate.SILU  # noqa: SLF001 - transformers' name
    assert known_gate(gpt_oss._apply_gate) is Gate.GPT_OSS  # noqa: SLF001 - likewise


@needs_triton
@pytest.mark.parametrize("gate", [clamped_gate, interleaved_gate])
def test_a_back_end_by_name_that_cannot_compute_the_weights_is_refused(
    gate: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    with pytest.raises(InputError, match="two gates"):
        backend_for(weights_of(gate), "triton")


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="triton, grouped_mm"):
        backend_for(weights_of(), "cutlass")


def held_in_fp8(weights: ExpertWeights) -> tuple[ExpertWeights, ExpertWeights]:
    """Return the same in FP8, and what that stands for."""
    held: list[BlockScaled] = []
    for each in weights.plain:
        assert not each.is_contiguous(), "weights lie as transformers stores them"
        held.append(quantised(each.mT, each.dtype).mT)
    numbers = [torch.stack([whole(each[slot]) for slot in range(each.shape[0])]) for each in held]
    plain = [each.mT.contiguous().mT for each in numbers]
    return replace(weights, gate_up=held[0], down=held[1]), replace(weights, gate_up=plain[0], down=plain[1])


@needs_triton
def test_weights_in_fp8_whose_blocks_the_kernels_do_not_take_are_refused_by_name() -> None:
    weights, _ = held_in_fp8(weights_of())
    assert backend_for(weights, "triton").name == "triton"
    assert isinstance(weights.gate_up, BlockScaled)
    uneven = replace(weights.gate_up, row_bounds=(0, 10, 20, 32), scales=weights.gate_up.scales.expand(4, 3, -1))
    with pytest.raises(InputError, match="blocks of one size, 128 or more"):
        backend_for(replace(weights, gate_up=uneven), "triton")
    assert backend_for(replace(weights, gate_up=uneven)).name == "matmul"


def test_weights_in_fp8_are_computed_slot_by_slot_on_cpus() -> None:
    weights, _ = held_in_fp8(weights_of())
    assert backend_for(weights).name == "matmul"
    assert weights.size_bytes < weights_of().size_bytes / 3
    for name in set(BACKENDS) - {"matmul", "triton"}:
        with pytest.raises(InputError, match=f"expert_backend.*{name}.*no weights that are held in FP8"):
            backend_for(weights, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [3, 40, 600])
def test_weights_in_fp8_give_the_bits_of_what_they_stand_for(num_rows: int, dtype: torch.dtype) -> None:
    held, plain = held_in_fp8(weights_of(dtype=dtype))
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(num_rows, 32, generator=generator).to(dtype)
    slots = torch.randint(-1, 4, (num_rows, 2), generator=generator)
    rows = Rows(hidden, torch.arange(num_rows), slots, torch.rand(num_rows, 2, generator=generator))
    with torch.inference_mode():
        found, expected = (backend_for(each, "matmul").outputs(rows, each, Silent(), 0) for each in (held, plain))
    assert expected.abs().max() > 0.1
    assert torch.equal(found, expected)


def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="not installed"):
        backend_for(weights_of(), "triton")


def test_a_library_that_is_not_there_is_refused_with_its_name_and_never_chosen() -> None:
    for name, library in (("flashinfer", "FlashInfer"), ("deep_gemm", "DeepGEMM")):
        with pytest.raises(InputError, match=f"expert_backend.*{name}.*{library}.*leave the choice to Moiety"):
            backend_for(weights_of(dtype=torch.bfloat16), name)  # on a CPU, installed or not
        assert not BACKENDS[name].is_preferred(weights_of(dtype=torch.bfloat16))


def test_a_library_that_fails_as_it_is_imported_is_refused_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep_gemm.py").write_text("raise AssertionError('no CUDA home')")
    monkeypatch.syspath_prepend(tmp_path)
    with fresh_imports("deep_gemm"), pytest.raises(InputError, match="importing deep_gemm failed: no CUDA home"):
        backend_for(weights_of(dtype=torch.bfloat16), "deep_gemm")


def test_a_library_without_the_product_or_a_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep_gemm.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with fresh_imports("deep_gemm"):
        with pytest.raises(InputError, match="no m_grouped_bf16_gemm_nt_contiguous"):
            backend_for(weights_of(dtype=torch.bfloat16), "deep_gemm")
        sys.modules["deep_gemm"].m_grouped_bf16_gemm_nt_contiguous = None  # type: ignore[attr-defined]
        with pytest.raises(InputError, match=r"capability 9\.x and 10\.x"):
            backend_for(weights_of(dtype=torch.bfloat16), "deep_gemm")


@contextmanager
def fresh_imports(name: str) -> Generator[None]:
    """Forget what was found out about libraries, before and after."""

    def forget() -> None:
        libraries._imported.cache_clear()  # noqa: SLF001 - what a process finds out once, several tests try
        libraries._deep_gemm.cache_clear()  # noqa: SLF001 - likewise
        sys.modules.pop(name, None)

    forget()
    yield
    forget()


@pytest.mark.parametrize("name", ["flashinfer", "deep_gemm", "triton"])
def test_what_gives_no_gradients_is_refused_for_training(name: str) -> None:
    with pytest.raises(InputError, match="no gradients come back"):
        backend_for(weights_of(), name, trains=True)


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
    aligned=st.sampled_from((1, 4, 8)),
)
def test_aligned_rows_keep_their_order_and_begin_where_a_tile_does(counts: list[int], aligned: int) -> None:
    slot, place, room = aligned_places(torch.tensor(counts), sum(counts), aligned)
    assert slot.tolist() == [each for each, count in enumerate(counts) for _ in range(count)]
    low = 0
    places = place.tolist()
    for count in counts:
        mine, places = places[:count], places[count:]
        assert mine == list(range(low, low + count))
        low += -(-count // aligned) * aligned
    assert low <= room
    assert room % aligned == 0


@needs_triton
def test_a_layer_gives_the_same_sums_by_every_back_end() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(9, 32, generator=generator)
    experts = torch.rand(9, 6, generator=generator).topk(3, dim=1).indices  # two of the six live on another rank
    shares = torch.rand(9, 3, generator=generator)
    table = serving_table(np.arange(6), num_experts=6, num_gpus=1, num_nodes=1)
    chooser = SlotChooser(torch.arange(6), table, home=0, first_token=0, token_step=1)
    routed = LocalExperts(first_slot=1, num_slots=4, holds_all=False, recorder=Silent())
    weights = weights_of()
    able = [name for name, each in BACKENDS.items() if each.obstacle(weights) is None]
    assert {"triton", "grouped_mm", "matmul"} <= set(able)
    sums = [
        routed(hidden, experts, shares, HeldLayer(0, chooser, weights, backend_for(weights, name))) for name in able
    ]
    for each in sums[1:]:
        torch.testing.assert_close(sums[0], each, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [3, 12, 24])
def test_every_width_is_computed_and_has_gradients(width: int, dtype: torch.dtype) -> None:
    weights = weights_of(width=width, dtype=dtype)
    gate_up, down = (each.clone().requires_grad_() for each in (weights.gate_up, weights.down))
    weights = replace(weights, gate_up=gate_up, down=down)
    backend = backend_for(weights, trains=True)
    assert backend.name == ("matmul" if width * weights.down.element_size() % 16 else "grouped_mm")
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(40, 32, generator=generator).to(dtype)
    slots = torch.randint(1, 4, (40, 1), generator=generator)  # none for the first
    rows = Rows(hidden, torch.arange(40), slots, torch.ones(40, 1))
    out = backend.outputs(rows, weights, Silent(), 0)
    out.sum().backward()
    expected = torch.stack(
        [silu_gate(row @ gate_up[slot]) @ down[slot] for row, slot in zip(hidden, slots[:, 0], strict=True)]
    )
    rounding = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(out, expected.float(), rtol=rounding, atol=rounding)
    assert gate_up.grad is not None
    assert not gate_up.grad[0].any()
    assert gate_up.grad[1:].any(dim=(1, 2)).all()


@pytest.mark.parametrize("num_rows", [3, 40, 600])
def test_weights_in_mxfp4_are_computed_slot_by_slot_to_the_bits_of_what_they_stand_for(num_rows: int) -> None:
    weights = weights_of(width=32)
    held = [stacked([pairs_of(one) for one in each.mT]).mT for each in weights.plain]
    numbers = [torch.stack([whole(each.mT[slot]) for slot in range(4)]).mT for each in held]
    of_codes, plain = (replace(weights, gate_up=gate_up, down=down) for gate_up, down in (held, numbers))
    assert backend_for(of_codes).name == "matmul"
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(num_rows, 32, generator=generator)
    slots = torch.randint(-1, 4, (num_rows, 2), generator=generator)
    rows = Rows(hidden, torch.arange(num_rows), slots, torch.rand(num_rows, 2, generator=generator))
    with torch.inference_mode():
        found, expected = (backend_for(each, "matmul").outputs(rows, each, Silent(), 0) for each in (of_codes, plain))
    assert expected.abs().max() > 0.1
    assert torch.equal(found, expected)
