"""What does not fit is named before anything is read: the tensor as the files name it, what it is, what it must be."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from moiety.errors import InputError
from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.checkpoint.weights import WeightSource
from tests.runtime.checkpoint.models import (
    ARCHITECTURES,
    LAYER,
    change_file,
    save_stacked,
    source_of,
    tiny_model,
    weights_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

BLOCK = "model.layers.1.block_sparse_moe"
"""Where Mixtral's checkpoints hold what the model calls `model.layers.1.mlp`."""


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a whole Mixtral, experts one by one."""
    folder = tmp_path_factory.mktemp("mixtral")
    tiny_model("mixtral").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "place", "message"),
    [
        ({f"{BLOCK}.gate.weight": None}, "", f"{BLOCK}.gate.weight: the tensor is missing; "),
        ({f"{BLOCK}.experts.2.w3.weight": None}, "", f"{BLOCK}.experts.2.w3.weight: the tensor is missing; "),
        ({f"{BLOCK}.experts.3.w2.weight": None}, "", f"{BLOCK}.experts.3.w2.weight: the tensor is missing; "),
        (
            {f"{BLOCK}.experts.{expert}.w{matrix}.weight": None for expert in range(4) for matrix in (1, 3)},
            "",
            f"{BLOCK}.experts.0.w1.weight: the tensor is missing; ",
        ),
        (
            {f"{BLOCK}.experts.{expert}.w3.weight": None for expert in range(4)},
            "",
            f"{BLOCK}.experts.0.w3.weight: the tensor is missing, and 3 more tensors do not fit; ",
        ),
        ({"model.norm.weight": None}, "", "model.norm.weight: the tensor is missing; "),
        (
            {f"{BLOCK}.gate.weight": torch.zeros(8, 32)},
            "model.safetensors",
            f"{BLOCK}.gate.weight = [8, 32]: must have the shape [4, 32]; ",
        ),
        (
            {f"{BLOCK}.experts.1.w1.weight": torch.zeros(24, 32), "model.norm.weight": torch.zeros(1)},
            "model.safetensors",
            f"{BLOCK}.experts.1.w1.weight = [24, 32]: must have the shape [48, 32], and 1 more tensors do not fit; ",
        ),
        (
            {f"{BLOCK}.experts.0.w2.weight": torch.zeros(48, 32)},
            "model.safetensors",
            f"{BLOCK}.experts.0.w2.weight = [48, 32]: must have the shape [32, 48]; ",
        ),
        (
            {f"{BLOCK}.experts.4.w1.weight": torch.zeros(48, 32)},
            "model.safetensors",
            f"{BLOCK}.experts.4.w1.weight: the model has 4 of them, numbered from 0; ",
        ),
        (
            {"model.norm.weight": torch.zeros(32, dtype=torch.int64)},
            "model.safetensors",
            "model.norm.weight = I64: weights must be F32, BF16 or F16",
        ),
        (
            {"lm_head.weight": torch.zeros(64, 32).to(torch.float8_e4m3fn)},
            "model.safetensors",
            "lm_head.weight = F8_E4M3: weights must be F32, BF16 or F16, FP8 with its scales",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_read(
    mixtral: Path, tmp_path: Path, changes: Mapping[str, Any], place: str, message: str
) -> None:
    shutil.copytree(mixtral, tmp_path, dirs_exist_ok=True)
    change_file(tmp_path, changes)
    source = source_of(tmp_path, tiny_model("mixtral"))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        source.check()
    assert caught.value.source == str(tmp_path / (place or "model.safetensors"))
    assert source.bytes_read == 0


def test_what_fits_can_be_read_beside_what_does_not(mixtral: Path, tmp_path: Path) -> None:
    shutil.copytree(mixtral, tmp_path, dirs_exist_ok=True)
    change_file(tmp_path, {f"{BLOCK}.experts.1.w2.weight": None, "model.norm.weight": torch.zeros(3)})
    source = source_of(tmp_path, tiny_model("mixtral"))
    assert torch.equal(source.read(f"{LAYER}.gate_up_proj"), weights_of(tiny_model("mixtral"))[f"{LAYER}.gate_up_proj"])
    with pytest.raises(InputError, match=r"experts\.1\.w2\.weight: the tensor is missing"):
        source.read_expert(LAYER, "down_proj", 0)
    with pytest.raises(InputError, match="must have the shape"):
        source.read("model.norm.weight", slice(1))


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        (f"{LAYER}.down_proj", f"{LAYER}.down_proj"),
        ("layers.1.mlp.experts.2.w1.weight", f"{LAYER}.gate_up_proj"),
        ("norm.weight", "model.norm.weight"),
    ],
)
def test_a_parameter_that_the_files_hold_twice_is_refused(
    mixtral: Path, tmp_path: Path, name: str, parameter: str
) -> None:
    shutil.copytree(mixtral, tmp_path, dirs_exist_ok=True)
    change_file(tmp_path, {name: torch.zeros(1)})
    with pytest.raises(InputError, match=rf"holds {re.escape(parameter)} of the model, and so does ") as caught:
        source_of(tmp_path, tiny_model("mixtral"))
    assert name in str(caught.value)


def test_experts_in_a_layout_that_cannot_be_sliced_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl_moe"}')
    save_file({f"{LAYER}.gate_up_proj": torch.zeros(4, 32, 48)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert WeightSource(checkpoint, {"norm": (32,)}).unused() == (f"{LAYER}.gate_up_proj",)
    with pytest.raises(InputError, match=r"by Transpose, which cannot be read slice by slice"):
        WeightSource(checkpoint, {f"{LAYER}.gate_up_proj": (4, 48, 32)})


def test_a_checkpoint_of_another_architecture_is_told(mixtral: Path) -> None:
    model = tiny_model("deepseek_v2")
    message = (
        r"self_attn\.q_a_proj\.weight: the tensor is missing, and \d+ more tensors do not fit; .* another model\?$"
    )
    with pytest.raises(InputError, match=message) as caught:
        source_of(mixtral, model).check()
    assert caught.value.source == str(mixtral / "model.safetensors")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_checkpoint_of_a_wider_model_of_the_kind_does_not_pass(tmp_path: Path, architecture: str) -> None:
    save_stacked(tiny_model(architecture, hidden_size=64), tmp_path)
    model = tiny_model(architecture)
    with pytest.raises(InputError, match=r"= \[64, 64\]: must have the shape \[64, 32\], and \d+ more"):
        source_of(tmp_path, model).check()
