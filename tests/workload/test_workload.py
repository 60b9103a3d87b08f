"""The workload record and its catalogue."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from moiety.errors import InputError
from moiety.workload.catalog import catalog_workloads, load_workload, workload_text
from moiety.workload.reader import read_workload
from moiety.workload.workload import Workload, WorkloadKind

LOADS = ("tokens_in_flight", "concurrency", "request_rate_per_s")
TAKES = {
    "prefill": {"tokens_in_flight", "concurrency"},
    "decode": {"concurrency"},
    "mixed": {"concurrency", "request_rate_per_s"},
    "training": {"tokens_in_flight"},
}


@pytest.mark.parametrize("name", catalog_workloads())
def test_every_workload_loads_and_says_its_source(name: str) -> None:
    workload = load_workload(name)
    assert workload.name == name
    assert workload.source
    assert read_workload(workload_text(name), source="copy.yaml") == workload
    assert Workload.model_validate_json(workload.model_dump_json()) == workload


def test_catalogue_has_every_kind() -> None:
    assert {load_workload(name).kind for name in catalog_workloads()} == set(get_args(WorkloadKind))


def test_reference_workloads() -> None:
    prefill = load_workload("reference-prefill")
    assert prefill.tokens_per_batch == 32_958 * 64
    assert prefill.input_tokens == 8192
    assert load_workload("reference-decode").decode_context_tokens == 8192 + 256


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'reference-prefill'"):
        load_workload("reference-prefil")


@given(st.sampled_from(get_args(WorkloadKind)), st.sets(st.sampled_from(LOADS)), st.integers(0, 1000))
def test_each_kind_takes_exactly_one_of_its_loads(kind: str, given_loads: set[str], output_tokens: int) -> None:
    values = {"name": "x", "kind": kind, "input_tokens": 128, "output_tokens": output_tokens}
    values |= dict.fromkeys(given_loads, 64)
    legal = len(given_loads) == 1 and given_loads <= TAKES[kind]
    legal = legal and (output_tokens > 0 or kind not in {"decode", "mixed"})
    if not legal:
        with pytest.raises(ValidationError):
            Workload.model_validate(values)
        return
    workload = Workload.model_validate(values)
    assert Workload.model_validate_json(workload.model_dump_json()) == workload


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_prompts_in_flight_make_the_batch(input_tokens: int, concurrency: int) -> None:
    workload = Workload(name="x", kind="prefill", input_tokens=input_tokens, concurrency=concurrency)
    assert workload.tokens_per_batch == input_tokens * concurrency
