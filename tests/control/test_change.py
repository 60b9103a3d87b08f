"""Laws of the test for change: chance is none, however layers share it; shifts are found early; one window is none."""

from __future__ import annotations

import numpy as np
import pytest

from moiety.control.change import has_changed

LAYERS, GPUS, KEPT = 6, 8, 32
ROWS = np.full(LAYERS, 1e6)
EVEN = np.ones((LAYERS, GPUS))


def noise(rng: np.random.Generator, windows: int, directions: int) -> np.ndarray:
    """Return deviations [windows, layers, GPUs] that all layers have in common: kinds of requests that come and go."""
    shape = rng.normal(0.0, 0.2, (directions, LAYERS, GPUS))
    shape -= shape.mean(axis=2, keepdims=True)
    return np.einsum("wd,dlg->wlg", rng.normal(size=(windows, directions)), shape) / np.sqrt(directions)


def first_alarm(loads: np.ndarray, usual: np.ndarray = EVEN, usual_windows: float = np.inf) -> int | None:
    """Return the number of windows after which a change was found."""
    for count in range(1, len(loads) + 1):
        if has_changed(loads[:count][-KEPT:], usual, usual_windows, ROWS, count):
            return count
    return None


@pytest.mark.parametrize("directions", [1, 3, 20])
def test_chance_that_all_layers_share_is_no_change(directions: int) -> None:
    for seed in range(6):
        loads = 1 + noise(np.random.default_rng(seed), 300, directions)
        assert first_alarm(loads) is None
        usual = loads[:8].mean(axis=0)
        assert first_alarm(loads[8:], usual, 8) is None


def test_a_shift_is_found_within_a_dozen_windows_and_in_one_layer_too() -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        shift = np.tile([0.5, -0.5], (LAYERS, GPUS // 2))
        alone = np.where(np.arange(LAYERS)[:, None] == seed % LAYERS, shift, 0.0)
        for moved in (shift, alone):
            found = first_alarm(1 + moved + noise(rng, 32, 12))
            assert found is not None
            assert found <= 12


def test_one_window_that_stands_out_is_no_change() -> None:
    rng = np.random.default_rng(0)
    loads = 1 + noise(rng, 64, 12)
    for strength in (1.0, 10.0):
        burst = loads.copy()
        burst[40] += strength * noise(rng, 1, 1)[0]
        assert first_alarm(burst) is None


def test_windows_that_are_all_alike_say_nothing() -> None:
    assert first_alarm(np.ones((64, LAYERS, GPUS))) is None


def test_one_gpu_has_all_of_the_load_always() -> None:
    alone = np.ones((KEPT, LAYERS, 1))
    assert not has_changed(alone, alone[0], np.inf, ROWS, KEPT)
