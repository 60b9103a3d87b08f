"""Data: models, clusters, devices, workloads and calibrations, each with its source."""
