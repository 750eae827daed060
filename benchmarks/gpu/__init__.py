"""Checks and benchmarks of the Triton kernels: on a GPU, by compiling for one, and by counting operations."""
