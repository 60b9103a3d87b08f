"""Tests that need a GPU; `TRITON_INTERPRET=0 pytest tests/gpu` where there is one, skipped everywhere else."""

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is in this folder where there is no GPU, or where Triton's kernels are interpreted."""
    from triton import knobs  # noqa: PLC0415  - torch's builds for CPUs come without it

    reason = None
    if not torch.cuda.is_available():
        reason = "needs a GPU"
    elif knobs.runtime.interpret:
        reason = "needs TRITON_INTERPRET=0: kernels are compiled here"
    for item in items:
        if reason is not None and "tests/gpu" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason=reason))
