"""Where it runs: devices, nodes and the links between them."""
