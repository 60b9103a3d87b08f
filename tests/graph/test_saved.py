"""Whose routers and norms are computed in FP32 is what transformers' modules do, in every architecture it knows."""

from __future__ import annotations

from typing import Any

import pytest

from moiety.graph.saved import FP32_NORMS, FP32_ROUTERS
from moiety.model.families.traits import TRAITS, Traits
from tests.model.configs import ANY_FAMILY, DENSE, EXPERTS_KEY, OF_TEXT_PART, TOP_K_KEY
from tests.model.oracle import configuration

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
overrides = pytest.importorskip("torch.overrides")

NUM_EXPERTS = 6
"""As many as no other product of these models has columns."""
LAYER_NORMS = {"phimoe"}
"""Architectures whose norms torch computes as one function."""
TEXT_PARTS = sorted({OF_TEXT_PART.get(each, each) for each in ANY_FAMILY} - DENSE | {"longcat_flash"})
FURTHER: dict[str, dict[str, Any]] = {
    "flex_olmo": {"pad_token_id": None},
    "granitemoehybrid": {"layer_types": ["full_attention"] * 2},
    "hunyuan_v1_moe": {"head_dim": 16},
    "longcat_flash": {"num_layers": 2, "zero_expert_num": 0, "moe_topk": 2, "head_dim": 8},
    "nemotron_h": {"layers_block_type": ["attention", "moe"]},
}


HIDDEN_SIZE = 64


class Noted(overrides.TorchFunctionMode):
    """Notes in which format a model computes its routers and norms."""

    def __init__(self) -> None:
        """Note nothing yet."""
        super().__init__()
        self.routers: set[tuple[bool, bool]] = set()
        """Of each product with a column an expert: whether its input is FP32, and its weight a parameter itself."""
        self.norms: set[bool] = set()
        """Of each product of rows with a vector as wide as the model: whether the rows are FP32."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - as torch calls it
        """Call the function, and note it where it is such a product."""
        result = function(*args, **(kwargs or {}))
        if function is torch.nn.functional.linear and result.shape[-1] == NUM_EXPERTS:
            self.routers.add((args[0].dtype == torch.float32, isinstance(args[1], torch.nn.Parameter)))
        if function in {torch.Tensor.mul, torch.mul}:
            for vector, rows in (args, args[::-1]):
                if getattr(vector, "shape", None) == (HIDDEN_SIZE,) and rows.shape[1:][-1:] == (HIDDEN_SIZE,):
                    self.norms.add(rows.dtype == torch.float32)
        return result


@pytest.mark.parametrize("model_type", TEXT_PARTS)
def test_routers_in_fp32_are_those_of_transformers(model_type: str) -> None:
    in_fp32 = model_type in FP32_ROUTERS
    assert noted(model_type).routers == {(in_fp32, not in_fp32 or TRAITS.get(model_type, Traits()).router_in_fp32)}


@pytest.mark.parametrize("model_type", sorted({*TEXT_PARTS, *DENSE} - LAYER_NORMS))
def test_norms_rounded_after_their_weight_are_those_of_transformers(model_type: str) -> None:
    assert noted(model_type).norms == {model_type in FP32_NORMS}


def noted(model_type: str) -> Noted:
    """Return what is noted of a small BF16 model."""
    shape = {"hidden_size": HIDDEN_SIZE, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    widths = dict.fromkeys(("intermediate_size", "moe_intermediate_size", "intermediate_size_mlp"), 32)
    latent = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
    experts = {EXPERTS_KEY.get(model_type, "num_local_experts"): NUM_EXPERTS, "n_routed_experts": NUM_EXPERTS}
    chosen = {TOP_K_KEY.get(model_type, "num_experts_per_tok"): 2, "n_group": 1, "topk_group": 1}
    experts |= {"n_shared_experts": 1, "first_k_dense_replace": 1}
    config = {**shape, **widths, **latent, **experts, **chosen, "vocab_size": 131, **FURTHER.get(model_type, {})}
    built = configuration({"model_type": model_type, **config})
    model = transformers.AutoModelForCausalLM.from_config(built, dtype=torch.bfloat16).eval()
    with Noted() as found, torch.no_grad():
        model(torch.arange(9)[None], use_cache=False)
    return found
