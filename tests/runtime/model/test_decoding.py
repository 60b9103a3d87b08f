"""Steps of decoding in the arena: nothing is allocated, and the bits are those of steps without it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.distributed import TCPStore

from moiety.runtime.arena.tape import Tape
from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.comm.network import Network
from moiety.runtime.engine import Engine
from moiety.runtime.model.batch import Segment, packed
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

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9, 8, 7], [100, 50, 3, 2]]


@pytest.fixture(params=sorted(CONFIGS))
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[RankModel, Network]]:
    plan = plan_of(save_checkpoint(request.param, tmp_path / "model"), "tp1")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    network = Network(rank=0, world_size=1, store=store, tiers=plan.cluster.tiers)
    yield load_model(seat_of(plan, 0), Checkpoint.open(str(tmp_path / "model")), network), network
    network.close()


@torch.inference_mode()
def decoded(model: RankModel, network: Network, batches: list[int]) -> list[torch.Tensor]:
    """Return the logits of steps of so many sequences each, after prompts of different lengths."""
    engine, most = Engine(model, network, Turns()), max(batches)
    cache = engine.new_cache(most, 40)
    found: list[torch.Tensor] = []
    prompts = [Segment(slot, 0, tuple(range(1, 4 + slot)), emits=True) for slot in range(most)]
    model.hidden(packed(prompts), cache, None)
    for number, size in enumerate(batches):
        batch = packed([Segment(slot, 3 + slot + number, (7 + slot + number,), emits=True) for slot in range(size)])
        found.append(model.logits(model.hidden(batch, cache, None), batch).clone())
    return found


def played_poisoned(tape: Tape, passage: int) -> Any:  # noqa: ANN401 - as Tape.play
    """Play a passage, with not-a-number before every call wherever nothing has to be kept."""
    assert tape.arena is not None
    before = sum(len(calls) + 1 for calls, _ in tape.bound[:passage])
    calls, result = tape.bound[passage]
    for index, call in enumerate(calls, before):
        free = torch.ones(tape.size_bytes, dtype=torch.bool)
        for each in tape.buffers:
            if each.first_op < index <= each.last_op:
                free[each.offset_bytes : each.offset_bytes + each.size_bytes] = False
        tape.arena[: tape.size_bytes][free] = 255
        call()
    return result


def test_a_step_of_decoding_allocates_nothing_and_has_the_same_bits(
    loaded: tuple[RankModel, Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, network = loaded
    plain = replace(model, decoding=None)
    growing = [1, 1, 1, 3, 3, 3, 3, 2, 2, 2, 1, 4, 4, 4, 4, 3]
    expected = decoded(plain, network, growing)
    assert all(map(torch.equal, decoded(model, network, growing), expected))
    assert model.decoding is not None
    arena = model.decoding.document()
    assert 0 < arena["live_bytes"] <= arena["packed_bytes"] <= 1.05 * arena["live_bytes"]  # type: ignore[operator]
    engine = Engine(model, network, Turns())
    assert decode_allocations(engine, model, 3) == 0
    assert decode_allocations(Engine(plain, network, Turns()), plain, 3) > 100, "what is counted is there to be counted"
    tokens = Engine(plain, network, Turns()).generate(PROMPTS, max_new_tokens=8)
    assert engine.generate(PROMPTS, max_new_tokens=8) == tokens
    monkeypatch.setattr(Tape, "play", played_poisoned)
    assert all(map(torch.equal, decoded(model, network, growing), expected))
