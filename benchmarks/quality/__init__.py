"""How much of a model is left after pruning: ours and other packages."""
