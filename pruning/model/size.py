"""How large a model is."""

from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; shared ones count once."""
    return sum(p.numel() for p in model.parameters())


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters; shared ones count once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())
