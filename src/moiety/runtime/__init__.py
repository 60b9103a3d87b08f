"""The plan at work: ranks, groups and experts on PyTorch distributed; the only room that imports torch."""
