"""What all faults are tried on, and how their recoveries are noted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.recoveries import recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.recoveries import Recover


@pytest.fixture
def recover(record_property: Callable[[str, object], None]) -> Recover:
    """Return what notes a recovery, and holds it to its bar."""
    return recorder(record_property)
