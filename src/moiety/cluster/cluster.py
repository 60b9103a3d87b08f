"""Cluster: nodes of equal devices, and the tiers of links between them from the innermost to the outermost."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moiety.cluster.device import Device, Positive
from moiety.records import Record

MAX_GPUS = 1_048_576


class LinkTier(Record):
    """One tier of links: domains of `num_gpus` consecutive GPUs that reach each other over it.

    `bandwidth_bytes_per_s` is what one GPU (or one node, as `per` says) can send while it receives as much;
    `oversubscription` divides it where the tier's switches carry less than their ports.
    """

    name: str
    num_gpus: Annotated[int, Field(gt=0, le=MAX_GPUS)]
    bandwidth_bytes_per_s: Positive
    """One way."""
    per: Literal["gpu", "node"]
    latency_s: Annotated[float, Field(ge=0, le=10)]
    oversubscription: Annotated[float, Field(ge=1, le=1000)] = 1.0
    reach: Annotated[int, Field(gt=0, le=MAX_GPUS)] | None = None
    """GPUs that a domain of the tier joins where the cluster has as many; None: all there are."""
    in_network_reduction: bool = False
    """The switch adds (NVLink SHARP), so that an all-reduce sends every byte once."""


class Cluster(Record):
    """`num_nodes` nodes of `gpus_per_node` devices. Rank r is GPU r % gpus_per_node of node r // gpus_per_node."""

    name: str
    device: Device
    num_nodes: Annotated[int, Field(gt=0, le=MAX_GPUS)]
    gpus_per_node: Annotated[int, Field(gt=0, le=1024)]
    tiers: tuple[LinkTier, ...] = Field(min_length=1)
    beyond: tuple[LinkTier, ...] = ()
    """Tiers that would join more of these nodes, if there were more."""
    source: str = ""
    basis: Literal["datasheet", "measured"] = Field(default="datasheet", exclude_if=lambda value: value == "datasheet")
    """What the rates rest on that are not assumed."""
    assumed: tuple[str, ...] = ()
    """Fields whose values are assumptions, with the reason."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        spans = [tier.num_gpus for tier in self.tiers]
        if spans != sorted(set(spans)):
            msg = f"tiers must go from the innermost to the outermost, each wider than the last; they span {spans} GPUs"
            raise ValueError(msg)
        for inner, outer in pairwise(spans):
            if outer % inner:
                msg = f"a tier of {outer} GPUs must consist of whole domains of {inner} GPUs"
                raise ValueError(msg)
        if spans[-1] != self.num_gpus:
            msg = f"the outermost tier spans {spans[-1]} GPUs, the cluster has {self.num_gpus}"
            raise ValueError(msg)
        if self.num_gpus > MAX_GPUS:
            msg = f"{self.num_gpus} GPUs are more than {MAX_GPUS}"
            raise ValueError(msg)
        return self

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What is assumed of the cluster and of its device."""
        return self.assumed + tuple(f"device.{each}" for each in self.device.assumed)

    @property
    def num_gpus(self) -> int:
        """Number of GPUs."""
        return self.num_nodes * self.gpus_per_node

    def node_of(self, rank: int) -> int:
        """Return the node that holds `rank`."""
        return rank // self.gpus_per_node

    def bandwidth_per_gpu(self, tier: int) -> float:
        """Return the bytes per second, one way, that each GPU has on tier number `tier` when all of them send."""
        link = self.tiers[tier]
        shared = self.gpus_per_node if link.per == "node" else 1
        return link.bandwidth_bytes_per_s / shared / link.oversubscription

    def tier_between(self, first: int, second: int) -> int:
        """Return the number of the innermost tier that joins two ranks."""
        return self.tier_of_group((first, second))

    def tier_of_group(self, ranks: tuple[int, ...] | range) -> int:
        """Return the number of the innermost tier with a domain that holds all of `ranks`."""
        low, high = min(ranks), max(ranks)
        for index, tier in enumerate(self.tiers):
            if low // tier.num_gpus == high // tier.num_gpus:
                return index
        return len(self.tiers) - 1

    @property
    def fast_domain_gpus(self) -> int:
        """GPUs of the innermost tier's domain: those that a token reaches without a network card."""
        return self.tiers[0].num_gpus
