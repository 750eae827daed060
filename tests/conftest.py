"""Where the kernels run: without a GPU, Triton's interpreter takes them, if it is told before its first import."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
