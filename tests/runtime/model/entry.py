"""What ranks do in the equality tests: a list of cases, one after the other, in the same processes."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import TCPStore

from moiety.plan import Plan
from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.comm.network import Network
from moiety.runtime.engine import Engine
from moiety.runtime.generation import device_of
from moiety.runtime.model.batch import Segment, packed
from moiety.runtime.model.kv_cache import KvCache
from moiety.runtime.model.load import load_model
from moiety.runtime.overlap import Turns
from moiety.runtime.sampling import Sampling
from moiety.runtime.seat import seat_of

if TYPE_CHECKING:
    from torch.distributed import Store

    from moiety.runtime.model.rank_model import RankModel
    from moiety.runtime.post import Post, Report
    from tests.ranks import Place


def run_cases(post: Post) -> Report:
    """Run every case of the file that stands in the place of the checkpoint; what a job on GPUs names."""
    cases = json.loads(Path(post.job.checkpoint).read_text())
    return {"rank": {"cases": reports_of(cases, post.world.rank, post.store, device_of(post))}}


def run_on_cpu(place: Place, cases: list[dict[str, Any]]) -> list[object]:
    """Run every case in a rank of `tests.ranks`."""
    store = TCPStore(place.store_host, place.store_port, is_master=place.has_store, timeout=timedelta(seconds=60))
    return reports_of(cases, place.rank, store, torch.device("cpu"))


def reports_of(cases: list[dict[str, Any]], rank: int, store: Store, device: torch.device) -> list[object]:
    """Return tokens, first logits and figures of every case, None of those that this rank has no part in."""
    found: list[object] = []
    for number, case in enumerate(cases):
        plan = Plan.model_validate(case["plan"])
        if rank >= plan.num_gpus:
            found.append(None)
            continue
        network = Network(
            rank=rank,
            world_size=plan.num_gpus,
            store=store,
            tiers=plan.cluster.tiers,
            device=device,
            generation=number,
            timeout_s=60.0,
            transport=case.get("transport", "sockets"),
        )
        turns = Turns()
        model = load_model(seat_of(plan, rank), Checkpoint.open(case["folder"]), network, turns=turns)
        limit = case.get("max_tokens_per_step", 8192)
        engine = Engine(model, network, turns, max_tokens_per_step=limit, min_overlapped_tokens=2)
        outputs = engine.generate(
            case["prompts"], max_new_tokens=case["new"], sampling=Sampling(**case.get("sampling", {}))
        )
        found.append(
            {
                "outputs": outputs,
                "logits": first_logits(model, case["prompts"][0]),
                "cache_bytes": engine.cache_bytes,
                "weight_bytes": dict(model.weight_bytes),
                "expanded_bytes": model.expanded_bytes,
                "arena": {} if model.decoding is None else model.decoding.document(),
                "bytes_read": model.bytes_read,
                "counts": {index: layer.counts.tolist() for index, layer in model.expert_layers.items()},
                "sent": network.traffic.snapshot(),
            }
        )
        network.close()
    return found


@torch.no_grad()
def first_logits(model: RankModel, prompt: list[int]) -> list[float] | None:
    """Return the logits after the whole prompt, on every group; None where several stages hold the model."""
    if model.seat.strategy.pp > 1:
        return None
    batch = packed([Segment(0, 0, tuple(prompt), emits=True)], model.device)
    hidden = model.hidden(batch, KvCache.for_seat(model.seat, 1, len(prompt)), None)
    return model.logits(hidden, batch)[0].tolist()
