"""What is read is the model's own parameter, bit for bit, however the checkpoint is stored, and no byte more."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.checkpoint.models import (
    ARCHITECTURES,
    HIDDEN_SIZE,
    LAYER,
    NUM_EXPERTS,
    save_stacked,
    source_of,
    tiny_model,
    weights_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from moiety.runtime.checkpoint.expert_layout import ExpertKind
    from moiety.runtime.checkpoint.weights import WeightSource

torch = pytest.importorskip("torch")

STORAGES: dict[str, Callable[[Any, Path], object]] = {
    "one file": lambda model, folder: model.save_pretrained(folder),
    "shards": lambda model, folder: model.save_pretrained(folder, max_shard_size="100KB"),
    "stacked": save_stacked,
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], WeightSource]:
    """Return a function that gives the tiny model of an architecture as stored in one of the ways."""

    @functools.cache
    def source(architecture: str, storage: str) -> WeightSource:
        folder = tmp_path_factory.mktemp("checkpoint")
        STORAGES[storage](tiny_model(architecture), folder)
        return source_of(folder, tiny_model(architecture))

    return source


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_is_the_models_and_all_bytes_are_read_once(
    stored: Callable[[str, str], WeightSource], architecture: str, storage: str
) -> None:
    source = stored(architecture, storage)
    expected = weights_of(tiny_model(architecture))
    files = {entry.file for entry in source.checkpoint.tensors.values()}
    assert (len(files) > 1) == (storage == "shards")
    source.check()
    assert source.unused() == ()
    before = source.bytes_read
    for name, tensor in expected.items():
        assert torch.equal(source.read(name), tensor), name
    assert source.bytes_read - before == sum(tensor.nbytes for tensor in expected.values())


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=25)
@given(data=st.data())
def test_any_slice_is_that_of_the_parameter_and_costs_its_own_bytes(
    stored: Callable[[str, str], WeightSource], architecture: str, storage: str, data: st.DataObject
) -> None:
    source = stored(architecture, storage)
    name, tensor = data.draw(st.sampled_from(sorted(weights_of(tiny_model(architecture)).items())))
    slices = [data.draw(part_of(size)) for size in tensor.shape[: data.draw(st.integers(0, tensor.dim()))]]
    before = source.bytes_read
    found = source.read(name, *slices)
    expected = tensor[tuple(slices)]
    assert torch.equal(found, expected)
    assert found.is_contiguous()
    assert source.bytes_read - before == expected.numel() * expected.element_size()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=15)
@given(data=st.data(), expert=st.integers(0, NUM_EXPERTS - 1))
def test_an_experts_columns_are_those_of_gate_up_and_down(
    stored: Callable[[str, str], WeightSource], architecture: str, storage: str, data: st.DataObject, expert: int
) -> None:
    source = stored(architecture, storage)
    weights = weights_of(tiny_model(architecture))
    alternating = architecture == "gpt_oss"
    down = weights[f"{LAYER}.down_proj"][expert]
    columns = data.draw(part_of(down.shape[0 if alternating else 1]))
    kinds: list[ExpertKind] = ["gate_up_proj", "down_proj"]
    for kind in kinds + (["gate_up_proj_bias", "down_proj_bias"] if alternating else []):
        before = source.bytes_read
        whole = weights[f"{LAYER}.{kind}"][expert]
        assert torch.equal(source.read_expert(LAYER, kind, expert), whole)
        assert source.bytes_read - before == whole.nbytes
        found = source.read_expert(LAYER, kind, expert, columns)
        assert source.bytes_read - before == whole.nbytes + found.nbytes
        if kind.startswith("gate_up"):
            for part in (gate_of, up_of):
                assert torch.equal(part(found, alternating), columns_of(part(whole, alternating), columns, alternating))
        elif kind == "down_proj":
            assert torch.equal(found, whole[columns] if alternating else whole[:, columns])
        else:
            assert torch.equal(found, whole)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ranks_that_share_an_expert_read_it_once_between_them(
    stored: Callable[[str, str], WeightSource], architecture: str
) -> None:
    source = stored(architecture, "one file")
    weights = weights_of(tiny_model(architecture))
    before = source.bytes_read
    kinds: list[ExpertKind] = ["gate_up_proj", "down_proj"]
    size = weights[f"{LAYER}.down_proj"][0].numel() // HIDDEN_SIZE
    for start in range(0, size, size // 4):
        for kind in kinds:
            source.read_expert(LAYER, kind, 1, slice(start, start + size // 4))
    assert source.bytes_read - before == sum(weights[f"{LAYER}.{kind}"][1].nbytes for kind in kinds)


@pytest.mark.parametrize("stored_as", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("read_as", [torch.bfloat16, torch.float32, None])
def test_weights_are_converted_once_and_only_when_asked(tmp_path: Path, stored_as: object, read_as: object) -> None:
    model = tiny_model("qwen3_moe")
    changes = {name: tensor.to(stored_as) for name, tensor in weights_of(model).items()}
    save_stacked(model, tmp_path, changes)
    source = source_of(tmp_path, model)
    source.check()
    for name, tensor in changes.items():
        found = source.read(name, dtype=read_as)
        assert found.dtype == (read_as or stored_as)
        assert torch.equal(found, tensor.to(found.dtype))
    expert = source.read_expert(LAYER, "gate_up_proj", 2, slice(3, 7), dtype=read_as)
    whole = changes[f"{LAYER}.gate_up_proj"][2]
    assert torch.equal(gate_of(expert), gate_of(whole)[3:7].to(expert.dtype))


def part_of(size: int) -> st.SearchStrategy[slice]:
    """Return slices of an axis, empty and open ones too."""
    bound = st.none() | st.integers(-size, size)
    return st.builds(slice, bound, bound)


def gate_of(expert: Any, alternating: bool = False) -> Any:  # noqa: ANN401, FBT002
    return expert[..., ::2] if alternating else expert[: expert.shape[0] // 2]


def up_of(expert: Any, alternating: bool = False) -> Any:  # noqa: ANN401, FBT002
    return expert[..., 1::2] if alternating else expert[expert.shape[0] // 2 :]


def columns_of(half: Any, columns: slice, alternating: bool) -> Any:  # noqa: ANN401
    return half[..., columns] if alternating else half[columns]
