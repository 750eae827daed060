"""Tests of other packages: `make test-rivals` installs them, and `make test` does not collect this folder."""

import torch

torch.set_num_threads(1)
