"""Degrees of parallelism, the rank groups that follow, and the rules they must obey."""
