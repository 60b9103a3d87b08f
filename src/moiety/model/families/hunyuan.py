"""Tencent's Hunyuan mixtures of experts (A13B and its kin), whose files may say numbers layer by layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from moiety.model.families.generic import generic
from moiety.model.families.traits import TRAITS

if TYPE_CHECKING:
    from moiety.model.config import Config
    from moiety.model.model import Block

_BY_LAYER = ("moe_topk", "moe_intermediate_size", "num_shared_expert")


def hunyuan_v1_moe(config: Config) -> list[Block]:
    """Return the layers of a `hunyuan_v1_moe` model; a list of numbers must have the same one for all layers."""
    if config.flag("use_cla", default=False):
        raise config.error("cannot be planned yet: keys and values that layers share", "use_cla")
    same = {key: _same(config, key) for key in _BY_LAYER if isinstance(config.values.get(key), list)}
    return generic(replace(config, values={**config.values, **same}), TRAITS["hunyuan_v1_moe"])


def _same(config: Config, key: str) -> object:
    each = cast("list[object]", config.values[key])
    if not each or any(value != each[0] for value in each):
        raise config.error("must have the same number for all layers", key)
    return each[0]
