"""A rank's experts: the layer in place of transformers', and the grouped products."""
