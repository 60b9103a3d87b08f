"""Balance of a router's choices without an auxiliary loss: a bias per expert that steps towards equal loads.

Wang et al. 2024, arXiv 2408.15664, as DeepSeek-V3 (arXiv 2412.19437) trains: only the choice of experts sees the bias,
their weights do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moiety.runtime.comm.group import Group
    from moiety.runtime.model.rank_model import RankModel

BIAS = "e_score_correction_bias"
"""transformers' name for the bias that only the choice of experts sees."""


def router_biases(model: RankModel) -> dict[int, torch.Tensor]:
    """Return the bias [experts] of every layer whose router has one, by the layer's index."""
    found: dict[int, torch.Tensor] = {}
    for index in model.expert_layers:
        for name, tensor in (*model.layers[index].named_buffers(), *model.layers[index].named_parameters()):
            if name.rpartition(".")[2] == BIAS:
                found[index] = tensor
    return found


def total_loads(counts: Mapping[int, torch.Tensor], world: Group) -> dict[int, torch.Tensor]:
    """Return how often each expert was chosen over all ranks, [experts] float32 by layer; every rank calls it alike.

    The ranks of a tensor-parallel group count the same tokens, all as often.
    """
    together = torch.stack(list(counts.values())).float()
    return dict(zip(counts, world.all_reduce(together), strict=True))


def imbalance(loads: Mapping[int, torch.Tensor]) -> float:
    """Return the largest load of an expert over the mean, averaged over the layers."""
    ratios = [float(each.max() / each.mean()) for each in loads.values()]
    return sum(ratios) / len(ratios)


def balance(biases: Mapping[int, torch.Tensor], loads: Mapping[int, torch.Tensor], rate: float) -> None:
    """Raise the bias of every expert with less than the mean load by `rate`, and lower that of those with more."""
    for index, bias in biases.items():
        bias.add_(torch.sign(loads[index].mean() - loads[index]).to(bias.dtype), alpha=rate)
