"""Workload files: what people write, and what they get told when it is wrong."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moiety.errors import InputError
from moiety.workload.reader import WORKLOAD_FIELDS, read_workload
from moiety.workload.workload import Workload

FILE = """\
name: chat
kind: mixed
input_tokens: 1024
output_tokens: 512
concurrency: 256
slo:
  ttft: 2 s
  tpot: 50 ms
routing_skew: 0.5
"""


def test_file_is_read_in_base_units() -> None:
    workload = read_workload(FILE, source="w.yaml")
    assert (workload.input_tokens, workload.output_tokens, workload.concurrency) == (1024, 512, 256)
    assert workload.slo.ttft_s == 2
    assert workload.slo.tpot_s == pytest.approx(0.05)
    assert workload.routing_skew == 0.5


def test_limits_and_skew_may_be_left_out() -> None:
    workload = read_workload(FILE[: FILE.index("slo:")], source="w.yaml")
    assert (workload.slo.ttft_s, workload.slo.tpot_s, workload.routing_skew) == (None, None, 0)


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "said"),
    [
        ("kind: mixed", "kind: chatty", 2, "kind", "prefill or decode or mixed or training"),
        ("kind: mixed\n", "", 1, "kind", "missing"),
        ("concurrency: 256", "concurency: 256", 5, "concurency", "did you mean 'concurrency'?"),
        ("concurrency: 256\n", "", 1, None, "needs exactly one of concurrency, request_rate_per_s"),
        ("concurrency: 256", "tokens_in_flight: 256", 1, None, "it has tokens_in_flight"),
        ("concurrency: 256", "concurrency: 256\nrequest_rate_per_s: 3", 1, None, "exactly one"),
        ("concurrency: 256", "request_rate_per_s: 0", 5, "request_rate_per_s", "must be a number from"),
        ("concurrency: 256", "request_rate_per_s: .nan", 5, "request_rate_per_s", "must be a number from"),
        ("output_tokens: 512", "output_tokens: 0", 1, None, "output_tokens of at least 1"),
        ("output_tokens: 512", "output_tokens: -1", 4, "output_tokens", "whole number"),
        ("input_tokens: 1024", "input_tokens: 1e30", 3, "input_tokens", "whole number"),
        ("input_tokens: 1024", "input_tokens: many", 3, "input_tokens", "whole number"),
        ("ttft: 2 s", "ttft: 2", 7, "slo.ttft", "needs its unit"),
        ("ttft: 2 s", "ttft: -2 s", 7, "slo.ttft", "above 0"),
        ("ttft: 2 s", "ttft: 2 GB", 7, "slo.ttft", "unit 'GB' is unknown"),
        ("ttft: 2 s", "tfft: 2 s", 7, "slo.tfft", "did you mean 'ttft'?"),
        ("tpot: 50 ms", "tpot: 50 ms\n  tpot: 60 ms", 9, None, "given twice"),
        ("slo:\n  ttft: 2 s\n  tpot: 50 ms", "slo: fast", 6, "slo", "must be a mapping"),
        ("routing_skew: 0.5", "routing_skew: 5", 9, "routing_skew", "from 0 to 4"),
    ],
)
def test_error_names_line_field_and_rule(old: str, new: str, line: int, field: str | None, said: str) -> None:
    assert FILE.count(old) == 1
    with pytest.raises(InputError) as caught:
        read_workload(FILE.replace(old, new), source="w.yaml")
    assert (caught.value.source, caught.value.field) == (f"w.yaml:{line}", field)
    assert said in str(caught.value)


@given(
    st.dictionaries(
        st.sampled_from(WORKLOAD_FIELDS) | st.text(max_size=5),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=10)
        | st.sampled_from(["mixed", "decode", "2 s"])
        | st.lists(st.integers(), max_size=2)
        | st.dictionaries(st.sampled_from(["ttft", "tpot", "x"]), st.sampled_from(["1 s", "-1 s", "", 3, None])),
    )
)
def test_mutated_file_is_read_or_refused(changes: dict[str, object]) -> None:
    text = yaml.safe_dump({**yaml.safe_load(FILE), **changes})
    try:
        workload = read_workload(text, source="w.yaml")
    except InputError as error:
        assert str(error).startswith("w.yaml")  # noqa: PT017 - the other outcome is legal too
    else:
        assert Workload.model_validate_json(workload.model_dump_json()) == workload
