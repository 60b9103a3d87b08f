"""The drawings of a plan."""
