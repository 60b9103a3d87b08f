"""Findings about a finished plan, and the audit of claims."""
