"""One module per contender: `python -m benchmarks.contenders.NAME send|receive …`.

Each has `unavailable()`, which says why it cannot run here, or None.
"""
