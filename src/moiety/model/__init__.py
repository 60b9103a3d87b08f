"""Models: the shape of a language model, its readers and its catalogue."""
