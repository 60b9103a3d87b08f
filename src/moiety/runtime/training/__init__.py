"""Training: steps of all ranks together, their gradients, what they keep, and checkpoints of their state."""
