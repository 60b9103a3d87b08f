"""Parameters sharded over the ranks that would hold copies of them: FSDP2, layer by layer.

Dense ones over the attention groups of an instance, or of all; then the experts over the instances too.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from moiety.errors import InputError
from moiety.graph.layout import Layout
from moiety.graph.sharding import dense_shard_axis, is_fully_sharded
from moiety.runtime.conversion import COMPUTED_DTYPES
from moiety.runtime.training.experts import register_parameters
from moiety.runtime.training.shard_transfers import ShardTransfers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from moiety.runtime.comm.network import Network
    from moiety.runtime.experts.layer import ExpertLayer
    from moiety.runtime.seat import Seat
    from moiety.runtime.training.forward import TrainedModel


def shards_dense(seat: Seat) -> bool:
    """Whether the plan has dense parameters sharded, and several attention groups to shard them over."""
    return dense_shard_axis(_layout(seat)) is not None


def shards_experts(seat: Seat) -> bool:
    """Whether the plan has experts sharded, and several instances to shard them over."""
    return is_fully_sharded(_layout(seat))


def _layout(seat: Seat) -> Layout:
    return Layout(seat.strategy, seat.plan.options, seat.pool.schedule, training=True)


def shard(model: TrainedModel, seat: Seat, network: Network, expert_layers: Iterable[ExpertLayer]) -> ShardTransfers:
    """Leave each rank its rows of every dense parameter, and its part of every expert's; all ranks call it.

    Return what is sent for it from now on.

    A layer is gathered while the one before it computes, in forward and in backward, and let go after its use; its
    gradients are summed as they are scattered, in the plan's format of reductions, while the next one computes.
    Embedding, norm and head stay gathered from forward to backward. Experts that are not sharded are no module's
    parameters, and stay as they are. PyTorch's group of all ranks is made, and ends with the network.
    """
    network.register_all_ranks()
    mesh = _dense_mesh(seat, network.device.type)
    placement = None
    if shards_experts(seat):
        for layer in expert_layers:
            register_parameters(layer)
        placement = _expert_placement(seat, network.device.type, expert_layers)
    layers: list[Any] = list(model.layers)
    dtypes = seat.plan.options.dtypes
    reduced = COMPUTED_DTYPES[dtypes.critical]
    stays = COMPUTED_DTYPES[dtypes.activations] == reduced
    transfers = ShardTransfers(sums_stay=stays)
    policy = MixedPrecisionPolicy(reduce_dtype=reduced)
    for part in (*layers, model):
        fully_shard(part, mesh=mesh, mp_policy=policy, shard_placement_fn=placement)
        sharded = cast("Any", part)
        groups = _groups(part)
        for group in groups:
            # what set_custom_all_gather and its kin set, which take modules of one mesh alone
            group._all_gather_comm = _Transfer(transfers.allocate, transfers.gather)  # noqa: SLF001
            # the last group's gradients are the first that are scattered of a part
            allocate = transfers.allocate_for_next if group is groups[-1] else transfers.allocate
            group._reduce_scatter_comm = _Transfer(allocate, transfers.scatter)  # noqa: SLF001
        sharded.set_gradient_divide_factor(1.0)  # the loss is divided by the whole batch already
        sharded.set_force_sum_reduction_for_comms(True)
    for before, after in pairwise(layers):
        before.set_modules_to_forward_prefetch([after])
        after.set_modules_to_backward_prefetch([before])
    return transfers


def _dense_mesh(seat: Seat, device_type: str) -> DeviceMesh:
    """Return the mesh of the ranks that share out the dense parameters of this one."""
    strategy = seat.strategy
    ranks = torch.arange(seat.plan.num_gpus)
    if shards_experts(seat):
        return DeviceMesh(device_type, ranks.reshape(-1, strategy.tp), mesh_dim_names=("dp", "tp"))["dp"]
    shape = (strategy.instances, strategy.attn_dp, strategy.tp)
    return DeviceMesh(device_type, ranks.reshape(shape), mesh_dim_names=("instance", "attn_dp", "tp"))["attn_dp"]


def _expert_placement(
    seat: Seat, device_type: str, expert_layers: Iterable[ExpertLayer]
) -> Callable[[torch.nn.Parameter], Any]:
    """Return where FSDP2 shards a parameter that may be an expert's: over the instances, along an axis they divide.

    Raises InputError where torch shards a layer over one mesh only.
    """
    instances = seat.strategy.instances
    experts = {id(each) for layer in expert_layers for each in layer.parameters()}
    are_apart = seat.strategy.attn_dp > 1  # else the instances are the ranks that share out dense parameters
    over_instances = _over_instances(seat, device_type) if are_apart else None

    def placed(parameter: torch.nn.Parameter) -> Any:  # noqa: ANN401 - as FSDP2 takes it
        if id(parameter) not in experts:
            return None
        axis = next((each for each, size in enumerate(parameter.shape) if size % instances == 0), 0)
        return Shard(axis) if over_instances is None else over_instances(Shard(axis))

    return placed


def _over_instances(seat: Seat, device_type: str) -> Callable[[Shard], Any]:
    """Return how FSDP2 is told that a shard is one of the instances', where it takes the others' mesh by itself."""
    try:
        from torch.distributed.fsdp._fully_shard._fsdp_common import (  # noqa: PLC0415 - torch may not have them
            FSDPMeshInfo,
            ShardPlacementResult,
        )
    except ImportError:
        rule = f"PyTorch {torch.__version__} shards no layer's experts over other ranks than the rest of it"
        remedy = "install a newer PyTorch, or plan with --set fully_sharded=false"
        raise InputError(rule, field="options.fully_sharded", value=True, remedy=remedy) from None
    ranks = torch.arange(seat.plan.num_gpus).reshape(seat.strategy.instances, -1)
    mesh = DeviceMesh(device_type, ranks, mesh_dim_names=("instance", "stage"))["instance"]
    info: Any = FSDPMeshInfo(mesh, shard_mesh_dim=0)
    return lambda shard: ShardPlacementResult(shard, info)


class _Transfer:
    """A collective of ours as FSDP2 takes it."""

    def __init__(self, allocate: Callable[..., torch.Tensor], call: Callable[..., object]) -> None:
        self.allocate, self._call = allocate, call

    def __call__(self, **given: Any) -> object:  # noqa: ANN401 - tensors, group, kind of sum
        return self._call(**given)


class GatheredBytes:
    """The most bytes of gathered layers that are there at a time, looked at whenever a layer begins to compute."""

    def __init__(self, network: TrainedModel, expert_layers: Iterable[ExpertLayer]) -> None:
        self.dense = self.experts = 0
        self._layers = list(network.layers)
        self._experts = {id(each) for layer in expert_layers for each in layer.parameters()}
        for layer in self._layers:
            layer.register_forward_pre_hook(self._look)

    def _look(self, _module: torch.nn.Module, _inputs: object) -> None:
        found = [_gathered(group, self._experts) for layer in self._layers for group in _groups(layer)]
        dense, experts = (sum(each) for each in zip(*found, strict=True))
        self.dense, self.experts = max(self.dense, dense), max(self.experts, experts)


def _groups(module: Any) -> list[Any]:  # noqa: ANN401 - FSDP's module
    """Return what FSDP2 gathers at a time of a module: the parameters of each mesh."""
    state = module._get_fsdp_state()  # noqa: SLF001 - torch shows them nowhere else
    return getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]  # noqa: SLF001 - up to 2.11: one


def _gathered(group: Any, experts: set[int]) -> tuple[int, int]:  # noqa: ANN401 - FSDP's group
    """Return the bytes of a group's gathered parameters, dense and experts', the gathering under way among them."""
    total, parts, under_way = [0, 0], [0, 0], group._all_gather_result  # noqa: SLF001 - torch shows it nowhere else
    for each in group.fsdp_params:
        kind = int(id(each.sharded_param) in experts)
        parts[kind] += each.sharded_param.numel()
        total[kind] += sum(output.untyped_storage().nbytes() for output in each.all_gather_outputs)
    if under_way is not None:
        share = parts[1] / sum(parts)
        total[1] += int(share * under_way.all_gather_output.nbytes)
        total[0] += int((1 - share) * under_way.all_gather_output.nbytes)
    return total[0], total[1]
