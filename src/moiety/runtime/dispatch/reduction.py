"""The order in which expert outputs are added: experts of a rank, ranks of a node, nodes of a token; always FP32.

Floating-point addition is not associative, so every way of sending (flat, dedup, hierarchical) adds in this one order:
then all of them give the same bits.
"""

from __future__ import annotations

import torch


def segment_sum(rows: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums of runs of rows with equal keys, and the runs' keys.

    `rows` [n, hidden] are added from the first of a run to its last; `keys` [n] has equal ones beside each other.
    """
    count = keys.shape[0]
    if count == 0:
        return rows, keys
    first = torch.ones(count, dtype=torch.bool, device=keys.device)
    first[1:] = keys[1:] != keys[:-1]
    start = first.nonzero()[:, 0]
    if start.shape[0] == count:
        return rows, keys
    length = torch.diff(start, append=start.new_tensor([count]))
    total = rows.index_select(0, start)
    for step in range(1, int(length.max())):
        longer = (length > step).nonzero()[:, 0]
        total.index_add_(0, longer, rows.index_select(0, start[longer] + step))  # each run once: the order stays
    return total, keys[start]


def token_sums(
    rows: torch.Tensor, token: torch.Tensor, gpu: torch.Tensor, gpus_per_node: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of every token's rows over its GPUs, node by node, and the tokens.

    `rows` [n, hidden], `token` [n] and `gpu` [n] (of the stage) name each row's token and who computed it. Rows of one
    GPU and token are added first, in the order they come in.
    """
    width = int(gpu.max()) + 1 if gpu.numel() else 1
    order = torch.argsort(token * width + gpu, stable=True)
    rows, keys = segment_sum(rows.index_select(0, order), (token * width + gpu)[order])
    token, gpu = keys // width, keys % width
    node = gpu // gpus_per_node
    nodes = width // gpus_per_node + 1
    rows, keys = segment_sum(rows, token * nodes + node)
    return segment_sum(rows, keys // nodes)
