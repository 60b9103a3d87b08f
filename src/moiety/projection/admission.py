"""When an engine takes up prompts: so many tokens of them in a step, and not always as soon as there is room."""

from __future__ import annotations

import math
from dataclasses import dataclass

CHUNK_TOKENS = 8192
"""Prompt tokens that a serving step takes at most (the common default of chunked prefill)."""
PROMPT_TOKENS = 16_384
"""Prompt tokens that a step of workers takes at the most that compute nothing else.

`max_num_tokens` in most published recipes (NVIDIA/srt-slurm, recipes/trtllm: 16,384 to 16,896 in 212 of 329, 8,192 to
10,240 in 98), `chunked-prefill-size` for each attention group in those of SGLang with 131,072 and 8 groups.
"""


@dataclass(frozen=True, slots=True)
class Admission:
    """When an engine takes up new prompts, in steps that decode; by default before every step."""

    poll_steps: int = 1
    """New requests are looked for once in so many steps (SGLang: `scheduler_recv_interval`)."""
    balance_steps: int = 0
    """A worker's attention groups begin prompts together, when each has one, or once in so many steps.

    TensorRT-LLM: `attention_dp_config.timeout_iters` with `enable_balance`.
    """
    batch_wait_steps: int = 0
    """The first prompt of a batch waits so many steps for others (TensorRT-LLM: `batch_wait_timeout_iters`)."""

    def wait_steps(self, groups: int, arrivals: float, prompts_a_step: float = math.inf) -> float:
        """Return the steps that a mean prompt waits, of which each of `groups` gets `arrivals` a step.

        Half a period; the last of n groups has a prompt after 1 + 1/2 + ... + 1/n times the steps between two of one.
        Of the prompts that groups begin together each takes up as many as a step has room for, and what is left waits
        for another period.
        A batch's first prompt waits all the time that is given to it, those that follow half of it.
        """
        period, left = float(self.poll_steps), 0.0
        if self.balance_steps and groups > 1:
            all_have_one = sum(1 / n for n in range(1, groups + 1)) / arrivals
            period = max(period, min(all_have_one, self.balance_steps))
            left = min(arrivals * period / prompts_a_step, 1.0)
        others = self.batch_wait_steps * arrivals
        return period * (1 + left) / 2 + self.batch_wait_steps * (1 + others / 2) / (1 + others)


def thrown_out(wait: float, prompt_tokens: int, output_tokens: int) -> float:
    """Return how much of a `wait` for room in the cache comes after the first token, both in answers' times.

    Where prompts are taken up as soon as they fit, sequences outgrow the cache together: the youngest are thrown out,
    and wait before any new prompt. At most sqrt(1 + answer / (3 prompt)) - 1 answers' times, for those that are out
    hold back new prompts; less where few wait at all. Both shapes are those of the steps played one by one.
    """
    most = math.sqrt(1 + output_tokens / (3 * prompt_tokens)) - 1
    return wait / (1 + wait / most) if most > 0 else 0.0


AT_EVERY_STEP = Admission()
"""Prompts are taken up before the next step."""
