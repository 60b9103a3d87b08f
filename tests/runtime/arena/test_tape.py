"""Tapes: what is played is what was computed, for other inputs in the same places."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.runtime.arena.arena import Arena
from moiety.runtime.arena.tape import Tape
from moiety.runtime.arena.trace import Trace, called

OPS = {
    "number": lambda x: (x * 3 - 1.5) / 7,
    "mean": lambda x: x - x.mean(-1, keepdim=True),
    "product": lambda x: torch.nn.functional.silu(x @ x.t()) @ x,
    "view": lambda x: x.t().contiguous().view(x.shape),
    "in place": lambda x: x.clone().add_(2).masked_fill_(x > 0, 0.5),
    "sorted": lambda x: x.gather(1, torch.topk(x, 2, dim=-1).indices).repeat(1, 2),
    "no kernel of its own": lambda x: torch.cummax(x, dim=1).values,
    "formats": lambda x: (x + x[0].bfloat16()) * (x.double() > x[:, :1].bfloat16()),
    "cast": lambda x: x.double().softmax(-1).float(),
}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(sorted(OPS)), min_size=1, max_size=8), st.integers(0, 99))
@torch.inference_mode()
def test_a_tape_computes_what_was_noted(names: list[str], seed: int) -> None:
    def compute() -> torch.Tensor:
        value = given_input
        for name in names:
            value = OPS[name](value)
        return value

    generator = torch.Generator().manual_seed(seed)
    given_input = torch.randn(4, 4, generator=generator)
    trace = Trace()
    noted = trace.noted(compute)
    torch.testing.assert_close(noted, compute(), rtol=0, atol=0, equal_nan=True)
    tape, arena = Tape(trace), Arena(torch.device("cpu"))
    for size_bytes in (tape.size_bytes, 4 * tape.size_bytes + 1):  # which makes the arena grow
        tape.bind(arena.region(0, size_bytes))
        given_input.normal_(generator=generator)
        torch.testing.assert_close(tape.play(0), compute(), rtol=0, atol=0, equal_nan=True)


@torch.inference_mode()
def test_a_step_that_depends_on_content_is_told_unless_a_function_does_it() -> None:
    value = torch.tensor([1.0, -1.0])
    trace = Trace()
    trace.noted(lambda: value[value > 0])
    assert trace.obstacle is not None
    out = torch.empty(1)
    whole = Trace()
    whole.noted(lambda: called(lambda source, target: target.fill_(float(source[source > 0].sum())), value, out))
    assert whole.obstacle is None
    value.mul_(-3)
    tape = Tape(whole)
    tape.bind(Arena(torch.device("cpu")).region(0, tape.size_bytes))
    tape.play(0)
    assert out.item() == 3
