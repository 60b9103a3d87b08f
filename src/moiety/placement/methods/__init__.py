"""The placement methods, a file each, and what they are made of."""
