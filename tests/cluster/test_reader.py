"""Cluster files: what people write, and what they get told when it is wrong."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moiety.cluster.catalog import load_device
from moiety.cluster.cluster import Cluster
from moiety.cluster.reader import read_cluster
from moiety.errors import InputError

FILE = """\
name: my-cluster
num_nodes: 4
gpus_per_node: 8
device: h200
tiers:
  - name: nvlink
    spans: node
    bandwidth: 900 GB/s
    counted: both-ways
    per: gpu
    latency: 2 us
    in_network_reduction: true
  - name: infiniband
    spans: cluster
    bandwidth: 400 Gbit/s
    counted: one-way
    per: gpu
    latency: 5 us
    oversubscription: 2
"""
DEVICE = """\
device:
  name: mine
  architecture: hopper
  memory: 141 GB
  memory_bandwidth: 4.8 TB/s
  peak: {bf16: 989 TFLOPS, fp8: 1979 TFLOPS}
  num_sms: 132
  max_clock: 1.98 GHz
  idle_power: 70 W
  max_power: 700 W
"""


def read(text: str) -> Cluster:
    return read_cluster(text, source="c.yaml", devices=load_device)


def refused(text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        read(text)
    return caught.value


def test_file_is_read_in_base_units() -> None:
    cluster = read(FILE)
    assert cluster.num_gpus == 32
    assert cluster.device == load_device("h200")
    nvlink, infiniband = cluster.tiers
    assert (nvlink.num_gpus, infiniband.num_gpus) == (8, 32)
    assert nvlink.bandwidth_bytes_per_s == 450e9  # both ways: half of it each way
    assert infiniband.bandwidth_bytes_per_s == 50e9
    assert cluster.bandwidth_per_gpu(1) == 25e9  # oversubscribed twice
    assert (nvlink.in_network_reduction, infiniband.in_network_reduction) == (True, False)
    assert infiniband.latency_s == pytest.approx(5e-6)


def test_device_written_out() -> None:
    device = read(FILE.replace("device: h200\n", DEVICE)).device
    assert device.name == "mine"
    assert device.memory_bytes == 141 * 10**9
    assert device.peak_flops_per_s == {"bf16": 989e12, "fp8": 1979e12}


def test_device_like_another_says_what_it_took() -> None:
    inline = "device: {name: small, like: h100, memory: 64 GB, peak: {bf16: 400 TFLOPS}}\n"
    device = read(FILE.replace("device: h200\n", inline)).device
    assert device.memory_bytes == 64 * 10**9
    assert device.peak_flops_per_s == {"bf16": 400e12}
    assert device.num_sms == 132
    assert "num_sms: as h100" in device.assumed
    assert not any(each.startswith("memory:") for each in device.assumed)


def test_one_node_needs_no_network() -> None:
    assert [tier.name for tier in read(FILE.replace("num_nodes: 4", "num_nodes: 1")).tiers] == ["nvlink"]


def test_domain_wider_than_a_node() -> None:
    rack = FILE.replace("gpus_per_node: 8", "gpus_per_node: 4").replace("spans: node", "spans: 8")
    assert [tier.num_gpus for tier in read(rack).tiers] == [8, 16]


def test_anchors_are_understood() -> None:
    text = FILE.replace("bandwidth: 900 GB/s", "bandwidth: &speed 900 GB/s")
    text = text.replace("bandwidth: 400 Gbit/s", "bandwidth: *speed")
    assert read(text).tiers[1].bandwidth_bytes_per_s == 900e9


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "said"),
    [
        ("    per: gpu\n    latency: 2 us", "    latency: 2 us", 6, "tiers[0].per", "gpu or node"),
        ("    counted: one-way\n", "", 13, "tiers[1].counted", "both-ways or one-way"),
        ("per: gpu\n    latency: 5", "per: GPU\n    latency: 5", 17, "tiers[1].per", "gpu or node"),
        ("num_nodes: 4", "num_nodes: 0", 2, "num_nodes", "whole number"),
        ("num_nodes: 4", "num_nodes: 4.5", 2, "num_nodes", "whole number"),
        ("num_nodes: 4", "num_nodes: true", 2, "num_nodes", "whole number"),
        ("num_nodes: 4", "num_nodes: .nan", 2, "num_nodes", "whole number"),
        ("num_nodes: 4", "num_nodes: .inf", 2, "num_nodes", "whole number"),
        ("num_nodes: 4", "num_nodes: -4", 2, "num_nodes", "whole number"),
        ("num_nodes: 4", "num_nodes: 1000000", 2, "num_nodes", "8,000,000 GPUs"),
        ("num_nodes: 4", "num_nodes: null", 2, "num_nodes", "missing"),
        ("num_nodes: 4", "num_nodes: " + "9" * 6000, 2, "num_nodes", "whole number"),
        ("num_nodes: 4\n", "", 1, "num_nodes", "missing"),
        ("num_nodes", "num_node", 2, "num_node", "did you mean 'num_nodes'?"),
        ("name: my", "nodes: 3\nname: my", 1, "nodes", "unknown field"),
        ("900 GB/s", "900", 8, "tiers[0].bandwidth", "needs its unit"),
        ("900 GB/s", "900 Gbps", 8, "tiers[0].bandwidth", "Gbit/s"),
        ("900 GB/s", ".nan", 8, "tiers[0].bandwidth", "unit"),
        ("900 GB/s", "-900 GB/s", 8, "tiers[0].bandwidth", "above 0"),
        ("900 GB/s", "1e30 GB/s", 8, "tiers[0].bandwidth", "more than any hardware"),
        ("900 GB/s", "[900]", 8, "tiers[0].bandwidth", "number with a unit"),
        ("latency: 5 us", "latency: 5 h", 18, "tiers[1].latency", "more than any hardware"),
        ("oversubscription: 2", "oversubscription: 0.5", 19, "tiers[1].oversubscription", "from 1 to 1000"),
        ("reduction: true", "reduction: yes please", 12, "tiers[0].in_network_reduction", "true or false"),
        ("spans: cluster", "spans: node", 14, "tiers[1].spans", "wider"),
        ("spans: cluster", "spans: 16", 14, "tiers[1].spans", "spans 16 GPUs, the cluster has 32"),
        ("spans: node", "spans: 12", 14, "tiers[1].spans", "whole nvlink domains"),
        ("spans: node", "spans: rack", 7, "tiers[0].spans", "node, cluster or a number"),
        ("device: h200", "device: h2000", 4, "device", "did you mean 'h200'?"),
        ("device: h200", "device: 200", 4, "device", "quotes"),
        ("device: h200", "device: {name: a, like: h2000}", 4, "device.like", "did you mean 'h200'?"),
        ("device: h200\n", DEVICE.replace("1979 TFLOPS", "1979 TB"), 9, "device.peak.fp8", "unit 'TB'"),
        ("device: h200\n", DEVICE.replace("fp8: 1979", "fp9: 1979"), 9, "device.peak.fp9", "did you mean"),
        ("device: h200\n", DEVICE.replace("bf16: 989 TFLOPS, ", ""), 5, "device", "at least one of bf16"),
        ("device: h200\n", DEVICE.replace("{bf16: 989 TFLOPS, fp8: 1979 TFLOPS}", "{}"), 9, "device.peak", "at least"),
        ("device: h200\n", DEVICE.replace("  num_sms: 132\n", ""), 5, "device.num_sms", "missing"),
        ("device: h200\n", DEVICE.replace("70 W", "7000 W"), 5, "device", "idle power"),
        ("name: my-cluster", "name: 7", 1, "name", "must be text"),
        ("name: my-cluster", "name: ''", 1, "name", "must be text"),
    ],
)
def test_error_names_line_field_and_rule(old: str, new: str, line: int, field: str, said: str) -> None:
    assert FILE.count(old) >= 1
    error = refused(FILE.replace(old, new, 1))
    assert (error.source, error.field) == (f"c.yaml:{line}", field)
    assert said in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 400


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("null\n", "is empty"),
        ("hello", "must be a mapping"),
        ("- a\n- b\n", "it is a list"),
        ("name: a\nname: b\n", "c.yaml:2: key name is given twice; it stood on line 1"),
        ("name: a\n\tnum_nodes: 4\n", "c.yaml:2: is not YAML"),
        ("name: [a\n", "is not YAML"),
        ("name: a\n---\nname: b\n", "second one starts here"),
        ("1: x\n", "a key must be text"),
        ("[a]: x\n", "a key must be text"),
        ("name: !!python/object/apply:os.system ['true']\n", "tag"),
        ("name: *nowhere\n", "is not YAML" if not hasattr(yaml, "CSafeLoader") else "anchor"),
        ("name: &a [*a]\n", "anchor"),
        ("name: \x07\n", "is not YAML"),
        ("name: \ud800\n", "is not YAML"),
        ("name: " + "[" * 500 + "]" * 500, "nested deeper"),
        ("name: " + "[" * 100_000, "c.yaml"),
        ("x" * 1_000_001, "characters"),
        ("tiers: []\nname: a\nnum_nodes: 1\ngpus_per_node: 1\ndevice: h200\n", "at least one entry"),
        ("tiers: [1]\nname: a\nnum_nodes: 1\ngpus_per_node: 1\ndevice: h200\n", "tiers[0]: must be a mapping"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_is_no_cluster_file_is_refused(text: str, said: str) -> None:
    assert said in str(refused(text))


def test_alias_bomb_is_harmless() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 20)]
    bomb = "\n".join(lines)
    assert "unknown field" in str(refused(bomb))
    for field in ("name", "device", "tiers", "assumed", "num_nodes"):
        renamed = bomb.replace("a19: ", f"{field}: ")
        refused(f"{renamed}\n")
        refused("\n".join(line for line in renamed.splitlines() if line.startswith(field)) + "\n" + FILE)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["node", "cluster", "gpu", "900 GB/s", "1 us", "h200", "-1 W", "1e400 GB"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_mutated_file_is_read_or_refused(data: st.DataObject) -> None:
    tree = yaml.safe_load(FILE.replace("device: h200\n", DEVICE))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(
            st.sampled_from([tree, tree["tiers"], *tree["tiers"], tree["device"], tree["device"]["peak"]])
        )
        if isinstance(place, list):
            place[data.draw(st.integers(0, 1))] = dict(place[data.draw(st.integers(0, 1))])
        else:
            place[data.draw(st.sampled_from(sorted(place)) | st.text(max_size=5))] = data.draw(VALUES)
            break
    check(yaml.safe_dump(tree, allow_unicode=data.draw(st.booleans())))


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"\n\t #%@`,?0.eE+~\\")))
def test_random_text_is_read_or_refused(text: str) -> None:
    check(text)
    check(FILE + text)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    check(text)


@given(VALUES)
def test_any_yaml_is_read_or_refused(value: object) -> None:
    check(yaml.safe_dump(value))


def check(text: str) -> None:
    try:
        cluster = read(text)
    except InputError as error:
        assert str(error).startswith("c.yaml")  # noqa: PT017 - the other outcome is legal too
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert Cluster.model_validate_json(cluster.model_dump_json()) == cluster
