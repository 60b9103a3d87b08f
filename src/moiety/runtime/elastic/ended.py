"""The end of a generation, as a rank meets with it between its waits."""

from __future__ import annotations


class GenerationEndedError(Exception):
    """Another generation is declared, or the crew is closed: what is under way is given up."""
