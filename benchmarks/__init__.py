"""Benchmarks against other executors: `python -m benchmarks`. Ratios of one run; never a timed test."""
