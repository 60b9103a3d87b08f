"""The architectures that are read exactly: for each Hugging Face `model_type`, the function that reads its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from moiety.model.config import Config
from moiety.model.families.arctic import arctic
from moiety.model.families.dbrx import dbrx
from moiety.model.families.deepseek import deepseek_v2, deepseek_v3, deepseek_v32, glm_moe_dsa
from moiety.model.families.dense import llama, mistral, qwen2, qwen3
from moiety.model.families.generic import generic
from moiety.model.families.glm import glm4_moe
from moiety.model.families.gpt_oss import gpt_oss
from moiety.model.families.granite_hybrid import granitemoehybrid
from moiety.model.families.hunyuan import hunyuan_v1_moe
from moiety.model.families.llama4 import llama4
from moiety.model.families.longcat import longcat_flash
from moiety.model.families.minimax import minimax, minimax_m2
from moiety.model.families.mixtral import granitemoe, mixtral, olmoe
from moiety.model.families.nemotron_h import nemotron_h
from moiety.model.families.qwen_moe import qwen2_moe, qwen3_moe
from moiety.model.families.qwen_next import qwen3_5, qwen3_5_moe, qwen3_next
from moiety.model.families.step3 import step3
from moiety.model.families.traits import TRAITS
from moiety.model.model import Block

LayerReader = Callable[[Config], Sequence[Block]]

FAMILIES: dict[str, LayerReader] = {
    **{architecture: partial(generic, traits=traits) for architecture, traits in TRAITS.items()},
    "arctic": arctic,
    "dbrx": dbrx,
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "deepseek_v32": deepseek_v32,
    "glm4_moe": glm4_moe,
    "glm4v_moe_text": glm4_moe,
    "glm_moe_dsa": glm_moe_dsa,
    "gpt_oss": gpt_oss,
    "granitemoe": granitemoe,
    "granitemoehybrid": granitemoehybrid,
    "hunyuan_v1_moe": hunyuan_v1_moe,
    "kimi_k2": deepseek_v3,
    "llama": llama,
    "llama4": llama4,
    "llama4_text": llama4,
    "longcat_flash": longcat_flash,
    "minimax": minimax,
    "minimax_m1": minimax,
    "minimax_m2": minimax_m2,
    "minimax_text_01": minimax,
    "mistral": mistral,
    "mixtral": mixtral,
    "nemotron_h": nemotron_h,
    "olmoe": olmoe,
    "qwen2": qwen2,
    "qwen2_moe": qwen2_moe,
    "qwen3": qwen3,
    "qwen3_5": qwen3_5,
    "qwen3_5_moe": qwen3_5_moe,
    "qwen3_5_moe_text": qwen3_5_moe,
    "qwen3_5_text": qwen3_5,
    "qwen3_moe": qwen3_moe,
    "qwen3_next": qwen3_next,
    "qwen3_omni_moe_text": qwen3_moe,
    "qwen3_vl_moe_text": qwen3_moe,
    "step3_text": step3,
}

TIED_BY_DEFAULT = frozenset({"ernie4_5_moe", "grok-1"})
"""Architectures whose output head is the embedding where the file does not say."""
NORMS_WITH_BIAS = frozenset({"phimoe"})
"""Architectures whose last norm has a bias."""
