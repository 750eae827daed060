"""Quality of pruned models: the methods of `pruning` and of other packages.

`python -m benchmarks.quality` measures, `python -m benchmarks.quality.budgets` compares layer statistics for budgets,
`python -m benchmarks.quality.glue` fine-tunes encoders first.
`methods` and `tasks` define what is compared and on what; `calibrated` is the only module that knows how a method is
run.
"""
