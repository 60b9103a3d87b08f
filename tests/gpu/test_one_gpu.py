"""One GPU gives transformers' own tokens there, for every architecture; BF16 stays within its rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.comm.network import Network
from moiety.runtime.engine import Engine
from moiety.runtime.model.load import load_model
from moiety.runtime.overlap import Turns
from moiety.runtime.seat import seat_of
from tests.runtime.checkpoints import CONFIGS, greedy_continuation, reference_model, save_checkpoint
from tests.runtime.fp8_checkpoints import save_dequantised, save_fp8
from tests.runtime.model.cases import NEW, PROMPTS
from tests.runtime.model.entry import first_logits
from tests.runtime.plans import plan_of

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.dtypes import Dtype


def on_gpu(folder: Path, dtype: Dtype, weights: Dtype | None = None) -> tuple[list[list[int]], torch.Tensor, set[str]]:
    """Return tokens, the first prompt's logits, and what computed the experts."""
    plan, turns = plan_of(folder, "tp1", dtype=dtype, weights=weights), Turns()
    store = torch.distributed.HashStore()
    network = Network(
        rank=0, world_size=1, store=store, tiers=plan.cluster.tiers, device=torch.device("cuda", 0), address="127.0.0.1"
    )
    try:
        model = load_model(seat_of(plan, 0), Checkpoint.open(folder), network, turns=turns)
        tokens = Engine(model, network, turns).generate(PROMPTS, max_new_tokens=NEW)
        logits = first_logits(model, PROMPTS[0])
        assert logits is not None
        return tokens, torch.tensor(logits), {each.held.backend.name for each in model.expert_layers.values()}
    finally:
        network.close()


def first_of(reference: Any) -> torch.Tensor:  # noqa: ANN401 - transformers' class
    """Return the logits after the first prompt."""
    with torch.no_grad():
        return reference(torch.tensor([PROMPTS[0]], device=reference.device)).logits[0, -1].float().cpu()


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_float32_gives_the_tokens_and_logits_of_transformers(name: str, tmp_path: Path) -> None:
    folder = save_checkpoint(name, tmp_path / name)
    tokens, logits, _ = on_gpu(folder, "fp32")
    reference = reference_model(folder).cuda()
    torch.testing.assert_close(logits, first_of(reference), rtol=0, atol=1e-5)
    assert tokens == [greedy_continuation(reference, prompt, NEW) for prompt in PROMPTS]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_bfloat16_stays_within_its_rounding_of_transformers(name: str, tmp_path: Path) -> None:
    folder = save_checkpoint(name, tmp_path / name, dtype=torch.bfloat16)
    _, logits, backends = on_gpu(folder, "bf16")
    assert backends == {"triton"}
    exact = first_of(reference_model(folder, torch.float32).cuda())
    rounded = first_of(reference_model(folder, torch.bfloat16).cuda())
    assert (logits - exact).abs().max() <= 2 * (rounded - exact).abs().max()


@pytest.mark.parametrize("name", ["deepseek_v3", "gpt_oss"])
def test_weights_in_fp8_stay_within_the_rounding_of_the_dequantised_checkpoint(name: str, tmp_path: Path) -> None:
    plain = save_checkpoint(name, tmp_path / "plain", dtype=torch.bfloat16)
    folder, told = save_fp8(plain, tmp_path / "fp8"), save_dequantised(plain, tmp_path / "dequantised")
    _, logits, backends = on_gpu(folder, "bf16", "fp8")
    assert backends == {"triton"}
    exact = first_of(reference_model(told, torch.float32).cuda())
    rounded = first_of(reference_model(told, torch.bfloat16).cuda())
    assert (logits - exact).abs().max() <= 2 * (rounded - exact).abs().max()
