"""What ranks do in the tests of training: steps on a batch, then everything they hold, by name and place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.model.load import load_model
from moiety.runtime.seat import seat_of
from moiety.runtime.training.trainer import Trainer

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.plan import Plan
    from moiety.runtime.comm.network import Network
    from moiety.runtime.training.data import Row
    from tests.ranks import Place


def trainer(network: Network, plan: Plan, folder: Path, **options: Any) -> Trainer:  # noqa: ANN401 - the trainer's
    """Return the trainer of this rank."""
    model = load_model(seat_of(plan, network.rank), Checkpoint.open(str(folder)), network, trains=True)
    return Trainer(model, network, **{"learning_rate": 1e-3, **options})


def train_cases(place: Place, cases: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """Return losses, first gradients and last parameters of every case, None where the rank has no part in it."""
    return [_trained(place, number, **case) for number, case in enumerate(cases)]


def _trained(
    place: Place,
    number: int,
    plan: Plan,
    folder: Path,
    batches: list[list[Row]],
    **options: Any,  # noqa: ANN401
) -> dict[str, Any] | None:
    if place.rank >= plan.num_gpus:
        return None
    network = place.network(world_size=plan.num_gpus, generation=number, tiers=plan.cluster.tiers)
    try:
        rank = trainer(network, plan, folder, **options)
        losses = [rank.gradients(batches[0])]
        gradients = [
            (*piece.key, piece.of(piece.owner.grad).numpy().copy())
            for piece in rank.pieces
            if piece.owner.grad is not None
        ]
        rank.optimizer.step()
        losses += [rank.step(batch) for batch in batches[1:]]
        parameters = [(*piece.key, piece.of(piece.owner).numpy().copy()) for piece in rank.pieces]
        return {"losses": losses, "gradients": gradients, "parameters": parameters}
    finally:
        network.close()
