"""A simulated day: the policy at work against traffic, faults and heat, without a clock of its own."""
