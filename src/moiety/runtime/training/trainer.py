"""Trainer: a rank's part of the model and its optimizer, stepped together with all other ranks'."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from moiety.errors import InputError, OutputError
from moiety.files import replacing_folder
from moiety.runtime.allocations import Allocations, allocations_of, storage_bytes
from moiety.runtime.comm.priority import Priority
from moiety.runtime.training.balance import balance, imbalance, router_biases, total_loads
from moiety.runtime.training.experts import TrainedExperts, make_trainable
from moiety.runtime.training.forward import TrainedModel
from moiety.runtime.training.gradients import shared_copies
from moiety.runtime.training.masters import Masters
from moiety.runtime.training.pieces import local, pieces_of
from moiety.runtime.training.sharding import GatheredBytes, shard, shards_dense
from moiety.runtime.training.state import Entry, NotWrittenError, read_state, write_state
from moiety.runtime.training.states import previous_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from moiety.runtime.comm.network import Network
    from moiety.runtime.model.rank_model import RankModel
    from moiety.runtime.training.data import Row
    from moiety.runtime.training.shard_transfers import ShardTransfers

_STEP = "step"
_MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's names for what it keeps of a parameter."""


class Trainer:
    """Fine-tunes a model that gradients come back through; every rank makes one and calls it alike."""

    def __init__(
        self,
        model: RankModel,
        network: Network,
        *,
        learning_rate: float,
        checkpointed: Collection[int] = (),
        balance_rate: float | None = None,
    ) -> None:
        """Make the optimizer, and shard what the plan shards; the options are as in `Training`.

        Layers of `checkpointed` compute their activations again in the backward pass.
        """
        self.model = model
        self.checkpointed = frozenset(checkpointed)
        self.world = network.group(tuple(range(model.seat.plan.num_gpus)), "world", Priority.REDUCTION)
        """All ranks of the plan."""
        for layer in model.expert_layers.values():
            make_trainable(layer)
        self.network = TrainedModel(model).requires_grad_(requires_grad=True)
        """The rank's part of the model, from token ids to its part of the loss."""
        self.gathered = None
        """What sharded layers take while they are gathered; None where the plan shards nothing."""
        self.shard_transfers: ShardTransfers | None = None
        """What is sent for sharded layers; None likewise."""
        if shards_dense(model.seat):
            experts = model.expert_layers.values()
            self.shard_transfers = shard(self.network, model.seat, network, experts)
            self.gathered = GatheredBytes(self.network, experts)
        self.pieces = pieces_of(model)
        """What the rank holds of every parameter and persistent buffer."""
        self._copies = shared_copies(self.pieces, self.world, network)
        self._masters = Masters(self.parameters())
        dense, experts = (
            [self._masters.of(each) for each in part] for part in (self._dense_parameters(), self._expert_parameters())
        )
        self.optimizer = torch.optim.AdamW(
            [{"params": dense}, {"params": experts}],  # sharded ones and others are stepped apart
            lr=learning_rate,
            weight_decay=0.0,
        )
        self.counts: dict[int, torch.Tensor] = {}
        """[experts] by layer: how often the router chose each for this attention group's tokens of the last step."""
        self._step = torch.zeros(1, dtype=torch.int64)
        self._balance_rate, self._biases = balance_rate, router_biases(model)
        self.imbalances: list[float] = []
        """Of each step whose routers were balanced: the largest load of an expert over the mean, mean of the layers."""

    def parameters(self) -> list[torch.Tensor]:
        """Return every trained parameter of the rank, the experts' last."""
        return [*self._dense_parameters(), *self._expert_parameters()]

    def _dense_parameters(self) -> list[torch.Tensor]:
        experts = {id(each) for each in self._expert_parameters()}
        return [each for each in self.network.parameters() if id(each) not in experts]

    def _expert_parameters(self) -> list[torch.Tensor]:
        layers = self.model.expert_layers.values()
        return [tensor for layer in layers for tensor in TrainedExperts.of(layer).stored.values()]

    def weight_bytes(self) -> dict[str, int]:
        """Return the bytes of the rank's parameters by the kinds of the memory plan, sharded ones as held in a step."""
        network = self.network
        parts = [part for part in (network.embedding, network.head) if part is not None]
        ends = list({id(each): each for part in parts for each in part.parameters()}.values())
        whole = {id(each) for each in ends}
        dense = storage_bytes(local(each) for each in self._dense_parameters() if id(each) not in whole)
        experts, gathered = storage_bytes(local(each) for each in self._expert_parameters()), self.gathered
        return {
            "dense_weights": dense + (0 if gathered is None else gathered.dense),
            "expert_weights": experts + (0 if gathered is None else gathered.experts),
            "embedding_and_head": sum(each.numel() * each.element_size() for each in ends),
        }

    def held(self) -> list[torch.Tensor]:
        """Return every tensor that the rank keeps from step to step: parameters, gradients, the optimizer's state."""
        state = [each for part in self.optimizer.state.values() for each in part.values()]
        gradients = [each.grad for each in self.parameters() if each.grad is not None]
        return [local(each) for each in (*self.parameters(), *gradients, *state, *self._masters.held())]

    def optimizer_bytes(self) -> int:
        """Return the bytes of the optimizer's state on this rank: moments, and masters where weights are not FP32."""
        moments = [each for part in self.optimizer.state.values() for each in part.values() if each.dim()]
        return storage_bytes(local(each) for each in (*moments, *self._masters.held()))

    def state(self) -> list[Entry]:
        """Return what goes on from step to step: parameters, buffers, the optimizer's moments and masters, the step.

        They are views of the rank's own memory. Moments that no step has made yet are zeros.
        """
        entries = [Entry(_STEP, (1,), (0,), self._step)]
        for piece in self.pieces:
            whole = self.model.shapes[piece.name]
            entries.append(Entry(piece.name, whole, piece.offsets, piece.of(piece.owner)))
            if not piece.owner.requires_grad:
                continue
            stepped = self._masters.of(piece.owner)
            moments = self.optimizer.state[stepped]
            if not moments:
                moments |= {"step": torch.zeros(()), **{each: torch.zeros_like(stepped) for each in _MOMENTS}}
            kept = {each: moments[each] for each in _MOMENTS}
            if stepped is not piece.owner:
                kept["master"] = stepped
            entries += [
                Entry(f"optimizer.{piece.name}.{name}", whole, piece.offsets, piece.of(tensor))
                for name, tensor in kept.items()
            ]
        return entries

    def save(self, folder: Path, *, keeps_previous: bool = True) -> None:
        """Write the state of all ranks to `folder`, which appears whole or not at all; all ranks call it.

        The folder is the same one for all ranks. What it held before becomes the previous state, unless that is known
        to be damaged. Raises OutputError where it cannot be written, InputError for one that nobody could go on from.
        """
        self._check_finite()
        is_first = self.world.index == 0
        kept = previous_of(folder) if keeps_previous else None
        try:
            with replacing_folder(folder, previous=kept) if is_first else nullcontext() as fresh:
                beside = cast("list[str]", self.world.gather_objects(str(fresh)))[0]
                write_state(self.state(), Path(beside), self.world, step=self.num_steps)
        except NotWrittenError as error:
            self.world.barrier()  # all raise when what there was of it has been removed
            raise OutputError(f"{folder}: cannot be written: {error}; nothing was changed") from None
        self.world.barrier()

    def _check_finite(self) -> None:
        """Raise InputError, on every rank, where a parameter or a moment of any of them is not finite."""
        broken = [entry.name for entry in self.state() if not bool(torch.isfinite(entry.tensor).all())]
        first = next((names[0] for names in cast("list[list[str]]", self.world.gather_objects(broken)) if names), None)
        if first is not None:
            rule = f"holds values that are not finite after step {self.num_steps}"
            raise InputError(rule, field=first, remedy="lower --lr; nothing was saved")

    def resume(self, folder: Path) -> None:
        """Go on from a state that was saved under any division; InputError where it is not one of this model."""
        read_state(self.state(), folder)
        for moments in self.optimizer.state.values():
            moments["step"].fill_(self.num_steps)

    @property
    def num_steps(self) -> int:
        """Steps that the model has been trained for, those before the state was saved included."""
        return int(self._step)

    def loss(self, rows: Sequence[Row], checkpointed: Collection[int] | None = None) -> torch.Tensor:
        """Return this rank's part of the mean loss of a batch, of which its attention group takes a consecutive part.

        The sum over all ranks is the batch's mean next-token cross-entropy.
        """
        seat = self.model.seat
        share = len(rows) // seat.num_attention_groups
        first = seat.attention_group * share
        token_ids = torch.tensor(rows[first : first + share], dtype=torch.int64, device=self.model.device)
        layers = self.checkpointed if checkpointed is None else checkpointed
        return self.network(token_ids, num_rows=len(rows), checkpointed=layers)

    def gradients(self, rows: Sequence[Row]) -> float:
        """Fill the gradient of every parameter with that of the batch's mean loss; return the loss."""
        self.forget_gradients()
        for layer in self.model.expert_layers.values():
            layer.counts.zero_()
        loss = self.loss(rows)
        self.counts = {index: layer.counts.clone() for index, layer in self.model.expert_layers.items()}
        self.backward(loss)  # which may compute, and count, again
        for parameter in self.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for copies in self._copies:
            copies.reduce()
        return float(self.world.all_reduce(loss.detach().clone()))

    def forget_gradients(self) -> None:
        """Let go of the gradient of every parameter; the optimizer knows masters alone where there are any."""
        for parameter in self.parameters():
            parameter.grad = None

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of this rank's part of a loss; every rank calls it, as it takes part in exchanges."""
        torch.autograd.backward(loss)
        if self.shard_transfers is not None:
            self.shard_transfers.finish()

    def update(self) -> None:
        """Step every parameter by its gradient."""
        self._masters.take_gradients()
        self.optimizer.step()  # pyright: ignore[reportUnknownMemberType] - torch leaves it untyped
        self._masters.give_back()
        self._step += 1

    def step(self, rows: Sequence[Row]) -> float:
        """Take one optimizer step on a batch; return the loss before it.

        Raises InputError, on every rank, for a loss that is no number: what its gradients would make of the parameters
        is not worth keeping.
        """
        loss = self.gradients(rows)
        if not math.isfinite(loss):
            rule = "is not finite: weights are too large, or earlier steps were"
            remedy = "lower --lr, or begin with other weights; nothing was saved"
            raise InputError(rule, field=f"loss of step {self.num_steps + 1}", value=loss, remedy=remedy)
        self.update()
        if self._balance_rate is not None:
            loads = total_loads({index: self.counts[index] for index in self._biases}, self.world)
            self.imbalances.append(imbalance(loads))
            balance(self._biases, loads, self._balance_rate)
        return loss

    def measured_step(self, rows: Sequence[Row]) -> tuple[float, Allocations]:
        """Take one optimizer step on a batch; return the loss before it, and what the step allocated."""
        self.forget_gradients()  # or the step would let go of gradients from before it
        return allocations_of(lambda: self.step(rows), storage_bytes(self.held()), self.model.device)
