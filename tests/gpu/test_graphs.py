"""Decoding by CUDA graphs: the tokens and logits of steps whose ops are launched one by one, and no allocations."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.comm.network import Network
from moiety.runtime.engine import Engine
from moiety.runtime.experts.build import ExpertUse
from moiety.runtime.model.graphs import GraphedDecoding
from moiety.runtime.model.load import load_model
from moiety.runtime.overlap import Turns
from moiety.runtime.seat import seat_of
from moiety.runtime.steady import decode_allocations
from tests.runtime.checkpoints import CONFIGS, save_checkpoint
from tests.runtime.plans import plan_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from moiety.runtime.model.rank_model import RankModel

LENGTHS = 3, 250, 40
"""Of the prompts; the longest grows past the 256 tokens that a captured step looks at first."""
NEW = 14


@contextmanager
def loaded(name: str, folder: Path) -> Iterator[tuple[RankModel, Network, Turns]]:
    """Yield a model in FP32 whose experts Triton computes."""
    checkpoint = save_checkpoint(name, folder / name)
    plan, turns = plan_of(checkpoint, "tp1", dtype="fp32"), Turns()
    network = Network(
        rank=0,
        world_size=1,
        store=torch.distributed.HashStore(),
        tiers=plan.cluster.tiers,
        device=torch.device("cuda", 0),
        address="127.0.0.1",
    )
    use = ExpertUse(backend="triton")
    try:
        yield load_model(seat_of(plan, 0), Checkpoint.open(checkpoint), network, turns=turns, use=use), network, turns
    finally:
        network.close()


def prompts() -> list[list[int]]:
    """Return random prompts."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 60, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_tokens_are_those_of_ops_launched_one_by_one(name: str, tmp_path: Path) -> None:
    with loaded(name, tmp_path) as (model, network, turns):
        assert isinstance(model.decoding, GraphedDecoding)
        graphed = Engine(model, network, turns)
        plain = Engine(replace(model, decoding=None), network, turns)
        for _ in range(2):  # the second time over another cache
            assert graphed.generate(prompts(), max_new_tokens=NEW) == plain.generate(prompts(), max_new_tokens=NEW)
        said = model.decoding.document()
        assert said["obstacle"] is None
        assert said["decode_steps"] == 2 * (NEW - 1)
        assert said["decode_steps_in_graphs"] == 2 * (NEW - 1 - 2), "all but the first of each length"


def test_a_steady_step_asks_for_no_memory(tmp_path: Path) -> None:
    with loaded("qwen3_moe", tmp_path) as (model, network, turns):
        assert decode_allocations(Engine(model, network, turns), model, 4) == 0


def test_what_has_changed_is_captured_anew(tmp_path: Path) -> None:
    with loaded("qwen3_moe", tmp_path) as (model, network, turns):
        assert isinstance(model.decoding, GraphedDecoding)
        engine = Engine(model, network, turns)
        before = engine.generate(prompts(), max_new_tokens=NEW)
        model.decoding.forget()
        assert engine.generate(prompts(), max_new_tokens=NEW) == before
        assert model.head is not None
        torch.nn.init.normal_(next(iter(model.head.parameters())))
        model.decoding.forget()
        plain = Engine(replace(model, decoding=None), network, turns)
        assert engine.generate(prompts(), max_new_tokens=NEW) == plain.generate(prompts(), max_new_tokens=NEW)
