"""The control plane beside engines that are not ours: metrics and dumps in, a placement and advice out."""
