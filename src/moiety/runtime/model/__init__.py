"""The transformers model of a rank: its slices, its attention and its cache."""
