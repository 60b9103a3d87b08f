"""Predicted beside measured: rows of published measurements, what the plan's laws say of them, and the errors."""
