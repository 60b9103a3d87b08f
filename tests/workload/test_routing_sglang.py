"""SGLang's expert-distribution dumps, in each mode of its recorder, as `.pt` and as JSON."""

from __future__ import annotations

import io
import json

import pytest
import torch

from moiety.errors import InputError
from moiety.workload.routing import Routing, read_routing

# Two layers, 6 slots for 4 experts; physical slots 4 and 5 are copies.
SLOTS = [[0, 1, 2, 3, 0, 3], [3, 2, 1, 0, 1, 1]]


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def read(value: object, *, as_json: bool = False, **model: int) -> Routing:
    data = json.dumps(value, default=lambda each: each.tolist()).encode() if as_json else saved(value)
    return read_routing(data, source="dump.pt", **model)


def refused(value: object) -> str:
    with pytest.raises(InputError) as caught:
        read(value)
    message = str(caught.value)
    assert message.startswith("dump.pt")
    return message


def token_pass(topk: list[list[list[int]]], mode: int, lengths: list[int] | None, positions: list[int]) -> dict:
    """One record as the mode `per_token` writes it."""
    return {
        "forward_pass_id": 7,
        "rank": 0,
        "gatherer_key": "primary",
        "input_ids": [1] * len(positions),
        "positions": positions,
        "extend_seq_lens": lengths,
        "forward_mode": mode,
        "topk_ids_of_layer": torch.tensor(topk, dtype=torch.int32),
        "misc_objects": [],
        "global_physical_count": torch.zeros(2, 6, dtype=torch.int32),
    }


PREFILL = token_pass([[[0, 1], [4, 2], [1, 5]], [[0, 1], [5, 3], [4, 0]]], 1, [2, 1], [0, 1, 0])
CHUNK = token_pass([[[5, 0], [2, 1]], [[2, 0], [1, 3]]], 1, [1, 1], [1, 0])
DECODE = token_pass([[[3, 2], [4, 1]], [[5, 0], [1, 0]]], 2, None, [9, 4])
MAP = torch.tensor(SLOTS)


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.bfloat16])
def test_counts_of_the_mode_stat(dtype: torch.dtype, as_json: bool) -> None:
    counts = torch.arange(12).reshape(3, 2, 2).to(dtype)
    dump = {"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None}
    assert read(dump, as_json=as_json).counts.tolist() == counts.tolist()
    assert read({"logical_count": counts[1]}, as_json=as_json).counts.tolist() == [counts[1].tolist()]


def test_many_forward_passes_become_few_windows_of_equal_weight() -> None:
    counts = torch.zeros(1000, 2, 4, dtype=torch.int32)
    counts[:640] = torch.randint(1, 9, (640, 2, 4))  # the rest of the recorder's buffer is unused
    routing = read({"logical_count": counts})
    assert routing.num_windows == 32
    assert routing.counts.sum(axis=0).tolist() == counts.sum(dim=0).tolist()
    tokens = routing.counts.sum(axis=(1, 2))
    assert tokens.max() < 1.2 * tokens.min()
    one = torch.zeros(100, 1, 2)
    one[40, 0, 1] = 5
    assert read({"logical_count": one}).counts.tolist() == [[[0, 5]]]


@pytest.mark.parametrize("as_json", [False, True])
def test_tokens_are_told_by_expert_not_by_slot(as_json: bool) -> None:
    routing = read({"records": [PREFILL, DECODE], "last_physical_to_logical_map": MAP}, as_json=as_json)
    assert routing.topk is not None
    assert routing.topk.tolist() == [
        [[0, 1], [0, 2], [1, 3], [3, 2], [0, 1]],
        [[3, 2], [1, 0], [1, 3], [1, 3], [2, 3]],
    ]
    assert routing.counts.sum(axis=2).tolist() == [[10, 10]]


def test_a_prefill_says_which_sequence_a_token_belongs_to() -> None:
    routing = read({"records": [PREFILL, CHUNK, DECODE], "last_physical_to_logical_map": MAP})
    assert routing.sequence is not None
    assert routing.sequence.tolist() == [0, 0, 1, 1, 2, 3, 4]  # the second pass goes on with 1; decoded tokens alone
    assert read({"records": [DECODE], "last_physical_to_logical_map": MAP}).sequence is None


def test_without_a_map_ids_are_those_of_experts() -> None:
    routing = read({"records": [DECODE]}, num_experts=8)
    assert routing.topk is not None
    assert routing.topk.tolist() == DECODE["topk_ids_of_layer"].tolist()
    assert routing.num_experts == 8


def test_experts_that_no_token_chose_are_known_from_the_map() -> None:
    one = token_pass([[[1, 0]], [[3, 2]]], 2, None, [3])
    assert read({"records": [one], "last_physical_to_logical_map": MAP}).num_experts == 4


def test_wide_rows_dense_layers_padding_and_idle_passes_are_left_out() -> None:
    wide = torch.full((3, 4, 8), -1, dtype=torch.int32)
    wide[1:, :3, :2] = PREFILL["topk_ids_of_layer"]
    idle = PREFILL | {"topk_ids_of_layer": wide[:, :0], "extend_seq_lens": None, "positions": []}
    padded = PREFILL | {"topk_ids_of_layer": wide}
    slots = torch.tensor([[0, 1, 2, 3, 0, 1], *SLOTS])
    routing = read({"records": [idle, padded], "last_physical_to_logical_map": slots})
    plain = read({"records": [PREFILL], "last_physical_to_logical_map": MAP})
    assert routing.topk is not None
    assert plain.topk is not None
    assert routing.topk.tolist() == plain.topk.tolist()
    assert routing.sequence is not None
    assert routing.sequence.tolist() == [0, 0, 1]


def test_counts_of_the_mode_per_pass() -> None:
    passes = [{"forward_pass_id": i, "rank": 0, "global_physical_count": torch.arange(12).reshape(2, 6) + i} for i in
              range(2)]  # fmt: skip
    routing = read({"records": passes, "last_physical_to_logical_map": MAP})
    assert routing.counts.tolist() == [
        [[0 + 4, 1, 2, 3 + 5], [9, 8 + 10 + 11, 7, 6]],
        [[1 + 5, 2, 3, 4 + 6], [10, 9 + 11 + 12, 8, 7]],
    ]
    assert routing.recorded_by == (0, 0, 1)


@pytest.mark.parametrize(
    "wrong", [{"rank": 1}, {"rank": None}, {"rank": True}, {"forward_pass_id": -1}, {"rank": 2**63}]
)
def test_who_has_recorded_a_dump_is_not_known_where_it_does_not_say_so(wrong: dict[str, object]) -> None:
    one = {"forward_pass_id": 3, "rank": 0, "global_physical_count": [[1, 2]]}
    assert read({"records": [one, one | {"forward_pass_id": 2}]}, as_json=True).recorded_by == (0, 2, 3)
    assert read({"records": [one, one | wrong]}, as_json=True).recorded_by is None


@pytest.mark.parametrize(
    ("dump", "said"),
    [
        ({}, "holds no routing"),
        ([1], "must be a PyTorch dict"),
        ({"logical_count": torch.zeros(2, 2, 3)}, "are all 0"),
        ({"logical_count": torch.tensor([[1, float("nan")]])}, "layer 0, expert 1 has nan"),
        ({"logical_count": torch.ones(3)}, "shape"),
        ({"logical_count": [[1, 2], [3]]}, "logical_count[1]: has 1 entries"),
        ({"records": []}, "at least one forward pass"),
        ({"records": 3}, "at least one forward pass"),
        ({"records": [3]}, "records[0]"),
        ({"records": [{"rank": 0}]}, "records[0].global_physical_count: is missing"),
        ({"records": [PREFILL, {}]}, "records[1].topk_ids_of_layer: is missing"),
        ({"records": [PREFILL | {"topk_ids_of_layer": torch.zeros(2)}]}, "shape"),
        ({"records": [PREFILL | {"topk_ids_of_layer": torch.zeros(2, 1, 2)}]}, "whole numbers"),
        ({"records": [PREFILL | {"topk_ids_of_layer": [[[1], [1, 2]]]}]}, "different length"),
        ({"records": [PREFILL, PREFILL | {"topk_ids_of_layer": torch.zeros(3, 1, 2, dtype=torch.int32)}]}, "differ"),
        ({"records": [PREFILL | {"topk_ids_of_layer": torch.full((2, 3, 2), -1)}]}, "names no expert"),
        ({"records": [PREFILL | {"topk_ids_of_layer": torch.full((2, 3, 2), -9)}]}, "holds -9"),
        ({"records": [PREFILL], "last_physical_to_logical_map": MAP[:1]}, "has 1 layers, the passes have 2"),
        ({"records": [PREFILL], "last_physical_to_logical_map": MAP[:, :5]}, "names slot 5"),
        ({"records": [PREFILL], "last_physical_to_logical_map": MAP - 1}, "names expert -1"),
        ({"records": [PREFILL], "last_physical_to_logical_map": MAP * 2}, "names expert 6"),
        ({"records": [PREFILL], "last_physical_to_logical_map": [[0], [1, 2]]}, "different length"),
        ({"records": [PREFILL], "last_physical_to_logical_map": "x"}, "whole numbers"),
    ],
)
def test_what_the_recorder_does_not_write_is_refused(dump: object, said: str) -> None:
    assert said in refused(dump)
