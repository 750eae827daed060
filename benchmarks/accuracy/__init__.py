"""How far estimates of mutual information are from the truth, on pairs of variables where it is known."""
