"""Clusters and devices from YAML as people write it, units and all."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from moiety.cluster.cluster import MAX_GPUS, Cluster, LinkTier
from moiety.cluster.device import Device
from moiety.dtypes import Dtype
from moiety.errors import InputError
from moiety.yaml_text import Fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from moiety.units import Dimension

CLUSTER_FIELDS = ("name", "num_nodes", "gpus_per_node", "device", "tiers", "assumed", "source")
TIER_FIELDS = (
    "name",
    "spans",
    "bandwidth",
    "counted",
    "per",
    "latency",
    "oversubscription",
    "in_network_reduction",
)
DEVICE_FIELDS = (
    "name",
    "like",
    "architecture",
    "memory",
    "memory_bandwidth",
    "peak",
    "num_sms",
    "max_clock",
    "idle_power",
    "max_power",
    "assumed",
    "source",
)
_QUANTITIES: dict[str, tuple[str, Dimension, float]] = {
    "memory_bandwidth": ("memory_bandwidth_bytes_per_s", "bytes_per_s", 1e18),
    "max_clock": ("max_clock_hz", "hz", 1e12),
    "idle_power": ("idle_power_w", "w", 1e6),
    "max_power": ("max_power_w", "w", 1e6),
}
_MAX_MEMORY_BYTES = 2.0**50


def read_cluster(text: str, *, source: str, devices: Callable[[str], Device]) -> Cluster:
    """Return the cluster that a YAML text describes; `devices` looks up a device that it only names.

    Tiers that reach no further than the one inside them (the network of a one-node cluster) are left out. Raises
    InputError with the file, line and path of the first field that is wrong.
    """
    fields = Fields.parse(text, source=source, what="cluster", known=CLUSTER_FIELDS)
    name = fields.text("name")
    gpus_per_node = fields.integer("gpus_per_node", 1, 1024)
    num_nodes = fields.integer("num_nodes", 1, MAX_GPUS)
    if num_nodes * gpus_per_node > MAX_GPUS:
        raise fields.error("num_nodes", f"makes {num_nodes * gpus_per_node:,} GPUs; at most {MAX_GPUS:,} are planned")
    tiers, beyond = _tiers(fields, num_nodes * gpus_per_node, gpus_per_node)
    return fields.build(
        Cluster,
        {
            "name": name,
            "device": _device(fields, devices),
            "num_nodes": num_nodes,
            "gpus_per_node": gpus_per_node,
            "tiers": tiers,
            "beyond": beyond,
            "source": fields.text("source", ""),
            "assumed": fields.texts("assumed"),
        },
    )


def read_device(text: str, *, source: str) -> Device:
    """Return the device that a YAML text describes; InputError as in `read_cluster`."""
    known = [each for each in DEVICE_FIELDS if each != "like"]
    return _described_device(Fields.parse(text, source=source, what="device", known=known), None)


def _device(fields: Fields, devices: Callable[[str], Device]) -> Device:
    node = fields.node("device", "a catalogue device or a mapping with its fields")
    if not isinstance(node.value, dict):
        return _looked_up(fields, "device", devices)
    inner = fields.mapping("device", DEVICE_FIELDS)
    return _described_device(inner, _looked_up(inner, "like", devices) if inner.has("like") else None)


def _looked_up(fields: Fields, key: str, devices: Callable[[str], Device]) -> Device:
    try:
        return devices(fields.text(key))
    except InputError as error:
        raise fields.error(key, error.rule, error.remedy) from None


def _described_device(fields: Fields, like: Device | None) -> Device:
    """Return the device; what the fields leave out is taken from `like`, and said to be."""
    given: dict[str, object] = {}
    copied: list[str] = []

    def take(key: str, record_field: str, read: Callable[[str], object]) -> None:
        if like is not None and not fields.has(key):
            given[record_field] = getattr(like, record_field)
            copied.append(f"{key}: as {like.name}")
        else:
            given[record_field] = read(key)

    take("architecture", "architecture", fields.text)
    take("memory", "memory_bytes", lambda key: round(fields.quantity(key, "bytes", _MAX_MEMORY_BYTES)))
    take("peak", "peak_flops_per_s", lambda key: _peaks(fields.mapping(key, get_args(Dtype))))
    take("num_sms", "num_sms", lambda key: fields.integer(key, 1, 100_000))
    for key, (record_field, dimension, maximum) in _QUANTITIES.items():
        take(key, record_field, lambda key, d=dimension, m=maximum: fields.quantity(key, d, m))
    given |= {
        "name": fields.text("name"),
        "source": fields.text("source", ""),
        "assumed": (*fields.texts("assumed"), *copied),
    }
    return fields.build(Device, given)


def _peaks(fields: Fields) -> Mapping[str, float]:
    if not fields.nodes:
        raise InputError(
            "must name at least one number format and its rate",
            source=f"{fields.source}:{fields.line}",
            field=fields.path,
            remedy="for instance {bf16: 989 TFLOPS}",
        )
    return {dtype: fields.quantity(dtype, "flops_per_s", 1e20) for dtype in fields.nodes}


def _tiers(fields: Fields, num_gpus: int, gpus_per_node: int) -> tuple[tuple[LinkTier, ...], tuple[LinkTier, ...]]:
    """Return the tiers, cut to the cluster's size, and those that reach no further than the one before them."""
    tiers: list[LinkTier] = []
    beyond: list[LinkTier] = []
    spans: list[int] = []
    entries = fields.mappings("tiers", TIER_FIELDS)
    for entry in entries:
        span = _span(entry, gpus_per_node)
        tier = _tier(entry, span, num_gpus)
        if spans and span <= spans[-1]:
            raise entry.error("spans", "must be wider than the tier before", "list tiers from the innermost outwards")
        spans.append(span)
        if tiers and tier.num_gpus == tiers[-1].num_gpus:
            beyond.append(tier)
            continue
        if tiers and tier.num_gpus % tiers[-1].num_gpus:
            rule = f"a tier of {tier.num_gpus} GPUs must consist of whole {tiers[-1].name} domains of "
            raise entry.error("spans", f"{rule}{tiers[-1].num_gpus}", "change num_nodes or spans")
        tiers.append(tier)
    if tiers[-1].num_gpus != num_gpus:
        rule = f"the outermost tier spans {tiers[-1].num_gpus} GPUs, the cluster has {num_gpus}"
        raise entries[-1].error("spans", rule, "add a tier with `spans: cluster`")
    return tuple(tiers), tuple(beyond)


def _span(entry: Fields, gpus_per_node: int) -> int:
    """Return how many GPUs the tier spans as written; the whole cluster counts as more than any number."""
    value = entry.node("spans", "node, cluster or a number of GPUs").value
    if value == "node":
        return gpus_per_node
    if value == "cluster":
        return 2 * MAX_GPUS
    if isinstance(value, bool) or not isinstance(value, int):
        raise entry.error("spans", "must be node, cluster or a number of GPUs")
    return entry.integer("spans", 1, MAX_GPUS)


def _tier(entry: Fields, span: int, num_gpus: int) -> LinkTier:
    bandwidth = entry.quantity("bandwidth", "bytes_per_s", 1e18)
    counted = _required_choice(entry, "counted", ("both-ways", "one-way"), "vendors count links differently")
    return entry.build(
        LinkTier,
        {
            "name": entry.text("name"),
            "num_gpus": min(span, num_gpus),
            "reach": span if span <= MAX_GPUS else None,
            "bandwidth_bytes_per_s": bandwidth / 2 if counted == "both-ways" else bandwidth,
            "per": _required_choice(entry, "per", ("gpu", "node"), "a link per GPU is not a link per node"),
            "latency_s": entry.quantity("latency", "s", 10, zero=True),
            "oversubscription": entry.number("oversubscription", 1, 1000, default=1),
            "in_network_reduction": entry.flag("in_network_reduction", default=False),
        },
    )


def _required_choice(entry: Fields, key: str, options: Sequence[str], reason: str) -> str:
    if not entry.has(key):
        raise entry.error(key, f"is missing; it must be {' or '.join(options)}, because {reason}")
    return entry.choice(key, options)
