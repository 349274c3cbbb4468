"""Benchmarks: `python -m tests.benchmarks [subject...]`.

Each ratio is taken against a baseline of the same run.
"""
