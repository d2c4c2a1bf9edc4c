"""Programs that measure adaptx: what it costs, and what it does on real data."""
