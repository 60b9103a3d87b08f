"""What a plan is expected to do: throughput, latency, utilisation, power."""
