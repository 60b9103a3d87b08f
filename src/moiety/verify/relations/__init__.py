"""The rules of the audit, a family a file; `table.py` lists them all. No rule knows a claimed figure."""
