"""Speed of mutual information for all pairs: mikernels and other packages, every time beside its error.

`cases` and `variants` define what is measured, `samples` the data, `measure` the method. `layer`, `counts` and `demo`
are benchmarks of their own.
"""
