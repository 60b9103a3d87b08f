"""Dense parameters sharded over the attention groups that would hold copies of them: FSDP2, layer by layer."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from moiety.runtime.conversion import COMPUTED_DTYPES
from moiety.runtime.training.shard_transfers import ShardTransfers

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.runtime.comm.network import Network
    from moiety.runtime.seat import Seat
    from moiety.runtime.training.forward import TrainedModel


def shards_dense(seat: Seat) -> bool:
    """Whether the plan has dense parameters sharded, and several attention groups to shard them over."""
    return seat.plan.options.dense_parameter_sharding and seat.strategy.attn_dp > 1


def shard_dense(model: TrainedModel, seat: Seat, network: Network) -> ShardTransfers:
    """Leave each rank of an attention data-parallel group its rows of every dense parameter; all ranks call it.

    Return what is sent for it from now on.

    A layer is gathered while the one before it computes, in forward and in backward, and let go after its use; its
    gradients are summed as they are scattered, in the plan's format of reductions, while the next one computes.
    Embedding, norm and head stay gathered from forward to backward. Experts, which no module registers as parameters,
    stay as they are. PyTorch's group of all ranks is made, and ends with the network.
    """
    strategy = seat.strategy
    network.register_all_ranks()
    ranks = torch.arange(seat.plan.num_gpus).reshape(strategy.instances, strategy.attn_dp, strategy.tp)
    mesh = DeviceMesh(network.device.type, ranks, mesh_dim_names=("instance", "attn_dp", "tp"))["attn_dp"]
    layers: list[Any] = list(model.layers)
    dtypes = seat.plan.options.dtypes
    reduced = COMPUTED_DTYPES[dtypes.critical]
    transfers = ShardTransfers(sums_stay=COMPUTED_DTYPES[dtypes.activations] == reduced)
    for part in (*layers, model):
        fully_shard(part, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=reduced))
        sharded = cast("Any", part)
        sharded.set_custom_all_gather(_Transfer(transfers.allocate, transfers.gather))
        sharded.set_custom_reduce_scatter(_Transfer(transfers.allocate, transfers.scatter))
        sharded.set_gradient_divide_factor(1.0)  # the loss is divided by the whole batch already
        sharded.set_force_sum_reduction_for_comms(True)
    for before, after in pairwise(layers):
        before.set_modules_to_forward_prefetch([after])
        after.set_modules_to_backward_prefetch([before])
    return transfers


class _Transfer:
    """A collective of ours as FSDP2 takes it."""

    def __init__(self, allocate: Callable[..., torch.Tensor], call: Callable[..., object]) -> None:
        self.allocate, self._call = allocate, call

    def __call__(self, **given: Any) -> object:  # noqa: ANN401 - tensors, group, kind of sum
        return self._call(**given)


class GatheredBytes:
    """The most bytes of gathered layers that are there at a time, looked at whenever a layer begins to compute."""

    def __init__(self, network: TrainedModel) -> None:
        self.most = 0
        self._layers = list(network.layers)
        for layer in self._layers:
            layer.register_forward_pre_hook(self._look)

    def _look(self, _module: torch.nn.Module, _inputs: object) -> None:
        self.most = max(self.most, sum(_gathered(layer) for layer in self._layers))


def _gathered(layer: Any) -> int:  # noqa: ANN401 - FSDP's module
    """Return the bytes of a layer's gathered parameters, and of the gathering for it that is under way."""
    total = 0
    state = layer._get_fsdp_state()  # noqa: SLF001 - torch shows them nowhere else
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]  # noqa: SLF001 - up to 2.11: one
    for group in groups:
        for parameter in group.fsdp_params:
            total += sum(each.untyped_storage().nbytes() for each in parameter.all_gather_outputs)
        if group._all_gather_result is not None:  # noqa: SLF001 - as above
            total += group._all_gather_result.all_gather_output.nbytes  # noqa: SLF001 - as above
    return total
