"""The workloads that the package knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.errors import InputError, nearest
from moiety.package_data import catalog_names, catalog_text
from moiety.workload.reader import read_workload

if TYPE_CHECKING:
    from moiety.workload.workload import Workload


def catalog_workloads() -> tuple[str, ...]:
    """Return the names of the workloads, sorted."""
    return catalog_names("workloads")


def load_workload(name: str) -> Workload:
    """Return a catalogue workload; raise InputError with the nearest name for an unknown one."""
    return read_workload(workload_text(name), source=f"catalogue workload {name}")


def workload_text(name: str) -> str:
    """Return the YAML file of the workload that `load_workload` loads."""
    known = catalog_workloads()
    canonical = name.lower().replace("_", "-")
    if canonical not in known:
        rule = "no such workload in the catalogue, nor a file of that name"
        raise InputError(rule, field="workload", value=name, remedy=nearest(canonical, known))
    return catalog_text("workloads", canonical)
