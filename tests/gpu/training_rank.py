"""What a rank does in the tests of training on GPUs: steps of each case's plan, one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from moiety.plan import Plan
from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.comm.network import Network
from moiety.runtime.experts.build import ExpertUse
from moiety.runtime.generation import device_of
from moiety.runtime.model.load import load_model
from moiety.runtime.seat import seat_of
from moiety.runtime.training.trainer import Trainer

if TYPE_CHECKING:
    from moiety.runtime.post import Post, Report


def losses(post: Post) -> Report:
    """Report the losses of every case's steps."""
    found: list[list[float]] = []
    for number, case in enumerate(json.loads(Path(post.job.checkpoint).read_text())):
        plan = Plan.model_validate(case["plan"])
        network = Network(
            rank=post.world.rank,
            world_size=plan.num_gpus,
            store=post.store,
            tiers=plan.cluster.tiers,
            device=device_of(post),
            generation=number,
        )
        model = load_model(
            seat_of(plan, post.world.rank), Checkpoint.open(case["folder"]), network, use=ExpertUse(trains=True)
        )
        trainer = Trainer(model, network, learning_rate=1e-3)
        found.append([trainer.step([tuple(row) for row in batch]) for batch in case["batches"]])
        network.close()
    return {"rank": {"cases": found}}
