"""Serving: ranks that take their sequences step by step, and the crew of processes that gives the steps' tokens."""
