"""Declared exceptions: (law, case) -> reason. Each runs as a strict xfail, so one that starts to pass fails the run."""

LEDGER: dict[tuple[str, str], str] = {}
