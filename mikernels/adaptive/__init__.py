"""The steps of `adaptive` that the torch and the Triton implementation share."""
