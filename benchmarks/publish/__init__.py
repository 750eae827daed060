"""Pages and plots of the stored rows: `python -m benchmarks.publish`."""
