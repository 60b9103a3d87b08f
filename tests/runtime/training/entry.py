"""What ranks do in the tests of training: steps on a batch, then everything they hold, by name and place."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moiety.runtime.allocations import storage_bytes
from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.experts.build import ExpertUse
from moiety.runtime.model.load import load_model
from moiety.runtime.seat import seat_of
from moiety.runtime.training.pieces import local
from moiety.runtime.training.trainer import Trainer
from moiety.runtime.training.work import saved_bytes

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from moiety.plan import Plan
    from moiety.runtime.training.data import Row
    from moiety.runtime.training.pieces import Piece
    from tests.ranks import Place

Boxes = list[tuple[Any, ...]]
"""Of each box that a rank holds: name and shape of the whole, offsets, values."""


@contextmanager
def trainer(place: Place, number: int, plan: Plan, folder: Path, **options: Any) -> Generator[Trainer]:  # noqa: ANN401 - the trainer's
    """Give the trainer of this rank, one of several cases."""
    network = place.network(world_size=plan.num_gpus, generation=number, tiers=plan.cluster.tiers)
    try:
        model = load_model(seat_of(plan, place.rank), Checkpoint.open(str(folder)), network, use=ExpertUse(trains=True))
        yield Trainer(model, network, **{"learning_rate": 1e-3, **options})
    finally:
        network.close()


def train_cases(place: Place, cases: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """Return losses, first gradients and last parameters of every case, None where the rank has no part in it."""
    return [
        _trained(place, number, **case) if place.rank < case["plan"].num_gpus else None
        for number, case in enumerate(cases)
    ]


def _trained(
    place: Place,
    number: int,
    plan: Plan,
    folder: Path,
    batches: list[list[Row]],
    *,
    measures: bool = False,
    again: bool = False,
    **options: Any,  # noqa: ANN401 - the trainer's
) -> dict[str, Any]:
    with trainer(place, number, plan, folder, **options) as rank:
        if again:  # gradients of another batch are there before, and must not stay
            rank.gradients(batches[-1])
        losses = [rank.gradients(batches[0])]
        trained = [piece for piece in rank.pieces if piece.owner.requires_grad]
        gradients = [_box(piece, piece.owner.grad) for piece in trained]
        rank.update()
        for batch in batches[1:]:
            if rank.shard_transfers is not None:
                rank.shard_transfers.forget()
            losses.append(rank.step(batch))
        return {
            "losses": losses,
            "gradients": gradients,
            "parameters": [_box(piece, piece.owner) for piece in rank.pieces],
            "weight_bytes": rank.weight_bytes(),
            "imbalances": rank.imbalances,
            "transfers": None if rank.shard_transfers is None else rank.shard_transfers.made,
            "transferred": None if rank.shard_transfers is None else rank.shard_transfers.totals(),
            "masters": {
                (each.name.removeprefix("optimizer.").removesuffix(".master"), each.offsets): each.tensor.numpy().copy()
                for each in rank.state()
                if each.name.endswith(".master")
            },
            "saved": saved_bytes(rank, batches[0]) if measures else None,
        }


def saved_cases(place: Place, cases: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """Return what each case keeps for the backward pass here, a step's peak, and how often its tokens chose experts.

    `left` is what the measured step took and did not let go of, `kept` what it made and goes on holding. None where the
    rank has no part.
    """
    return [
        _saved(place, number, **case) if place.rank < case["plan"].num_gpus else None
        for number, case in enumerate(cases)
    ]


def _saved(place: Place, number: int, plan: Plan, folder: Path, rows: list[Row], **options: Any) -> dict[str, Any]:  # noqa: ANN401 - the trainer's
    with trainer(place, number, plan, folder, **options) as rank:
        saved = saved_bytes(rank, rows)
        rank.step(rows)  # which makes the optimizer's state
        _, found = rank.measured_step(rows)
        gradients = [local(each.grad) for each in rank.parameters() if each.grad is not None]
        kept = storage_bytes([*gradients, *rank.counts.values()])
        counts = {layer: each.tolist() for layer, each in rank.counts.items()}
        held = {**rank.weight_bytes(), "gradients": storage_bytes(gradients), "optimizer_state": rank.optimizer_bytes()}
        step = {"peak": found.peak_bytes, "left": found.left_bytes, "kept": kept, "counts": counts}
        return {**saved, **step, "held": held}


def _box(piece: Piece, tensor: Any) -> tuple[Any, ...]:  # noqa: ANN401 - a gradient may be missing
    return (*piece.key, piece.of(tensor).float().numpy().copy())


def handed_on(place: Place, folder: Path, plans: list[Plan], batches: list[list[Row]]) -> list[Boxes | None]:
    """Return the state after each plan of a chain, None where the rank has no part in it.

    The first trains and saves, each other one goes on from what the one before has saved, and saves it again.
    """
    found: list[Boxes | None] = []
    for number, plan in enumerate(plans):
        if place.rank >= plan.num_gpus:
            found.append(None)
            continue
        with trainer(place, number, plan, folder) as rank:
            if number == 0:
                for batch in batches:
                    rank.step(batch)
            else:
                state = folder.parent / f"state-{number - 1}"
                _await_file(state / ".metadata")
                rank.resume(state)
            rank.save(folder.parent / f"state-{number}")
            found.append([(each.name, each.whole, each.offsets, each.tensor.numpy().copy()) for each in rank.state()])
    return found


def _await_file(path: Path) -> None:
    """Wait for the ranks of the plan before: not all of this one's took part in it."""
    deadline_s = time.monotonic() + 50
    while not path.exists():
        assert time.monotonic() < deadline_s, path
        time.sleep(0.02)
