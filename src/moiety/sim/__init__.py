"""The step as tasks on compute streams and link queues."""
