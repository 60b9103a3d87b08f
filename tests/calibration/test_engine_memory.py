"""What engines make their cache of: their releases' own defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.calibration.engine_memory import engine_memory
from moiety.cluster.catalog import load_cluster

if TYPE_CHECKING:
    from moiety.calibration.calibration import Engine

H100, H200, B200 = (load_cluster(name).device.memory_bytes for name in ("h100", "h200", "b200"))
ENGINES: tuple[Engine, ...] = ("vllm", "sglang", "tensorrt-llm")


@pytest.mark.parametrize(
    ("version", "memory", "num_gpus", "share"),
    [
        # what the releases' own ServerArgs come to for what nvidia-smi shows of these devices
        ("0.5.1.post1", H100, 2, 0.868),
        ("0.5.1.post1", H200, 8, 0.886),
        ("0.5.2", B200, 8, 0.821),
        ("0.5.3", H100, 1, 0.835),
        ("0.5.8.post1", H100, 1, 0.835),
        ("0.5.8.post1", H100, 4, 0.824),
        ("0.5.9", B200, 8, 0.852),
        ("glm5-hopper", H200, 8, 0.897),
    ],
)
def test_sglang_s_default_share_is_its_releases_own(version: str, memory: int, num_gpus: int, share: float) -> None:
    assert round(engine_memory("sglang", version, memory, num_gpus).share, 3) == share


@given(engine=st.sampled_from(ENGINES), memory=st.integers(20 * 2**30, 300 * 2**30), weights=st.integers(0, 10**12))
def test_a_cache_fits_beside_the_weights_and_shrinks_by_them(engine: Engine, memory: int, weights: int) -> None:
    found = engine_memory(engine, "", memory, 8)
    cache, beside = found.cache_bytes(memory, 0), found.cache_bytes(memory, weights)
    assert weights + max(beside, 0) < max(memory, weights + 1)
    assert cache - beside == pytest.approx(weights * (0.9 if engine == "tensorrt-llm" else 1), abs=1)


@given(engine=st.sampled_from(ENGINES), share=st.floats(0.1, 1), more=st.floats(0.01, 0.5))
def test_a_share_that_is_set_stands_for_the_default(engine: Engine, share: float, more: float) -> None:
    small, large = (
        engine_memory(engine, "0.5.9", H200, 8, each).cache_bytes(H200, 5e10) for each in (share, share + more)
    )
    free = H200 - engine_memory(engine, "0.5.9", H200, 8).reserve_bytes - 5e10
    assert large - small == pytest.approx(more * (free if engine == "tensorrt-llm" else H200), rel=1e-6)
