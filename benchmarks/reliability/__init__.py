"""Reliability of the ranking of pairs of real neurons, by estimator and number of tokens."""

TARGET = 0.9  # agreement for which the number of tokens is predicted
