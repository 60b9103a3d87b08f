"""The checks of a finished plan, a subject a file; `table.py` lists them all."""
