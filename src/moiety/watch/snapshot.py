"""What is known, as the bytes of a file and back, to the bit: arrays in an npz, all else as JSON in one of them."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from moiety.control.scrape import Scrape
from moiety.errors import InputError
from moiety.watch.advice import Advice
from moiety.watch.dumps import Mark
from moiety.watch.known import Watch
from moiety.watch.watching import started
from moiety.workload.routing_file import npz_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from moiety.control.state import State
    from moiety.watch.site import Site

    Arrays = dict[str, NDArray[Any]]

VERSION = 3
REMEDY = "remove the file to begin anew"
_GIVEN = frozenset({"deployment", "policy"})
"""Of a state: what the plan and the options say, and no file."""
_MARKS = ("dumps_done", "dumps_doubtful", "dumps_broken")
_Record = TypeVar("_Record")


def watch_bytes(watch: Watch, site: Site) -> bytes:
    """Return a snapshot as the bytes of an npz file; the same watch gives the same bytes."""
    arrays: Arrays = {"in_force": watch.in_force}
    if watch.previous is not None:
        arrays["previous"] = watch.previous
    about: dict[str, object] = {"version": VERSION, **_identity(site), "instances": site.instances}
    for name, state in (("experts", watch.experts), ("fleet", watch.fleet)):
        about[name] = None if state is None else _taken_apart(state, name, arrays)
    about |= {name: sorted(getattr(watch, name)) for name in _MARKS}
    about["scrapes"] = {
        url: [each.time_s, list(each.counters.items()), each.waiting] for url, each in watch.scrapes.items()
    }
    about["away"], about["advice"] = sorted(watch.away), [asdict(each) for each in watch.advice]
    about |= {name: getattr(watch, name) for name in ("time_s", "clock_s", "conditions", "given")}
    text = json.dumps(about, allow_nan=False)
    return npz_bytes({**arrays, "about": np.frombuffer(text.encode(), dtype=np.uint8)})


def read_watch(data: bytes, site: Site, source: str) -> Watch:
    """Return the watch that a snapshot holds.

    Where other instances are named than before, what is known of the experts stays, and the instances are learnt anew.
    Raises InputError for a damaged file, and for one of another plan.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays: Arrays = {name: archive[name] for name in archive.files}
        about = cast("dict[str, Any]", json.loads(arrays.pop("about").tobytes().decode()))
        _check_identity(about, site, source)
        return _put_together(about, arrays, site)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - what a broken file makes of the parsers has no common class
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"cannot be read: {reason}", source=source, remedy=REMEDY) from None


def _check_identity(about: Mapping[str, Any], site: Site, source: str) -> None:
    for key, value in {"version": VERSION, **_identity(site)}.items():
        if about[key] != value:
            raise InputError(f"is not {value!r}", source=source, field=key, value=about[key], remedy=REMEDY)


def _identity(site: Site) -> dict[str, object]:
    deployment = site.deployment
    shape = [*site.slot_map.shape, deployment.num_ranks, deployment.num_experts]
    return {"plan": site.plan, "shape": shape}


def _put_together(about: Mapping[str, Any], arrays: Arrays, site: Site) -> Watch:
    fresh = started(site)
    fleet = None
    if about["fleet"] is not None and _tuples(about["instances"]) == site.instances:
        everyone = [True] * len(site.instances)
        fleet = _restored(site.starting_fleet(everyone, 0.0), about["fleet"], "fleet", arrays)
    return Watch(
        experts=_restored(fresh.experts, about["experts"], "experts", arrays),
        fleet=fleet,
        in_force=arrays["in_force"],
        previous=arrays.get("previous"),
        time_s=about["time_s"],
        clock_s=about["clock_s"],
        scrapes={url: _scrape(*each) for url, each in about["scrapes"].items() if url in site.endpoints},
        away=frozenset(about["away"]) if fleet is not None else frozenset(),
        conditions=about["conditions"],
        advice=tuple(Advice(**each) for each in about["advice"]),
        given=about["given"],
        **{name: frozenset(Mark(*each) for each in about[name]) for name in _MARKS},
    )


def _scrape(time_s: float, counters: Iterable[list[Any]], waiting: float | None) -> Scrape:
    return Scrape(time_s, {_tuples(series): value for series, value in counters}, waiting)


def _taken_apart(record: object, prefix: str, arrays: Arrays) -> dict[str, object]:
    """Return a record's fields that are no arrays; its arrays go to `arrays` under their path."""
    found: dict[str, object] = {}
    for name, value in _fields(record).items():
        if isinstance(value, np.ndarray):
            arrays[f"{prefix}.{name}"] = cast("NDArray[Any]", value)
        else:
            found[name] = _taken_apart(value, f"{prefix}.{name}", arrays) if is_dataclass(value) else value
    return found


def _restored(fresh: _Record, stored: Mapping[str, Any], prefix: str, arrays: Arrays) -> _Record:
    """Return the record with the fields that were stored; KeyError where one is not there."""
    changes: dict[str, object] = {}
    for name, value in _fields(fresh).items():
        path = f"{prefix}.{name}"
        if isinstance(value, np.ndarray):
            changes[name] = _alike(arrays[path], cast("NDArray[Any]", value), path)
        else:
            changes[name] = (
                _restored(value, stored[name], path, arrays) if is_dataclass(value) else _tuples(stored[name])
            )
    return cast("_Record", replace(cast("Any", fresh), **changes))


def _alike(stored: NDArray[Any], fresh: NDArray[Any], path: str) -> NDArray[Any]:
    if stored.dtype != fresh.dtype or stored.shape[1:] != fresh.shape[1:]:
        msg = f"{path} is {stored.dtype.name} {list(stored.shape)}"
        raise ValueError(msg)
    return stored


def _fields(record: object) -> dict[str, object]:
    return {each.name: getattr(record, each.name) for each in fields(cast("State", record)) if each.name not in _GIVEN}


def _tuples(value: Any) -> Any:  # noqa: ANN401 - JSON holds anything
    """Return lists as tuples, at all depths."""
    return tuple(_tuples(each) for each in cast("list[Any]", value)) if isinstance(value, list) else value
