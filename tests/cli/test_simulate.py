"""`moiety simulate`: the plan again, its trace, and the what-ifs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.command import moiety, refused

if TYPE_CHECKING:
    from pathlib import Path


def simulated(*arguments: str | Path) -> dict[str, Any]:
    done = moiety("simulate", *arguments, "--json")
    assert done.code == 0, done.err
    assert done.err == ""
    document: dict[str, Any] = json.loads(done.out)
    return document


def test_the_simulation_gives_the_projection_of_the_file(reference_folder: Path, work: Path) -> None:
    document = simulated(reference_folder, "--trace", "t.json")
    stored = json.loads((reference_folder / "enhanced_deployment_method.json").read_text())
    assert document["projection"] == stored["projection"]
    assert document["failure"] is document["resized"] is document["ablation"] is document["scaling"] is None
    for pool in document["pools"]:
        times = pool["timeline"]
        assert 0 < times["critical_path_s"] <= times["makespan_s"] * (1 + 1e-9) <= times["work_s"] * (1 + 1e-9)
        assert times["exposed_s"] <= times["communication_s"] * (1 + 1e-9)
    assert [path.name for path in work.iterdir()] == ["t.json"]


def test_the_trace_goes_beside_the_plan_unless_told_otherwise(small_folder: Path) -> None:
    document = simulated(small_folder)
    path = small_folder / "enhanced_trace.json"
    assert document["trace"] == str(path)
    events = json.loads(path.read_text())["traceEvents"]
    assert any(event["ph"] == "X" for event in events)
    path.unlink()


def test_a_lost_gpu_costs_throughput_and_the_survivors_are_planned_anew(reference_folder: Path, work: Path) -> None:
    document = simulated(reference_folder, "--fail", "gpu:17", "--trace", "t.json")
    degraded, anew = document["failure"]["degraded"], document["failure"]["replanned"]
    assert degraded["alive_gpus"] == 127
    assert degraded["throughput_share"] < 1
    assert anew["num_gpus"] == 120
    assert anew["projection"]["throughput_tokens_per_s"] < document["projection"]["throughput_tokens_per_s"]
    assert (work / "t.json").exists()


def test_a_lost_gpu_of_the_only_node_is_planned_around(small_folder: Path, work: Path) -> None:
    document = simulated(small_folder, "--fail", "gpu:0", "--trace", work / "t.json")
    assert document["failure"]["replanned"]["num_gpus"] in {4, 7}


def test_losing_everything_says_so(small_folder: Path, work: Path) -> None:
    document = simulated(small_folder, "--fail", "node:0", "--trace", work / "t.json")
    assert document["failure"]["degraded"]["throughput_tokens_per_s"] == 0
    assert document["failure"]["replanned"] is None
    assert "no whole node" in document["failure"]["why_not_replanned"]


def test_a_slower_link_is_never_faster(reference_folder: Path, work: Path) -> None:
    half = simulated(reference_folder, "--fail", "link:infiniband", "--trace", work / "t.json")
    tenth = simulated(reference_folder, "--fail", "link:infiniband:0.1", "--trace", work / "t.json")
    shares = [each["failure"]["degraded"]["throughput_share"] for each in (half, tenth)]
    assert 1 > shares[0] > shares[1]


def test_another_number_of_gpus_is_planned_anew(reference_folder: Path, work: Path) -> None:
    document = simulated(reference_folder, "--gpus", "64", "--trace", work / "t.json")
    assert document["resized"]["num_gpus"] == 64
    smaller = document["resized"]["projection"]["throughput_tokens_per_s"]
    assert smaller < document["projection"]["throughput_tokens_per_s"]


def test_ablation_has_a_line_for_every_option(small_folder: Path, work: Path) -> None:
    document = simulated(small_folder, "--ablate", "--trace", work / "t.json")
    options = {line["option"] for line in document["ablation"]}
    assert {"all_to_all", "two_batch_overlap", "flash_attention", "arena", "dtypes"} <= options


def test_scaling_has_strong_and_weak_lines_for_every_size(small_folder: Path, work: Path) -> None:
    document = simulated(small_folder, "--scale", "4, 8,16", "--trace", work / "t.json")
    lines = [(line["scaling"], line["num_gpus"]) for line in document["scaling"]]
    assert lines == [(kind, size) for kind in ("strong", "weak") for size in (4, 8, 16)]


def test_tables_show_what_was_asked(small_folder: Path, work: Path) -> None:
    done = moiety(
        *("simulate", small_folder, "--fail", "gpu:1", "--gpus", "16", "--ablate", "--scale", "8,16"),
        *("--trace", work / "t.json"),
    )
    assert done.code == 0, done.err
    for words in ("Simulated step", "critical path", "After gpu:1", "Planned anew", "each option is worth", "Scaling"):
        assert words in done.out
    assert moiety("simulate", small_folder, "--quiet", "--trace", work / "t.json").out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--fail", "gpu:8"), ("--fail", "gpu:8")),
        (("--fail", "gpu:-1"), ("--fail", "gpu:-1")),
        (("--fail", "gpu:1\n"), ("--fail", "is not a failure")),
        (("--fail", "everything"), ("--fail", "everything")),
        (("--fail", "link:nvlnk"), ("did you mean 'nvlink'",)),
        (("--fail", "link:nvlink:0"), ("--fail", "above 0")),
        (("--fail", "link:nvlink:1.2.3"), ("--fail",)),
        (("--gpus", "0"), ("--gpus",)),
        (("--gpus", "12"), ("--gpus", "12", "16")),
        (("--gpus", "1"), ("--gpus = 1: ", "does not fit 1 GPUs")),
        (("--gpus", "99999999999999999999"), ("--gpus",)),
        (("--scale", "8,nan"), ("--scale", "8,nan")),
        (("--scale", ""), ("--scale",)),
        (("--scale", "-8"), ("--scale", "-8")),
        (("--scale", "8,12"), ("--scale", "12", "16")),
        (("--scale", ",".join(str(8 * n) for n in range(1, 40))), ("--scale", "at most 32")),
        (("--trace", "file/t.json"), ("file", "cannot be written")),
        (("--trace", ""), ("--trace", "must name a file")),
        (("--trace", "."), ("--trace", "must name a file, not a folder")),
    ],
)
def test_questions_that_make_no_sense(
    arguments: tuple[str, ...], words: tuple[str, ...], small_folder: Path, work: Path
) -> None:
    (work / "file").write_text("mine")
    message = refused(moiety("simulate", small_folder, *arguments))
    assert all(word in message for word in words), message
    assert [path.name for path in work.iterdir()] == ["file"]
    assert not (small_folder / "enhanced_trace.json").exists()


def test_a_plan_that_cannot_run_is_refused(small_folder: Path, work: Path) -> None:
    stored = json.loads((small_folder / "enhanced_deployment_method.json").read_text())
    stored["pools"][0]["placement"] = None
    (work / "p.json").write_text(json.dumps(stored))
    assert "cannot run" in refused(moiety("simulate", "p.json"))
    assert [path.name for path in work.iterdir()] == ["p.json"]


def test_other_routing_a_price_and_interruptions_are_answered(small_folder: Path, work: Path) -> None:
    asked = (
        "--skew",
        "0.8",
        "--price",
        "2",
        "--repair-hours",
        "24",
        "--fail",
        "slow:0:1.5",
        "--trace",
        work / "t.json",
    )
    document = simulated(small_folder, *asked)
    rate = document["projection"]["throughput_tokens_per_s"]
    assert document["skewed"]["throughput_tokens_per_s"] <= rate
    price = document["price"]
    assert price["per_million_tokens"] == pytest.approx(1e6 * price["per_hour"] / 3600 / rate)
    assert 0 < document["interruptions"]["throughput_share"] <= 1
    assert document["failure"]["degraded"]["throughput_share"] < 1
    assert document["failure"]["replanned"]["num_gpus"] < 8, "a new plan does without the slow GPU"


@pytest.mark.parametrize(
    "option", [("--skew", "9"), ("--price", "-1"), ("--repair-hours", "nan"), ("--fail", "slow:0:0")]
)
def test_impossible_what_ifs_are_refused(option: tuple[str, str], small_folder: Path) -> None:
    assert option[0] in refused(moiety("simulate", small_folder, *option))


def test_requests_are_served_one_by_one(small_folder: Path, work: Path) -> None:
    trace = ("--trace", work / "t.json")
    own = simulated(small_folder, "--requests", "64", *trace)["serving"]
    assert own["load"].startswith("closed loop")
    assert own["requests_per_group"] * own["num_groups"] >= 64 - own["num_groups"]
    for name in ("ttft", "tpot", "itl", "e2e"):
        assert 0 < own[name]["p50_s"] <= own[name]["p90_s"] <= own[name]["p99_s"]
    assert own["output_tokens_per_s"] > 0
    assert 0 <= own["good_share"] <= 1
    slow = simulated(small_folder, "--requests", "64", "--rate", "0.5", *trace)["serving"]
    cached = simulated(small_folder, "--requests", "64", "--rate", "0.5", "--prefix-hits", "0.9", *trace)["serving"]
    assert cached["ttft"]["mean_s"] < slow["ttft"]["mean_s"] <= own["ttft"]["mean_s"]
    few = simulated(small_folder, "--requests", "64", "--concurrency", "1", *trace)["serving"]
    assert few["output_tokens_per_s"] < own["output_tokens_per_s"]


def test_a_trace_of_requests_is_served_in_its_order(small_folder: Path, work: Path) -> None:
    lines = [json.dumps({"at_s": at, "input_tokens": 50, "output_tokens": 4}) for at in (3.0, 0.0, 1.5)]
    (work / "a.jsonl").write_text("\n".join(lines))
    own = simulated(small_folder, "--requests", "10", "--arrivals", "a.jsonl", "--trace", work / "t.json")["serving"]
    assert own["load"] == "arrivals of a.jsonl"
    assert own["requests_per_group"] * own["num_groups"] == 3


def test_no_more_requests_are_in_flight_than_asked_for(small_folder: Path, work: Path) -> None:
    asked = ("--requests", "6", "--concurrency", "1", "--trace", work / "t.json")
    one = simulated(small_folder, *asked)["serving"]
    assert one["load"] == "closed loop, 1 requests in flight"
    assert (one["num_groups"], one["requests_per_group"]) == (1, 6)
    assert one["output_tokens_per_s"] == pytest.approx(512 / one["e2e"]["mean_s"], rel=0.05)
    few = simulated(small_folder, "--requests", "3", "--rate", "9", "--trace", work / "t.json")["serving"]
    assert few["num_groups"] * few["requests_per_group"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rate", "3"), "add --requests"),
        (("--requests", "9", "--rate", "3", "--concurrency", "4"), "name one load"),
        (("--requests", "9", "--arrivals", "none.jsonl"), "there is no such file"),
        (("--requests", "9", "--arrivals", "bad.jsonl"), "bad.jsonl:2: output_tokens = 0: "),
        (("--requests", "9", "--arrivals", "torn.jsonl"), "torn.jsonl:1: is no JSON"),
        (("--requests", "9", "--arrivals", "empty.jsonl"), "holds no request"),
        (("--requests", "9", "--arrivals", "list.jsonl"), "list.jsonl:1: must be an object"),
        (("--requests", "9", "--arrivals", "twice.jsonl"), "twice.jsonl:1: at_s: the key is there twice"),
        (
            ("--requests", "9", "--arrivals", "huge.jsonl"),
            "huge.jsonl:1: input_tokens + output_tokens = 100000004: is more",
        ),
    ],
)
def test_a_load_that_cannot_be_has_one_message(
    arguments: tuple[str, ...], said: str, small_folder: Path, work: Path
) -> None:
    good = '{"at_s": 0.0, "input_tokens": 5, "output_tokens": 4}'
    (work / "bad.jsonl").write_text(good + '\n{"at_s": 0.0, "input_tokens": 5, "output_tokens": 0}')
    (work / "torn.jsonl").write_text(good[:20])
    (work / "list.jsonl").write_text("[]")
    (work / "twice.jsonl").write_text(good.replace("{", '{"at_s": 1.0, '))
    (work / "huge.jsonl").write_text(good.replace("5", "100000000"))
    (work / "empty.jsonl").write_text("")
    assert said in refused(moiety("simulate", small_folder, *arguments, "--trace", work / "t.json"))
    assert not (work / "t.json").exists()


def test_a_plan_without_prompts_or_answers_serves_no_requests(reference_folder: Path, work: Path) -> None:
    said = refused(moiety("simulate", reference_folder, "--requests", "9", "--trace", work / "t.json"))
    assert "requests need one for mixed, or prefill and decode" in said
