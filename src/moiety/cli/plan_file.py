"""Plan files: the method JSON as it is written, and as it is read back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from moiety.cli.json_text import json_text
from moiety.errors import InputError
from moiety.files import read_text, resolve_input
from moiety.json_object import read_json_object
from moiety.plan import SCHEMA_VERSION, Plan
from moiety.records import broken_rule

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration

METHOD_SUFFIX = "_deployment_method.json"
_MAX_PLAN_BYTES = 512 * 10**6
_REMEDY = "write the plan anew with `moiety plan`"


def method_json(plan: Plan) -> str:
    """Return the text of the method file: the whole plan, and the figures that follow from it."""
    return json_text(plan.model_dump(mode="json"))


def load_plan(argument: str) -> tuple[Plan, Path]:
    """Return the plan that PLAN names (its method JSON, or the folder that holds it) and the file it came from.

    Raises InputError for what is not there, not JSON, of another schema version, or not a plan that can be.
    """
    path = resolve_input(argument, in_folder=f"*{METHOD_SUFFIX}", suffixes=(".json",))
    if path is None:
        rule = f"the folder holds no *{METHOD_SUFFIX}" if Path(argument).is_dir() else "there is no such file or folder"
        raise InputError(rule, source=argument or "PLAN", remedy=_REMEDY)
    source = str(path)
    document = read_json_object(read_text(path, limit=_MAX_PLAN_BYTES), source=source, remedy=_REMEDY)
    version = document.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION or isinstance(version, bool):
        rule = f"the file is a plan of another version; this Moiety reads version {SCHEMA_VERSION}"
        raise InputError(rule, source=source, field="schema_version", value=version, remedy=_REMEDY)
    try:
        return Plan.model_validate(document), path
    except ValidationError as error:
        raise _first_of(error, source) from None
    except (RecursionError, OverflowError):
        raise InputError("holds a number or a nesting that no plan has", source=source, remedy=_REMEDY) from None


def _first_of(error: ValidationError, source: str) -> InputError:
    """Return the first broken rule as one message, with the number of the others."""
    first = broken_rule(error)
    others = f"{first.num_others} more fields are wrong; " if first.num_others else ""
    return InputError(first.rule, source=source, field=first.field, value=first.value, remedy=others + _REMEDY)


def calibration_of(plan: Plan, source: str) -> Calibration:
    """Return what the plan was priced with: its own constants or the catalogue's of that name, and measured tables.

    Raises InputError where this version does not have those constants, or the tables are not at hand as they were.
    """
    constants = _constants_of(plan, source)
    if plan.provenance.tables is None:
        return constants
    from moiety.cli.table_files import the_same_tables

    tables = the_same_tables(plan.provenance.tables, plan.cluster, source)
    return constants.model_copy(update={"tables": tables})


def _constants_of(plan: Plan, source: str) -> Calibration:
    from moiety.calibration.catalog import catalog_calibrations, load_calibration
    from moiety.calibration.engines import engine_calibration
    from moiety.calibration.serving_catalog import DEFAULT_SERVING

    if plan.calibration is not None:
        return plan.calibration
    name, known = plan.provenance.calibration, catalog_calibrations()
    if name == DEFAULT_SERVING and plan.engine != "moiety":
        device = plan.cluster.device
        return engine_calibration(plan.engine, device.architecture, device.memory_bytes)
    if name not in known:
        rule = f"the plan was made with constants that this version does not have; it has {', '.join(known)}"
        raise InputError(rule, source=source, field="provenance.calibration", value=name, remedy=_REMEDY)
    found = load_calibration(name)
    if plan.engine not in found.engines:
        rule = f"{name} holds no constants of {plan.engine}; plans for that engine are made with {DEFAULT_SERVING}"
        raise InputError(rule, source=source, field="provenance.calibration", value=name, remedy=_REMEDY)
    return found
