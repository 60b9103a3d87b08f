"""How much of a device's memory serving engines make their cache of: facts of their releases, not fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.calibration.serving import release_number

if TYPE_CHECKING:
    from moiety.calibration.calibration import Engine

RESERVE_BYTES = 5_000_000_000
"""Context, communicators, captured graphs, samplers and activations of a rank, where the engine measures them.

Assumed: how long requests wait in published runs near their limit says 3 to 7 GB.
"""
CONTEXT_BYTES = 1_000_000_000
"""Context and communicators alone (assumed): what SGLang's default leaves room for beside the rest."""
_SHARE = 0.9
"""vLLM's `gpu_memory_utilization` and TensorRT-LLM's `free_gpu_memory_fraction`.

Since 0.21 vLLM counts captured graphs within it, and by 0.25 it was 0.92.
"""
_MIB, _GIB = 2**20, 2**30
_SGLANG_SINCE = (0, 5, 3)
"""First release of SGLang that sets memory apart by the tokens of a chunk and the batches that are captured."""
_SGLANG_OLD_TIERS = ((35, 2.8, 0.1), (90, 9.5, 0.5), (160, 12.0, 0.5))
"""Before: GiB of the devices below which they hold, GiB set apart, and GiB more for each GPU of a worker."""
_SGLANG_TIERS = ((20, 2048, 8, 8), (35, 2048, 24, 80), (60, 4096, 32, 160), (160, 8192, 256, 512))
"""Since: GiB of the devices below which they hold, tokens of a chunk, largest captured batch on few and many GPUs."""
_SGLANG_LARGE = (16_384, 512, 512)
_SGLANG_MANY_GPUS = 4


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """What an engine's cache gets of a device's memory."""

    share: float
    """Of the device's memory, for weights and cache together; or of what weights and reserve leave."""
    reserve_bytes: float
    of_free: bool = False
    """The share is of what weights and reserve leave (TensorRT-LLM)."""

    def cache_bytes(self, memory_bytes: float, weight_bytes: float) -> float:
        """Return the bytes of a device's cache beside its weights; not above 0: they leave no room."""
        if self.of_free:
            return self.share * (memory_bytes - weight_bytes - self.reserve_bytes)
        return self.share * memory_bytes - weight_bytes - self.reserve_bytes


def engine_memory(
    engine: Engine, version: str, memory_bytes: float, num_gpus: int, share: float | None = None
) -> EngineMemory:
    """Return what the cache of a worker of `num_gpus` gets; `share` is what the engine was set to, None: its default.

    vLLM fills a share of the device, within which it measures all that is no cache; SGLang sets apart what it expects
    activations and graphs to need; TensorRT-LLM measures these and takes a share of what is left.
    """
    if engine == "sglang":
        default = 1 - _sglang_reserve_bytes(version, memory_bytes, num_gpus) / memory_bytes
        return EngineMemory(share or default, CONTEXT_BYTES)
    return EngineMemory(share or _SHARE, RESERVE_BYTES, of_free=engine == "tensorrt-llm")


def _sglang_reserve_bytes(version: str, memory_bytes: float, num_gpus: int) -> float:
    """Return what SGLang sets apart of a device by default (`ServerArgs`, where it sets `mem_fraction_static`).

    Without what it adds for attention that is data parallel: a wide group's default leaves no memory at all, and
    operators set the share.
    """
    number = release_number(version)
    if number is not None and number < _SGLANG_SINCE:
        gib, each_gpu = next((tier[1:] for tier in _SGLANG_OLD_TIERS if memory_bytes < tier[0] * _GIB), (32.0, 0.0))
        return (gib + each_gpu * num_gpus) * _GIB
    chunk, few, many = next((tier[1:] for tier in _SGLANG_TIERS if memory_bytes < tier[0] * _GIB), _SGLANG_LARGE)
    captured = few if num_gpus < _SGLANG_MANY_GPUS else many
    reserve = 512 + 1.5 * chunk + 2 * captured + 128 * num_gpus
    least = 10 * 1024 if memory_bytes > 60 * _GIB else 0
    return max(reserve, least) * _MIB
