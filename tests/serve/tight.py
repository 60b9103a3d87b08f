"""Plans whose ranks have no room for more experts than they hold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from moiety.cli.plan_file import calibration_of, load_plan
from moiety.control.deployment import deployment_of

if TYPE_CHECKING:
    from pathlib import Path


def tightened(folder: Path, most_slots: int) -> Path:
    """Give the plan in a folder devices with memory for at most so many slots of a layer; return the folder."""
    (file,) = folder.glob("*_deployment_method.json")
    document = json.loads(file.read_text())
    device = document["cluster"]["device"]
    low, high = 0, device["memory_bytes"]
    while high - low > 1024:
        device["memory_bytes"] = (low + high) // 2
        file.write_text(json.dumps(document))
        plan, path = load_plan(str(folder))
        if deployment_of(plan, calibration_of(plan, str(path))).most_slots > most_slots:
            high = device["memory_bytes"]
        else:
            low = device["memory_bytes"]
    device["memory_bytes"] = low
    file.write_text(json.dumps(document))
    return folder
