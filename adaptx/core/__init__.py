"""The core: pytrees, dtypes, moments and errors; it knows no algorithm. Read rule.py, then lift.py."""
