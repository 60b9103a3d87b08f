"""Strategy: the degrees of every kind of parallelism, and the rank groups that follow from them."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moiety.errors import InputError
from moiety.records import Record

Degree = Annotated[int, Field(gt=0, le=1_048_576)]
Axis = Literal["tp", "cp", "attn_dp", "ep", "etp", "stage", "pp", "instance", "dp"]
AXES: tuple[Axis, ...] = ("tp", "attn_dp", "ep", "etp", "stage", "pp", "instance")
"""Of every plan; `cp` besides where there is any. `dp` is `attn_dp` of all instances together."""

_KEYS = ("tp", "cp", "pp", "dp", "ep", "etp", "x")
_TOKEN = re.compile(r"^(tp|cp|pp|dp|ep|etp|x)([0-9]{1,7})$")


class Strategy(Record):
    """How `num_gpus` GPUs divide the model between them.

    An instance is one whole copy of the model: `pp` stages, each of `tp x attn_dp = ep x etp` GPUs. Inside a stage the
    attention sees the mesh [attn_dp, tp] and the experts see the mesh [ep, etp], last axis fastest.
    """

    tp: Degree = 1
    """Tensor parallelism of attention, dense layers and shared experts."""
    pp: Degree = 1
    """Pipeline stages."""
    attn_dp: Degree = 1
    """Attention data parallelism: groups of `tp` GPUs of a stage, each with requests of its own."""
    ep: Degree = 1
    """Expert parallelism: shares that the routed experts are divided into."""
    etp: Degree = 1
    """Expert tensor parallelism: GPUs that share each expert."""
    instances: Degree = 1
    """Independent copies of the model, each with requests of its own (data parallel replicas)."""
    cp: Degree = Field(default=1, exclude_if=lambda value: value == 1)
    """Context parallelism of training: attention groups that hold parts of the same sequences; neighbours in a stage,
    or all of a stage's and those of the same stage in the copies next to it."""

    @model_validator(mode="after")
    def _meshes_agree(self) -> Self:
        if self.tp * self.attn_dp != self.ep * self.etp:
            msg = (
                f"the attention mesh tp x attn_dp = {self.tp} x {self.attn_dp} and the expert mesh "
                f"ep x etp = {self.ep} x {self.etp} must cover the same GPUs"
            )
            raise ValueError(msg)
        if self.attn_dp % self.cp and (self.cp % self.attn_dp or self.instances % (self.cp // self.attn_dp)):
            msg = (
                f"context parallelism cp = {self.cp} must divide the attention groups of a stage, attn_dp = "
                f"{self.attn_dp}, or be a multiple of them that the {self.instances} instances divide into"
            )
            raise ValueError(msg)
        return self

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Axes along which its ranks form groups."""
        return AXES if self.cp == 1 else ("cp", *AXES)

    @property
    def num_groups(self) -> int:
        """Groups of GPUs that have sequences of their own, over all copies: `tp x cp` GPUs of each stage."""
        return self.attn_dp * self.instances // self.cp

    @property
    def gpus_per_stage(self) -> int:
        """GPUs of one pipeline stage."""
        return self.tp * self.attn_dp

    @property
    def gpus_per_instance(self) -> int:
        """GPUs of one copy of the model."""
        return self.gpus_per_stage * self.pp

    @property
    def num_gpus(self) -> int:
        """GPUs of all copies."""
        return self.gpus_per_instance * self.instances

    @property
    def name(self) -> str:
        """The short name that `parse_strategy` reads back, e.g. `ep64_tp2` or `tp8_pp16`."""
        parts: list[str] = []
        if self.ep == 1 and self.attn_dp == self.cp:
            parts.append(f"tp{self.tp}")
        elif self.etp == self.tp:
            parts += [f"ep{self.ep}", f"tp{self.tp}"]
        else:
            parts += [f"tp{self.tp}", f"dp{self.attn_dp}", f"ep{self.ep}"]
        if self.cp > 1:
            parts.append(f"cp{self.cp}")
        if self.pp > 1:
            parts.append(f"pp{self.pp}")
        if self.instances > 1:
            parts.append(f"x{self.instances}")
        return "_".join(parts)

    def groups(self, axis: Axis, first_rank: int = 0) -> tuple[tuple[int, ...], ...]:
        """Return the rank groups along `axis`; together they hold every rank once.

        `stage` groups are the GPUs of one stage, `pp` groups the GPUs that pass activations on to each other,
        `instance` groups the GPUs with the same weights in different copies of the model, `dp` groups those with the
        same dense weights in a stage of any copy.
        """
        stage, instance, total = self.gpus_per_stage, self.gpus_per_instance, self.num_gpus
        if axis in {"pp", "instance"}:
            step, size = (stage, instance) if axis == "pp" else (instance, total)
            return tuple(
                tuple(range(first_rank + base + offset, first_rank + base + size, step))
                for base in range(0, total, size)
                for offset in range(step)
            )
        if axis == "dp":
            return self._groups_of_copies(self.instances, first_rank)
        if axis == "cp" and self.cp > self.attn_dp:
            return self._groups_of_copies(self.cp // self.attn_dp, first_rank)
        width, stride = {
            "tp": (self.tp, 1),
            "cp": (self.cp, self.tp),
            "attn_dp": (self.attn_dp, self.tp),
            "ep": (self.ep, self.etp),
            "etp": (self.etp, 1),
            "stage": (stage, 1),
        }[axis]
        return tuple(
            tuple(range(first_rank + base + offset, first_rank + base + offset + width * stride, stride))
            for base in range(0, total, width * stride)
            for offset in range(stride)
        )

    def _groups_of_copies(self, copies: int, first_rank: int) -> tuple[tuple[int, ...], ...]:
        """Return groups that take all attention groups of a stage, in so many copies of the model."""
        stage = self.gpus_per_stage
        block = copies * self.gpus_per_instance
        return tuple(
            tuple(
                first_rank + base + copy * self.gpus_per_instance + at * stage + group * self.tp + offset
                for copy in range(copies)
                for group in range(self.attn_dp)
            )
            for base in range(0, self.num_gpus, block)
            for at in range(self.pp)
            for offset in range(self.tp)
        )

    def coordinates(self, rank: int) -> dict[Axis, int]:
        """Return the place of `rank` (counted from the pool's first) on every axis."""
        instance, inside = divmod(rank, self.gpus_per_instance)
        stage, local = divmod(inside, self.gpus_per_stage)
        return {
            "instance": instance,
            "pp": stage,
            "stage": local,
            "attn_dp": local // self.tp,
            "cp": (instance * self.attn_dp + local // self.tp) % self.cp,
            "tp": local % self.tp,
            "ep": local // self.etp,
            "etp": local % self.etp,
        }


def parse_strategy(text: str, num_gpus: int) -> Strategy:
    """Return the strategy that a short name such as `ep64_tp2`, `tp8_pp16` or `tp1_dp128_ep128` stands for.

    - `dp` beside `ep` is attention data parallelism; without `ep` it counts independent instances, as `x` does.
    - `ep` without `dp` or `etp`: experts are divided over `tp` as the attention is, if that many GPUs are there; else
      they are whole.
    - `cp` is context parallelism: so many attention groups of a stage share each sequence.
    - What is not named is filled up with instances until `num_gpus` are used.

    Raises InputError for unknown or repeated keys and for degrees that do not divide `num_gpus`.
    """
    given = _degrees(text)
    tp, cp, pp = given.get("tp", 1), given.get("cp", 1), given.get("pp", 1)
    instances = given.get("x")
    if "ep" not in given and "etp" not in given:
        attn_dp, ep, etp = cp, 1, tp * cp
        if "dp" in given:
            instances = given["dp"] * (instances or 1)
    else:
        attn_dp, ep, etp = _stage_meshes(text, given, tp, num_gpus // max(pp * (instances or 1), 1))
    per_instance = tp * attn_dp * pp
    if instances is None:
        instances = max(num_gpus // per_instance, 1)
    if per_instance * instances != num_gpus:
        raise InputError(
            f"needs {per_instance * instances} GPUs ({instances} x tp {tp} x attention dp {attn_dp} x pp {pp}), "
            f"but there are {num_gpus}",
            field="strategy",
            value=text,
            remedy=f"choose degrees whose product divides {num_gpus}, or another --cluster",
        )
    if attn_dp % cp and (cp % attn_dp or instances % (cp // attn_dp)):
        raise InputError(
            f"cp{cp} neither divides the {attn_dp} attention groups of a stage nor takes whole stages of all "
            f"{instances} copies",
            field="strategy",
            value=text,
            remedy="context parallelism shares sequences between attention groups: choose cp among their divisors",
        )
    return Strategy(tp=tp, pp=pp, attn_dp=attn_dp, ep=ep, etp=etp, instances=instances, cp=cp)


def _degrees(text: str) -> dict[str, int]:
    given: dict[str, int] = {}
    for token in text.lower().split("_"):
        match = _TOKEN.match(token)
        if not match or int(match[2]) == 0 or match[1] in given:
            raise InputError(
                f"{token!r} is not a degree, or is given twice",
                field="strategy",
                value=text,
                remedy=f"join degrees ({', '.join(_KEYS)}) with '_', e.g. ep64_tp2, tp8_pp16, tp1_dp128_ep128",
            )
        given[match[1]] = int(match[2])
    return given


def _stage_meshes(text: str, given: dict[str, int], tp: int, gpus_per_stage: int) -> tuple[int, int, int]:
    """Return (attn_dp, ep, etp) for a stage of at most `gpus_per_stage` GPUs."""
    ep = given.get("ep", 1)
    if "dp" in given:
        stage = tp * given["dp"]
        etp = given.get("etp", max(stage // ep, 1))
    else:
        whole = tp if ep * tp <= gpus_per_stage and gpus_per_stage % (ep * tp) == 0 else 1
        etp = given.get("etp", whole)
        stage = ep * etp
    if stage % tp or ep * etp != stage:
        raise InputError(
            f"the expert mesh ep x etp = {ep} x {etp} and the attention mesh of tp = {tp} must cover the same GPUs",
            field="strategy",
            value=text,
            remedy=f"make ep x etp = tp x dp, e.g. tp{tp}_dp{ep}_ep{ep} for {tp * ep} GPUs",
        )
    return stage // tp, ep, etp
