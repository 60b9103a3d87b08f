"""Transport: what carries the tensors of a run."""

from __future__ import annotations

from typing import Literal

Transport = Literal["sockets", "gloo", "deep_ep"]
"""Between CPU ranks: links of our own, or PyTorch's gloo. GPU ranks have NCCL; `deep_ep` is NCCL but for exchanges."""
