"""Error of estimated mutual information on pairs of variables with known mutual information."""
