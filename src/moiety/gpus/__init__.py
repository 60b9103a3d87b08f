"""The GPUs of this machine: what NVML reads of them, and the limits it sets, with a journal that survives a crash."""
