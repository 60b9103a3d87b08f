"""The arena: a step's tensors at packed offsets of one piece of memory, and the step as calls that write there."""
