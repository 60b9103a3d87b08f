"""Measured tables from a folder that the user has: which files, whose they are, and whether they are still the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from moiety.calibration.table_reader import TABLE_FILES, devices_in, read_tables
from moiety.calibration.tables import MeasuredRates
from moiety.errors import InputError, nearest
from moiety.files import read_bytes

if TYPE_CHECKING:
    from moiety.calibration.tables import KernelTables, TableSource
    from moiety.cluster.cluster import Cluster

_OPTION = "--tables"
_LIBRARY = "nccl"


def load_tables(argument: str, cluster: Cluster) -> KernelTables:
    """Return the tables that `FOLDER:ENGINE/RELEASE` names, for the rates of `cluster`.

    Those of the library of collectives come from its newest release in the folder. Raises InputError for what is not
    there, is no such table, or was measured on another device than the cluster's.
    """
    folder, _, release = argument.rpartition(":")
    system = Path(folder)
    known = _releases(system)
    if not folder or not system.is_dir():
        rule = "names no folder of tables"
        remedy = "write FOLDER:ENGINE/RELEASE, e.g. systems/data/h200_sxm:vllm/0.24.0"
        raise InputError(rule, field=_OPTION, value=argument, remedy=remedy)
    if release not in known:
        remedy = nearest(release, known) if known else "a system's folder holds FAMILY/ENGINE/RELEASE/*_perf.parquet"
        raise InputError("the folder holds no tables of that release", field=_OPTION, value=argument, remedy=remedy)
    files = {path: read_bytes(system / path) for path in _paths(system, release)}
    _refuse_another_device(files, system, cluster)
    name = f"aiconfigurator {system.resolve().name} {release}"
    try:
        return read_tables(files, name=name, folder=argument, rates=_rates(cluster))
    except InputError as error:
        place = str(system / (error.source or ""))
        rule, field, value = error.rule, error.field, error.value
        raise InputError(rule, source=place, field=field, value=value, remedy=error.remedy) from None


def the_same_tables(source: TableSource, cluster: Cluster, plan: str) -> KernelTables:
    """Return the tables that a plan was priced with; raise InputError where they are not at hand, or are others."""
    remedy = "put them back, or write the plan anew with `moiety plan --tables`"
    field = "provenance.tables"
    try:
        found = load_tables(source.folder, cluster)
    except InputError as error:
        why = f"{error.rule} ({error.remedy})" if error.remedy else error.rule
        rule = f"the plan was priced with measured tables that are not at hand: {source.folder}: {why}"
        raise InputError(rule, source=plan, field=field, remedy=remedy) from None
    if found.source.sha256 != source.sha256:
        rule = f"the plan was priced with other tables than those in {source.folder} now (SHA-256 {source.sha256})"
        raise InputError(rule, source=plan, field=field, remedy=remedy)
    return found


def _releases(system: Path) -> tuple[str, ...]:
    """Return ENGINE/RELEASE of every engine that the folder has tables of."""
    names = {form.name for form in TABLE_FILES if form.family != f"comm/{_LIBRARY}"}
    found = {path.parent for name in names for path in system.glob(f"*/*/*/{name}")}
    return tuple(sorted(f"{path.parent.name}/{path.name}" for path in found))


def _paths(system: Path, release: str) -> list[str]:
    """Return the files of an engine's release and of the library, relative to the folder."""
    paths: dict[str, None] = {}
    for form in TABLE_FILES:
        exact = f"{form.family}/{release}/{form.name}"
        if (system / exact).is_file():
            paths[exact] = None
            continue
        engine = release.partition("/")[0]
        others = {f"comm/{_LIBRARY}": f"{form.family}/*/{form.name}"}.get(form.family)
        if form.of_any_release:
            others = f"{form.family}/{engine}/*/{form.name}"
        versions = sorted(system.glob(others) if others else (), key=lambda path: _order(path.parent.name))
        paths |= {path.relative_to(system).as_posix(): None for path in versions[-1:]}
    return list(paths)


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"[0-9]+", version))


def _refuse_another_device(files: dict[str, bytes], system: Path, cluster: Cluster) -> None:
    """Raise InputError where rows were measured on a device whose model, such as H200, is not the cluster's."""
    words = _words(cluster.device.name)
    for path, data in files.items():
        for device in devices_in(data, str(system / path)):
            if not words & _words(device):
                rule = f"was measured on {device}, the cluster has {cluster.device.name}"
                raise InputError(rule, source=str(system / path), field="device", remedy="name tables of that device")


def _words(device: str) -> set[str]:
    """Return the words of a device's name that hold a number: its model."""
    return {word for word in re.split(r"[^a-z0-9]+", device.lower()) if re.search(r"[0-9]", word)}


def _rates(cluster: Cluster) -> MeasuredRates:
    inner, *outer = (cluster.bandwidth_per_gpu(tier) for tier in range(len(cluster.tiers)))
    return MeasuredRates(dict(cluster.device.peak_flops_per_s), inner, tuple(outer))
