"""The clusters and devices that the package knows, and `h200x32`: so many GPUs of a kind of node."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from moiety.cluster.cluster import MAX_GPUS
from moiety.cluster.reader import read_cluster, read_device
from moiety.errors import InputError, nearest
from moiety.package_data import catalog_names, catalog_text

if TYPE_CHECKING:
    from moiety.cluster.cluster import Cluster
    from moiety.cluster.device import Device

ALIASES = {
    "a100-sxm": "a100",
    "b200-sxm": "b200",
    "b300-sxm": "b300",
    "gb200": "gb200-nvl72",
    "gb300": "gb300-nvl72",
    "h100-sxm": "h100",
    "h200-sxm": "h200",
    "h800-sxm": "h800",
    "mi300": "mi300x",  # so that mi300x8 is eight MI300X
}
_SIZED = re.compile(r"(.+)x([0-9]{1,12})")


def catalog_devices() -> tuple[str, ...]:
    """Return the names of the devices, sorted."""
    return catalog_names("devices")


def catalog_clusters() -> tuple[str, ...]:
    """Return the names of the clusters, sorted; each also takes `xN` for N of its GPUs."""
    return catalog_names("clusters")


def load_device(name: str) -> Device:
    """Return a catalogue device; raise InputError with the nearest name for an unknown one."""
    known = catalog_devices()
    if name not in known:
        rule = "no such device in the catalogue"
        raise InputError(rule, field="device", value=name, remedy=nearest(name, known))
    return read_device(catalog_text("devices", name), source=f"catalogue device {name}")


def load_cluster(name: str) -> Cluster:
    """Return a catalogue cluster (`reference-128`, `h200`), or N GPUs of its nodes (`h200x32`).

    N is a part of one node or a number of whole nodes (and whole NVLink domains where they are wider than a node).
    Raises InputError with the nearest name or count otherwise.
    """
    return read_cluster(cluster_text(name), source=f"catalogue cluster {name}", devices=load_device)


def cluster_text(name: str) -> str:
    """Return the YAML file of the cluster that `load_cluster` loads, its device written out."""
    known = catalog_clusters()
    canonical = _canonical(name)
    if canonical in known:
        return _with_device(catalog_text("clusters", canonical))
    sized = _SIZED.fullmatch(canonical)
    if sized is None or _canonical(sized[1]) not in known:
        base = sized[1] if sized else canonical
        remedy = nearest(base, {*known, *ALIASES})
        rule = "no such cluster in the catalogue, nor a file of that name"
        raise InputError(rule, field="cluster", value=name, remedy=remedy)
    return _resized(name, _canonical(sized[1]), int(sized[2]))


def _canonical(name: str) -> str:
    lower = name.lower().replace("_", "-")
    return ALIASES.get(lower, lower)


def _resized(name: str, base: str, num_gpus: int) -> str:
    """Return the text of cluster `base` with `num_gpus` GPUs, called as the user called it."""
    text = _with_device(catalog_text("clusters", base))
    cluster = read_cluster(text, source=f"catalogue cluster {base}", devices=load_device)
    node = cluster.gpus_per_node
    wide = max([node, *(int(span) for span in re.findall(r"^ *spans: ([0-9]+)", text, re.MULTILINE))])
    step = 1 if num_gpus < node else node if num_gpus < wide else wide
    if num_gpus % step or not 0 < num_gpus <= MAX_GPUS:
        below = min(num_gpus, MAX_GPUS) // step * step
        counts = [each for each in (below, below + step) if 0 < each <= MAX_GPUS]
        rule = f"{base} comes in nodes of {node} GPUs"
        rule += f" and domains of {wide}" if wide > node else ""
        rule += f"; {num_gpus:,} are not whole ones, nor part of one" if num_gpus % step else ", at least 1"
        if num_gpus > MAX_GPUS:
            rule = f"at most {MAX_GPUS:,} GPUs are planned"
        remedy = "try " + " or ".join(f"{base}x{each}" for each in counts)
        raise InputError(rule, field="cluster", value=name, remedy=remedy)
    sizes = {
        "name": name.lower(),
        "num_nodes": str(max(num_gpus // node, 1)),
        "gpus_per_node": str(min(num_gpus, node)),
    }
    for key, value in sizes.items():
        text = re.sub(rf"^{key}: .*$", f"{key}: {value}", text, count=1, flags=re.MULTILINE)
    return text


def _with_device(text: str) -> str:
    """Return the cluster's text with the device that it names written out, so that each field can be changed."""
    named = re.search(r"^device: ([a-z0-9-]+)$", text, re.MULTILINE)
    if named is None:
        return text
    lines = catalog_text("devices", named[1]).splitlines()
    inner = "\n".join(f"  {line}".rstrip() for line in lines)
    return f"{text[: named.start()]}device:\n{inner}{text[named.end() :]}"
