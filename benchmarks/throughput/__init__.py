"""Throughput of all-pairs mutual information: ours beside what people use, with accuracy beside every time.

`cases` and `variants` say what is measured, `samples` on which data, `measure` how; `python -m
benchmarks.throughput` records rows and `python -m benchmarks.plot` draws them.
"""
