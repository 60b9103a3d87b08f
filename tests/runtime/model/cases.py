"""Divisions of a model over four ranks, and what the ranks report of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.ranks import run_ranks
from tests.runtime.model.entry import run_on_cpu
from tests.runtime.plans import plan_of

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [9, 8, 7], [100, 50, 3, 2, 1, 77], [130]]
NEW = 10
DIVISIONS: dict[str, dict[str, Any]] = {
    "one rank": {"strategy": "tp1"},
    "tp2": {"strategy": "tp2", "per_node": 2},
    "tp4, more than key heads": {"strategy": "tp4", "per_node": 4},
    "ep2, experts whole, attention divided": {"strategy": "tp2_dp1_ep2", "per_node": 2},
    "dp2 ep2, flat": {"strategy": "tp1_dp2_ep2", "per_node": 2, "dispatch": "flat"},
    "dp4 ep4, flat": {"strategy": "tp1_dp4_ep4", "num_nodes": 2, "per_node": 2, "dispatch": "flat"},
    "dp4 ep4, dedup": {"strategy": "tp1_dp4_ep4", "num_nodes": 2, "per_node": 2, "dispatch": "dedup"},
    "dp4 ep4, hierarchical": {"strategy": "tp1_dp4_ep4", "num_nodes": 2, "per_node": 2},
    "dp4 ep4, copies": {"strategy": "tp1_dp4_ep4", "num_nodes": 2, "per_node": 2, "redundant": 4},
    "dp4 ep4, overlapped": {"strategy": "tp1_dp4_ep4", "num_nodes": 2, "per_node": 2, "overlap": True},
    "tp2 dp2 ep4": {"strategy": "tp2_dp2_ep4", "num_nodes": 2, "per_node": 2},
    "tp2 dp2 ep2 etp2": {"strategy": "ep2_tp2", "num_nodes": 2, "per_node": 2},
    "tp2 dp2 etp4": {"strategy": "tp2_dp2_ep1", "num_nodes": 2, "per_node": 2},
    "ep2, copies, attention divided": {"strategy": "tp2_dp1_ep2", "per_node": 2, "redundant": 2},
    "pp2": {"strategy": "tp1_pp2", "per_node": 2},
    "dp2 ep2 pp2, overlapped": {
        "strategy": "tp1_dp2_ep2_pp2",
        "num_nodes": 2,
        "per_node": 2,
        "overlap": True,
    },
    "two instances of tp2": {"strategy": "tp2_x2", "num_nodes": 2, "per_node": 2},
}


def run(cases: list[dict[str, Any]], ranks: int = 4) -> list[list[Any]]:
    """Return what each rank reports of each case, [cases][ranks], as JSON has it."""
    reports: Any = json.loads(json.dumps(run_ranks(run_on_cpu, ranks, cases, timeout_s=600.0)))
    return [[rank[number] for rank in reports] for number in range(len(cases))]


def case(folder: Path, new: int = NEW, prompts: list[list[int]] | None = None, **division: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a case: a plan for a checkpoint, and the prompts to continue."""
    extra = {key: division.pop(key) for key in ("sampling", "max_tokens_per_step") if key in division}
    plan = plan_of(folder, **division).model_dump(mode="json")
    return {"plan": plan, "folder": str(folder), "prompts": prompts or PROMPTS, "new": new, **extra}
