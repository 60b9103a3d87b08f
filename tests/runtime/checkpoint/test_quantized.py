"""Quantised weights are read as the numbers that their published formats say; others are refused by name."""

from __future__ import annotations

import importlib
import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.errors import InputError
from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.checkpoint.weights import WeightSource
from moiety.runtime.expansion import whole
from tests.runtime.checkpoint.models import LAYER, change_file, save_stacked, source_of, tiny_model, weights_of

if TYPE_CHECKING:
    from pathlib import Path

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

BLOCK = 16
"""Rows and columns of a block of FP8 in the tiny models here; 24 or 40 rows fill the last one in part."""
E2M1 = {
    0b0000: 0.0,
    0b0001: 0.5,
    0b0010: 1.0,
    0b0011: 1.5,
    0b0100: 2.0,
    0b0101: 3.0,
    0b0110: 4.0,
    0b0111: 6.0,
    0b1000: -0.0,
    0b1001: -0.5,
    0b1010: -1.0,
    0b1011: -1.5,
    0b1100: -2.0,
    0b1101: -3.0,
    0b1110: -4.0,
    0b1111: -6.0,
}


def fp8_of(shape: tuple[int, int], block: int, seed: int) -> tuple[Any, Any, Any]:
    """Return random FP8 weights, the scale of each block, and their product element by element, in FP32."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(shape, generator=generator).mul(50).to(torch.float8_e4m3fn)
    grid = [-(-size // block) for size in shape]
    scales = torch.rand(grid, generator=generator) + 0.01
    product = torch.empty(shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            product[row, column] = weights[row, column].float() * scales[row // block, column // block]
    return weights, scales, product


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> tuple[WeightSource, dict[str, Any]]:
    """Return a tiny DeepSeek-V3 in FP8 (its norms and router not), and what its parameters must be."""
    folder = tmp_path_factory.mktemp("fp8")
    model = tiny_model("deepseek_v3")
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"quantization_config": {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    changes: dict[str, Any] = {}
    products: dict[str, Any] = {}
    for name, entry in Checkpoint.open(folder).tensors.items():
        if name.endswith("_proj.weight") or "kv_a_proj_with_mqa" in name:
            rows, columns = entry.shape
            weights, scales, products[name] = fp8_of((rows, columns), BLOCK, len(products))
            changes |= {name: weights, f"{name}_scale_inv": scales}
    change_file(folder, changes)
    expected = {name: products.get(name, tensor) for name, tensor in weights_of(model).items()}
    gate, up, down = (
        torch.stack([products[f"{LAYER}.{expert}.{kind}_proj.weight"] for expert in range(4)])
        for kind in ("gate", "up", "down")
    )
    expected |= {f"{LAYER}.gate_up_proj": torch.cat((gate, up), dim=1), f"{LAYER}.down_proj": down}
    return source_of(folder, model), expected


def test_fp8_is_multiplied_by_the_scale_of_its_block(fp8: tuple[WeightSource, dict[str, Any]]) -> None:
    source, expected = fp8
    source.check()
    assert source.unused() == ()
    for name, tensor in expected.items():
        assert torch.equal(source.read(name, dtype=torch.float32), tensor), name
    found = source.read(f"{LAYER}.down_proj")
    assert found.dtype == torch.bfloat16  # that of config.json
    assert torch.equal(found, expected[f"{LAYER}.down_proj"].bfloat16())


@given(data=st.data())
def test_any_slice_of_fp8_is_that_of_the_product(fp8: tuple[WeightSource, dict[str, Any]], data: st.DataObject) -> None:
    source, expected = fp8
    name, tensor = data.draw(st.sampled_from(sorted(expected.items())))
    bounds = [sorted((data.draw(st.integers(0, size)), data.draw(st.integers(0, size)))) for size in tensor.shape]
    slices = tuple(slice(start, stop) for start, stop in bounds)
    before = source.bytes_read
    assert torch.equal(source.read(name, *slices, dtype=torch.float32), tensor[slices])
    elements = tensor[slices].numel()
    *first, rows, columns = tensor[slices].shape if tensor.dim() > 1 else (1, 1)
    grid = math.prod(first) * (rows // BLOCK + 3) * (columns // BLOCK + 2)  # gate's last block and up's first, too
    quantised = "_proj" in name
    assert source.bytes_read - before <= (elements + 4 * grid if quantised else 4 * elements)


def test_fp8_of_real_size_reads_one_byte_a_weight_and_its_scales(tmp_path: Path) -> None:
    shape = (576, 7168)  # DeepSeek-V3's `kv_a_proj_with_mqa`: four and a half blocks of rows
    weights = torch.randn(shape).to(torch.float8_e4m3fn)
    scales = torch.rand(5, 56)
    (tmp_path / "config.json").write_text('{"model_type": "deepseek_v3"}')
    save_file({"w": weights, "w_scale_inv": scales}, tmp_path / "model.safetensors")
    source = WeightSource(Checkpoint.open(tmp_path), {"w": shape})
    spread = scales.repeat_interleave(128, dim=0).repeat_interleave(128, dim=1)
    expected = weights.float() * spread[:576]
    assert torch.equal(source.read("w", dtype=torch.float32), expected)
    assert source.bytes_read == 576 * 7168 + 4 * 5 * 56
    assert torch.equal(source.read("w", slice(100, 300), slice(130, 140)), expected[100:300, 130:140].bfloat16())
    assert source.bytes_read == 576 * 7168 + 4 * 5 * 56 + 200 * 10 + 4 * 3


def test_one_scale_may_serve_a_whole_tensor(tmp_path: Path) -> None:
    weights = torch.randn(6, 5).to(torch.float8_e5m2)
    (tmp_path / "config.json").write_text('{"model_type": "mixtral", "torch_dtype": "float16"}')
    for scale in (torch.tensor(0.25), torch.tensor([0.25])):
        save_file({"w": weights, "w_scale_inv": scale}, tmp_path / "model.safetensors")
        found = WeightSource(Checkpoint.open(tmp_path), {"w": (6, 5)}).read("w", slice(1, 4))
        assert found.dtype == torch.float16
        assert torch.equal(found, (weights.float() / 4).half()[1:4])


@pytest.mark.parametrize("scales", [torch.ones(2, 3), torch.ones(2), torch.ones(1, 1, dtype=torch.int64)])
def test_scales_that_do_not_fit_are_named(tmp_path: Path, scales: Any) -> None:  # noqa: ANN401
    (tmp_path / "config.json").write_text('{"quantization_config": {"weight_block_size": [128, 128]}}')
    save_file({"w": torch.zeros(4, 4).to(torch.float8_e4m3fn), "w_scale_inv": scales}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"w_scale_inv = .*: scales of w must be F32 or BF16 of shape \[1, 1\]"):
        WeightSource(Checkpoint.open(tmp_path), {"w": (4, 4)})


@pytest.fixture(scope="module")
def mxfp4(tmp_path_factory: pytest.TempPathFactory) -> tuple[WeightSource, dict[str, Any]]:
    """Return a tiny gpt-oss with experts in MXFP4, and the bytes that they are stored in."""
    folder = tmp_path_factory.mktemp("mxfp4")
    model = tiny_model("gpt_oss", hidden_size=64, intermediate_size=96)
    generator = torch.Generator().manual_seed(4)
    packed: dict[str, Any] = {}
    for name, tensor in weights_of(model).items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, columns, rows = tensor.shape
            size = (experts, rows, columns // 32)
            packed[f"{name}_blocks"] = torch.randint(256, (*size, 16), dtype=torch.uint8, generator=generator)
            packed[f"{name}_scales"] = torch.randint(100, 150, size, dtype=torch.uint8, generator=generator)
    save_stacked(model, folder, packed | {name[: -len("_blocks")]: None for name in packed if name.endswith("_blocks")})
    return source_of(folder, model), packed


def element(packed: dict[str, Any], name: str, expert: int, column: int, row: int) -> float:
    """Return one weight by the text of the OCP specification: an E2M1 number times two to the exponent less 127."""
    group, place = divmod(column, 32)
    byte = int(packed[f"{name}_blocks"][expert, row, group, place // 2])
    code = byte >> 4 if place % 2 else byte & 15
    return E2M1[code] * 2.0 ** (int(packed[f"{name}_scales"][expert, row, group]) - 127)


def test_mxfp4_is_each_number_times_the_scale_of_its_group(mxfp4: tuple[WeightSource, dict[str, Any]]) -> None:
    source, packed = mxfp4
    source.check()
    assert source.unused() == ()
    for kind in ("gate_up_proj", "down_proj"):
        name = f"{LAYER}.{kind}"
        experts, columns, rows = source.parameters[name]
        expected = torch.tensor(
            [
                [[element(packed, name, expert, column, row) for row in range(rows)] for column in range(columns)]
                for expert in range(experts)
            ]
        )
        before = source.bytes_read
        found = source.read(name, dtype=torch.float32)
        assert torch.equal(found, expected)
        assert source.bytes_read - before == found.numel() // 2 + found.numel() // 32
        assert torch.equal(source.read(name), expected.bfloat16())


def test_mxfp4_is_what_transformers_makes_of_it(mxfp4: tuple[WeightSource, dict[str, Any]]) -> None:
    source, packed = mxfp4
    convert = importlib.import_module("transformers.integrations.mxfp4").convert_moe_packed_tensors
    for kind in ("gate_up_proj", "down_proj"):
        blocks, scales = (packed[f"{LAYER}.{kind}_{part}"] for part in ("blocks", "scales"))
        for dtype in (torch.bfloat16, torch.float32):
            expected = convert(blocks.clone(), scales.clone(), dtype=dtype)
            assert torch.equal(source.read(f"{LAYER}.{kind}", dtype=dtype), expected)


@given(expert=st.integers(0, 3), start=st.integers(0, 96), stop=st.integers(0, 96))
def test_an_experts_columns_of_mxfp4_cost_whole_groups_at_most(
    mxfp4: tuple[WeightSource, dict[str, Any]], expert: int, start: int, stop: int
) -> None:
    source, _ = mxfp4
    gate_up, down = (
        source.read(f"{LAYER}.{kind}", slice(expert, expert + 1)) for kind in ("gate_up_proj", "down_proj")
    )
    before = source.bytes_read
    found = source.read_expert(LAYER, "down_proj", expert, slice(start, stop))
    assert torch.equal(found, down[0, start:stop])
    groups = max(-(-stop // 32) - start // 32, 0)
    assert source.bytes_read - before <= groups * 17 * 64
    found = source.read_expert(LAYER, "gate_up_proj", expert, slice(start, stop))
    assert torch.equal(found, gate_up[0, :, 2 * start : 2 * max(start, stop)])
    assert source.bytes_read - before <= groups * 17 * 64 + found.numel() * 17 // 32
    held = source.read_expert_codes(LAYER, "down_proj", expert, slice(start, stop), torch.float32, "mxfp4")
    assert held.has_pairs
    assert torch.equal(whole(held).bfloat16(), down[0, start:stop]), "a byte's codes may belong to two ranks"
    held = source.read_expert_codes(LAYER, "gate_up_proj", expert, slice(start, stop), torch.float32, "mxfp4")
    assert torch.equal(whole(held).bfloat16(), gate_up[0, :, 2 * start : 2 * max(start, stop)])


def test_an_exponent_of_all_ones_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    scales = torch.tensor([[[0, 254, 255]]], dtype=torch.uint8)
    packed = {"w_blocks": torch.full((1, 1, 3, 16), 0x21, dtype=torch.uint8), "w_scales": scales}
    save_file(packed, tmp_path / "model.safetensors")
    found = WeightSource(Checkpoint.open(tmp_path), {"w": (1, 96, 1)}).read("w", dtype=torch.float32).flatten()
    assert found[:32].tolist() == [2.0**-128, 2.0**-127] * 16
    assert found[32:64].tolist() == [2.0**126, 2.0**127] * 16
    assert found[64:].isnan().all()


@pytest.mark.parametrize("scales", [None, torch.zeros(1, 1, 2, dtype=torch.uint8), torch.zeros(1, 1, 3)])
def test_mxfp4_without_fitting_scales_is_named(tmp_path: Path, scales: Any) -> None:  # noqa: ANN401
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    packed = {"w_blocks": torch.zeros(1, 1, 3, 16, dtype=torch.uint8)} | (
        {} if scales is None else {"w_scales": scales}
    )
    save_file(packed, tmp_path / "model.safetensors")
    message = "needs its scales, w_scales" if scales is None else r"w_scales = .*must be U8 of shape \[1, 1, 3\]"
    with pytest.raises(InputError, match=message):
        WeightSource(Checkpoint.open(tmp_path), {"w": (1, 96, 1)})


@pytest.mark.parametrize(
    ("suffix", "method"),
    [
        ("qweight", "GPTQ or AWQ"),
        ("weight_packed", "compressed-tensors"),
        ("weight.absmax", "bitsandbytes"),
        ("weight_scale_2", "NVFP4"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path: Path, suffix: str, method: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe"}')
    name = f"model.layers.0.mlp.experts.0.up_proj.{suffix}"
    save_file({name: torch.zeros(4, dtype=torch.int32)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=f"is quantised in the style of {method}, which is not read; use a ") as caught:
        WeightSource(Checkpoint.open(tmp_path), {"model.norm.weight": (4,)})
    assert (caught.value.source, caught.value.field) == (str(tmp_path / "model.safetensors"), name)
