"""The control plane: pure decisions about a plan at work, from events to commands."""
