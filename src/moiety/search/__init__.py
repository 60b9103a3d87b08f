"""Enumerate, evaluate, rank."""
