"""GPU kernels in Triton: the expert MLP, sums of a token's experts, rows in FP8; imported only where Triton is."""
