"""The architectures that are read exactly: for each Hugging Face `model_type`, the function that reads its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moiety.model.config import Config
from moiety.model.families.deepseek import deepseek_v2, deepseek_v3, glm_moe_dsa
from moiety.model.families.dense import llama, mistral, qwen2, qwen3
from moiety.model.families.glm import glm4_moe
from moiety.model.families.gpt_oss import gpt_oss
from moiety.model.families.llama4 import llama4
from moiety.model.families.minimax import minimax, minimax_m2
from moiety.model.families.mixtral import granitemoe, mixtral, olmoe
from moiety.model.families.nemotron_h import nemotron_h
from moiety.model.families.qwen_moe import qwen2_moe, qwen3_moe
from moiety.model.families.qwen_next import qwen3_5, qwen3_5_moe, qwen3_next
from moiety.model.model import Block

LayerReader = Callable[[Config], Sequence[Block]]

FAMILIES: dict[str, LayerReader] = {
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "glm4_moe": glm4_moe,
    "glm_moe_dsa": glm_moe_dsa,
    "gpt_oss": gpt_oss,
    "granitemoe": granitemoe,
    "kimi_k2": deepseek_v3,
    "llama": llama,
    "llama4": llama4,
    "llama4_text": llama4,
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
}
