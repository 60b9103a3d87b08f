"""Checkpoints of Hugging Face: which tensor lies where, under which name the model knows it, and slices of it."""
