"""Keys that rows are sorted by."""

KEY_BITS = 48
"""Of a row's key: its number in its rank in the lower 32, above them the rank's in the stage."""
