"""How much of a model is left after pruning: ours and other packages.

`python -m benchmarks.quality` measures, `python -m benchmarks.quality.report` makes table and plot of the rows,
`python -m benchmarks.quality.spread` says how much the choice of the criterion matters. `methods.py` and `tasks.py`
say what is compared and on what, `calibrated.py` is all that knows how a method is run.
"""
