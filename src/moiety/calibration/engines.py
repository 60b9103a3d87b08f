"""The constants that an engine's plans are made by: those of the serving runs that `moiety validate` is held to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.calibration.calibration import EngineConstants
from moiety.calibration.catalog import calibration_for, load_calibration
from moiety.calibration.engine_memory import engine_memory
from moiety.calibration.serving_catalog import load_serving

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration, Engine
    from moiety.calibration.serving import ServingConstants, ServingFamily

_NODE_GPUS = 8
"""GPUs of a worker that an engine's default is taken for: what it sets apart grows a little with them."""


def family_calibration(family: ServingFamily) -> Calibration:
    """Return the cost model's constants with the kernels and collectives of a family in them."""
    base = load_calibration()
    return base.model_copy(
        update={
            "architectures": family.architectures,
            "roofline": {**base.roofline, **family.roofline},
            "collectives": family.collectives,
        }
    )


def engine_calibration(
    engine: Engine,
    architecture: str,
    memory_bytes: float,
    given: Calibration | None = None,
    serving: ServingConstants | None = None,
) -> Calibration:
    """Return the constants for an engine on devices of an architecture with so much memory; `serving`: the catalogue's.

    Kernels are those that the engine's overheads were fitted with, in its newest releases; on devices without serving
    runs the catalogue's for them, and what the engine adds is then assumed. `given` are constants of the user's own:
    they stand, and the engine's overheads are added where they hold none.
    """
    kernels = given or calibration_for(architecture)
    if engine in kernels.engines:
        return kernels
    serving = serving or load_serving()
    family = serving.family(architecture)
    release = family.newest_release(engine)
    known_here = architecture in family.architectures
    if given is None:
        kernels = (family_calibration(family) if known_here else kernels).model_copy(update={"name": serving.name})
    memory = engine_memory(engine, "", memory_bytes, _NODE_GPUS)
    set_apart = memory.reserve_bytes if memory.of_free else memory_bytes - memory.cache_bytes(memory_bytes, 0)
    overheads = EngineConstants(
        **release.overheads(),
        reserve_bytes=round(set_apart),
        unused_share=1 - memory.share if memory.of_free else 0.0,
    )
    if not known_here:
        overheads = overheads.model_copy(update={"basis": "assumed"})
    return kernels.model_copy(update={"engines": {**kernels.engines, engine: overheads}})
