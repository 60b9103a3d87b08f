"""What every rank of `moiety train` does with its job: load its part, take the steps, report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moiety.files import MAX_DATA_BYTES, read_text
from moiety.runtime.allocations import storage_bytes
from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.conversion import integers
from moiety.runtime.experts.build import ExpertUse
from moiety.runtime.generation import network_of
from moiety.runtime.model.load import load_model
from moiety.runtime.seat import seat_of
from moiety.runtime.training.data import read_rows, rows_of_step
from moiety.runtime.training.pieces import local
from moiety.runtime.training.saved import counting_saved
from moiety.runtime.training.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from moiety.runtime.comm.network import Network
    from moiety.runtime.job import Job, Training
    from moiety.runtime.post import Post, Report
    from moiety.runtime.training.data import Row


def train(post: Post) -> Report:
    """Return this rank's report of the job: the loss of every step, and what the steps took of its memory."""
    job, rank = post.job, post.world.rank
    training = job.training
    assert training is not None, "a job of training says what to train on"
    rows = _rows(job, training)
    network = network_of(post)
    try:
        seat = seat_of(job.plan, rank)
        model = load_model(seat, Checkpoint.open(job.checkpoint), network, use=ExpertUse(trains=True))
        trainer = Trainer(
            model,
            network,
            learning_rate=training.learning_rate,
            checkpointed=checkpointed_layers(job),
            balance_rate=training.balance_rate,
        )
        if training.resume is not None:
            trainer.resume(Path(training.resume))
        trainer.world.barrier()
        report = take_steps(trainer, rows, training, post.progress)
        if training.save is not None:
            trainer.save(Path(training.save), keeps_previous=training.keeps_previous)
        return {**report, "first_step": trainer.num_steps - training.num_steps, "rank": _of_rank(trainer, network)}
    finally:
        network.close()


def take_steps(
    trainer: Trainer, rows: Sequence[Row], training: Training, progress: Callable[[int, int], None]
) -> Report:
    """Take the steps of a training; return their losses and what this rank's memory was measured to take.

    Allocations are counted in the second step, as the first makes the optimizer's state; in the only one, where there
    is no second. So are the tokens that have chosen each expert, which the peak depends on. What is sent for sharded
    parameters is told of every step: the counting takes time.
    """
    first = trainer.num_steps
    report: Report = {"saved_tensor_bytes": saved_bytes(trainer, rows_of_step(rows, first, training.batch_size))}
    losses: list[float] = []
    sharding: list[dict[str, float | None]] = []
    transfers = trainer.shard_transfers
    for step in range(training.num_steps):
        batch = rows_of_step(rows, first + step, training.batch_size)
        if transfers is not None:
            transfers.forget()
        start_s = time.perf_counter()
        if step == min(1, training.num_steps - 1):
            loss, allocations = trainer.measured_step(batch)
            report |= {"allocations_per_step": allocations.count, "peak_bytes": allocations.peak_bytes}
            report["expert_counts"] = {str(index): integers(each) for index, each in trainer.counts.items()}
        else:
            loss = trainer.step(batch)
        losses.append(loss)
        if transfers is not None:
            sharding.append({**transfers.totals(), "step_s": time.perf_counter() - start_s})
        progress(step + 1, training.num_steps)
    return {**report, "losses": losses, "load_imbalance": trainer.imbalances, "sharding": sharding}


def checkpointed_layers(job: Job) -> tuple[int, ...]:
    """Return the layers that the plan's memory has recompute their activations."""
    memory = job.plan.pools[0].memory
    assert memory is not None, "a plan of training is evaluated before it is run"
    return memory.checkpointed_layers


def saved_bytes(trainer: Trainer, rows: Sequence[Row]) -> dict[str, int]:
    """Return what a forward pass on a batch keeps for the backward pass on this rank.

    Without checkpointing; with all layers checkpointed; and with those that the plan says, as the steps do it.
    """

    def measured(layers: Collection[int]) -> int:
        with counting_saved(local(each) for each in trainer.parameters()) as saved:
            loss = trainer.loss(rows, layers)
        trainer.backward(loss)  # which lets go of what is kept, and of gathered layers
        trainer.forget_gradients()
        return saved.size_bytes

    without, with_all = measured(()), measured(tuple(trainer.model.layers))
    planned = {0: without, len(trainer.model.layers): with_all}.get(len(trainer.checkpointed))
    return {
        "without_checkpointing": without,
        "with_checkpointing": with_all,
        "as_planned": measured(trainer.checkpointed) if planned is None else planned,
    }


def _rows(job: Job, training: Training) -> tuple[Row, ...]:
    model = job.plan.model
    return read_rows(
        read_text(training.data, limit=MAX_DATA_BYTES),
        source=training.data,
        vocab_size=model.vocab_size,
        max_tokens=model.max_position_embeddings,
    )


def _of_rank(trainer: Trainer, network: Network) -> dict[str, Any]:
    """Return what one rank holds, by the kinds of the memory plan, and what it sent."""
    return {
        "held_bytes": {
            **trainer.weight_bytes(),
            "gradients": storage_bytes(local(each.grad) for each in trainer.parameters() if each.grad is not None),
            "optimizer_state": trainer.optimizer_bytes(),
        },
        "sent": network.traffic.snapshot(),
    }
