"""`moiety plan` on this machine, with constants of one's own: the loop that `moiety run --bench` closes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from moiety.calibration.catalog import load_calibration
from moiety.cli.plan_file import load_plan
from tests.cli.command import moiety, refused

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "vocab_size": 1024,
    "torch_dtype": "float32",
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
SMALL = ("--concurrency", "8", "--input-tokens", "64", "--output-tokens", "32", "--strategy", "ep4")
SMALLER = ("--concurrency", "8", "--input-tokens", "64", "--output-tokens", "32", "--strategy", "ep2")


def config_file(folder: Path, **changes: object) -> Path:
    path = folder / "tiny.json"
    path.write_text(json.dumps(CONFIG | changes))
    return path


def constants_file(folder: Path, **step: object) -> Path:
    """Write the CPU constants as if measured here, with other constants for the engine's step where asked."""
    document: dict[str, Any] = json.loads(load_calibration("cpu-2026-11").model_dump_json())
    document["name"] = "measured-here"
    parts = [*document["roofline"].values(), *document["engines"].values()]
    for part in (*parts, document["collectives"], document["expert_exchange"], document["power"]):
        part["basis"] = "measured"
    document["engines"]["moiety"].update(step)
    path = folder / "constants.json"
    path.write_text(json.dumps(document))
    return path


def planned(*arguments: str | Path) -> dict[str, Any]:
    done = moiety("plan", *arguments, "--json")
    assert done.code == 0, done.err
    document: dict[str, Any] = json.loads(done.out)
    return document


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_is_planned_on_this_machine_in_its_own_format(dtype: str, work: Path) -> None:
    document = planned(config_file(work, torch_dtype=dtype), "--cluster", "local:2x2", *SMALL)
    assert document["cluster"]["name"] == "local:2x2"
    assert document["num_gpus"] == 4
    kept = {key: value for key, value in document["options"]["dtypes"].items() if key != "critical"}
    assert set(kept.values()) == {"fp32" if dtype == "float32" else "bf16"}
    memory = document["pools"][0]["memory"]
    assert memory["total_bytes"] <= memory["capacity_bytes"]
    assert "calibration" not in document
    assert document["provenance"]["calibration"] == "cpu-2026-11"
    assert document["projection"]["provenance"]["step_s"] == "assumed"
    done = moiety("verify", "moiety-plan", "--quiet")
    assert done.code == 0, done.err


def test_a_float32_cache_takes_twice_the_bytes(work: Path) -> None:
    whole, half = (
        planned(config_file(work, torch_dtype=dtype), "--cluster", "local:2", *SMALLER)["pools"][0]["memory"]
        for dtype in ("float32", "bfloat16")
    )
    for kind in ("kv_cache", "expert_weights", "communication_buffers"):
        assert whole["bytes_by_kind"][kind] == 2 * half["bytes_by_kind"][kind] > 0


def test_a_plan_holds_the_constants_it_was_given_and_the_other_verbs_use_them(work: Path) -> None:
    constants = constants_file(work)
    document = planned(config_file(work), "--cluster", "local:2x2", "--calibration", constants, *SMALL)
    assert document["calibration"]["name"] == document["provenance"]["calibration"] == "measured-here"
    provenance = document["projection"]["provenance"]
    assert provenance["step_s"] == provenance["overlap_fraction"] == "measured"
    assert provenance["power_w_per_gpu"] == "assumed"  # the machine's power is
    constants.unlink()
    assert load_plan("moiety-plan")[0].model_dump(mode="json") == document
    assert moiety("verify", "moiety-plan", "--quiet").code == 0
    simulated = json.loads(moiety("simulate", "moiety-plan", "--gpus", "2", "--json").out)
    assert simulated["projection"] == document["projection"]
    assert simulated["resized"]["projection"]["provenance"]["step_s"] == "measured"


def test_a_changed_constant_changes_what_is_projected_by_as_much(work: Path) -> None:
    config = config_file(work)
    planned(config, "--cluster", "local:2x2", *SMALL)
    method = work / "moiety-plan" / "enhanced_deployment_method.json"
    document = json.loads(method.read_text())
    times: list[float] = []
    for overhead in (0.005, 0.105):
        carried = json.loads(constants_file(work, step_overhead_s=overhead).read_text())
        changed = document | {"calibration": carried}
        changed["provenance"] = document["provenance"] | {"calibration": carried["name"]}
        method.write_text(json.dumps(changed))
        done = moiety("simulate", "moiety-plan", "--json")
        assert done.code == 0, done.err
        times.append(json.loads(done.out)["projection"]["tpot_s"])
    assert times[1] - times[0] == pytest.approx(0.1)
    failed = moiety("verify", "moiety-plan")  # its figures are still those of the other constant
    assert failed.code == 1
    assert "step_s: stated" in failed.err


def test_a_plan_whose_name_of_constants_is_not_that_of_those_it_holds_is_refused(work: Path) -> None:
    planned(config_file(work), "--cluster", "local:4", "--calibration", constants_file(work), *SMALL)
    method = work / "moiety-plan" / "enhanced_deployment_method.json"
    document = json.loads(method.read_text())
    document["provenance"]["calibration"] = "published-2026-11"
    method.write_text(json.dumps(document))
    assert "measured-here" in refused(moiety("verify", method))


@pytest.mark.parametrize("cluster", ["local", "local:0", "local:2x", "local:9999999"])
def test_a_machine_that_cannot_be_is_refused(cluster: str, work: Path) -> None:
    message = refused(moiety("plan", config_file(work), "--cluster", cluster))
    assert message.startswith("--cluster = ")
    assert "local:2x2" in message


def test_constants_that_cannot_be_are_refused(work: Path) -> None:
    config = config_file(work)
    constants = constants_file(work, reserve_bytes=-1)
    message = refused(moiety("plan", config, "--cluster", "local:2", "--calibration", constants))
    assert message.startswith(f"{constants}: engines.moiety.reserve_bytes = -1: ")
    for absent in ("nowhere.json", str(work)):
        assert absent in refused(moiety("plan", config, "--cluster", "local:2", "--calibration", absent))
    assert not (work / "moiety-plan").exists()
