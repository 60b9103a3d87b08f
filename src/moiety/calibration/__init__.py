"""What was measured of kernels, links and engines, so that work can be turned into time."""
