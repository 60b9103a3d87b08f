"""Laws of the serving simulation: every request is answered once, queues obey Little, the cache is never overfull."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.sim.arrivals import Arrival, Lengths, poisson, together, trace
from moiety.sim.histogram import Histogram
from moiety.sim.serving import Objective, PrefillStage, ServingEngine, simulate_serving

few = st.integers(1, 40)


def _step(prefill_tokens: int, sequences: int, context_tokens: int) -> float:
    return 0.01 + 1e-5 * prefill_tokens + 1e-4 * sequences + 1e-8 * context_tokens * sequences


def _engine(**changes: object) -> ServingEngine:
    return ServingEngine(**({"step_s": _step, "chunk_tokens": 256, "mixes_prefill": True} | changes))  # type: ignore[arg-type]


requests = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 900), few), min_size=1, max_size=30)


@given(rows=requests, mixes=st.booleans(), cache=st.integers(400, 3000), hit=st.floats(0, 1), prefill=st.booleans())
def test_every_request_is_answered_once_whatever_the_cache_holds(
    rows: list[tuple[float, int, int]], *, mixes: bool, cache: int, hit: float, prefill: bool
) -> None:
    stage = PrefillStage(2, _step, 256, 1e-6) if prefill else None
    engine = _engine(mixes_prefill=mixes, cache_tokens=cache, prefix_hit_rate=hit, prefill=stage)
    outcome = simulate_serving(engine, trace(sorted(rows)))
    assert outcome.finished == outcome.ttft.count == outcome.e2e.count == len(rows)
    assert outcome.output_tokens == sum(row[2] for row in rows)
    assert outcome.ttft.mean <= outcome.e2e.mean + 1e-9
    assert outcome.elapsed_s >= max(row[0] for row in rows)
    assert outcome.good == outcome.finished


@given(
    concurrency=st.integers(1, 30), prompt=st.integers(1, 2000), output=st.integers(2, 60), overhead_s=st.floats(0, 2)
)
def test_a_closed_loop_obeys_littles_law(concurrency: int, prompt: int, output: int, overhead_s: float) -> None:
    count, engine = 20 * concurrency, _engine(request_overhead_s=overhead_s)
    outcome = simulate_serving(engine, together(Lengths(prompt, output), count=count), concurrency=concurrency)
    in_flight = outcome.e2e.mean * outcome.finished / outcome.elapsed_s
    assert in_flight == pytest.approx(concurrency, rel=0.1)


def test_one_request_alone_takes_its_chunks_and_its_steps() -> None:
    outcome = simulate_serving(_engine(chunk_tokens=100, request_overhead_s=0.5), together(Lengths(250, 3), count=1))
    chunks = _step(100, 0, 0) * 2 + _step(50, 0, 0)
    assert outcome.ttft.mean == pytest.approx(chunks + 0.5)
    assert outcome.tpot.mean == pytest.approx(_step(0, 1, 250), rel=1e-3)


def test_answers_of_one_token_count_in_no_time_per_output_token() -> None:
    several = simulate_serving(_engine(), trace([(0.0, 100, 1), (9.0, 100, 5)]))
    assert several.tpot.count == 1
    assert several.tpot.mean == pytest.approx(_step(0, 1, 103), rel=1e-3)


def test_tokens_take_longer_as_their_contexts_grow() -> None:
    def by_context(prefill_tokens: int, sequences: int, context_tokens: int) -> float:
        return 1e-3 + 1e-6 * context_tokens * sequences + 1e-5 * prefill_tokens

    outcome = simulate_serving(_engine(step_s=by_context), together(Lengths(16, 4001), count=8), concurrency=8)
    assert outcome.tpot.mean == pytest.approx(1e-3 + 8e-6 * (16 + 4000 / 2), rel=1e-3)


def test_prompts_hold_up_decoding_unless_they_have_workers_of_their_own() -> None:
    lengths = Lengths(2000, 20)
    shared = simulate_serving(_engine(), together(lengths, count=60), concurrency=8)
    alone = simulate_serving(
        _engine(prefill=PrefillStage(4, _step, 256, 0.0)), together(lengths, count=60), concurrency=8
    )
    assert alone.tpot.mean < shared.tpot.mean
    assert shared.itl.quantile(0.99) > shared.itl.quantile(0.01)


def test_a_full_cache_preempts_the_youngest_and_still_finishes() -> None:
    outcome = simulate_serving(_engine(cache_tokens=1000), together(Lengths(200, 300), count=12), concurrency=6)
    assert outcome.preemptions > 0
    assert outcome.finished == 12


@given(prompt=st.integers(1, 1000), output=st.integers(2, 800), most=st.floats(1, 30), chunk=st.integers(10, 20_000))
def test_a_cache_never_holds_more_token_steps_than_it_has(prompt: int, output: int, most: float, chunk: int) -> None:
    held = max(most * (prompt + output), prompt + output + 1)
    engine = _engine(step_s=lambda *_: 1.0, cache_tokens=held, chunk_tokens=chunk)
    outcome = simulate_serving(engine, together(Lengths(prompt, output), count=60), concurrency=40)
    # a sequence that makes its k-th token has k more than its prompt in the cache, through a step of a second
    assert 60 * (output - 1) * (prompt + output / 2) <= held * outcome.elapsed_s


def test_arrivals_faster_than_service_queue_up_and_miss_the_objective() -> None:
    wanted = Objective(ttft_s=0.5, tpot_s=0.05)
    slow = simulate_serving(_engine(max_sequences=4), poisson(1.0, Lengths(200, 20), count=200), objective=wanted)
    fast = simulate_serving(_engine(max_sequences=4), poisson(200.0, Lengths(200, 20), count=200), objective=wanted)
    assert slow.good > fast.good
    assert fast.ttft.quantile(0.5) > 10 * slow.ttft.quantile(0.5)
    assert slow.goodput_per_s == pytest.approx(slow.good / slow.elapsed_s)


def test_poisson_arrivals_repeat_and_have_their_rate() -> None:
    first, again = (list(poisson(50.0, Lengths(1, 1), count=4000, seed=3)) for _ in range(2))
    assert first == again
    assert first[-1].at_s == pytest.approx(80, rel=0.1)
    assert first[0] != Arrival(0.0, 1, 1)


def test_memory_does_not_grow_with_the_number_of_requests() -> None:
    peaks = []
    for count in (400, 4000):
        tracemalloc.start()
        simulate_serving(_engine(), together(Lengths(300, 10), count=count), concurrency=16)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


@given(st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=200), st.floats(0.01, 1))
def test_a_histogram_is_right_to_a_percent(values: list[float], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(-(-round(share * len(values) * 1e9) // 10**9), 1) - 1]
    near = [v for v in values if abs(v / histogram.quantile(share) - 1) < 0.02]
    assert near
    assert histogram.mean == pytest.approx(sum(values) / len(values))
    assert histogram.quantile(1.0) == pytest.approx(max(values), rel=0.01)
    assert exact <= max(values)


@given(mean=st.integers(1, 100_000), shortest=st.floats(0.01, 1), seed=st.integers(0, 9))
def test_lengths_are_drawn_around_their_mean(mean: int, shortest: float, seed: int) -> None:
    found = [each.input_tokens for each in together(Lengths(mean, mean, shortest), count=400, seed=seed)]
    longest = 2 * mean / (1 + shortest)
    assert max(found) <= longest + 0.5
    assert min(found) >= max(shortest * longest - 0.5, 1)
    assert sum(found) / len(found) == pytest.approx(mean, rel=0.12, abs=1)
    if shortest == 1:
        assert set(found) == {mean}


def test_prompts_that_wait_for_a_worker_fill_its_next_step() -> None:
    stage = PrefillStage(1, lambda *_: 1.0, 256, 0.0)
    engine = _engine(step_s=lambda *_: 0.25, prefill=stage)
    came = [(0.0, 64, 3), (0.5, 64, 3), (0.6, 128, 3), (0.7, 192, 3)]
    outcome = simulate_serving(engine, trace(came))
    # the first alone; two in the step after it with the beginning of the last; the last's end in a third; then a step
    # of the decoding worker, which finds them between its own
    waits = sorted([1.0, 2 - 0.5, 2 - 0.6, 3 - 0.7])
    assert outcome.finished == 4
    assert outcome.ttft.mean == pytest.approx(sum(waits) / 4 + 0.25, abs=0.13)
    one_by_one = simulate_serving(
        _engine(step_s=engine.step_s, prefill=PrefillStage(1, stage.step_s, 64, 0.0)), trace(came)
    )
    assert one_by_one.ttft.mean > outcome.ttft.mean + 1


def test_every_request_in_flight_makes_the_next_one_s_first_token_later() -> None:
    lengths = Lengths(64, 5)
    plain, slowed = (
        simulate_serving(_engine(concurrency_overhead_s=each), together(lengths, count=40), concurrency=4)
        for each in (0.0, 0.1)
    )
    assert slowed.ttft.mean - plain.ttft.mean == pytest.approx(0.4)
    assert slowed.tpot.mean == pytest.approx(plain.tpot.mean, rel=1e-9), "whose steps begin at other times, in lockstep"
    assert slowed.elapsed_s - plain.elapsed_s == pytest.approx(10 * 0.4)
