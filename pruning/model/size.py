"""How large a model is."""

from torch import Tensor, nn


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; shared ones count once."""
    return sum(p.numel() for p in model.parameters())


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and saved buffers; shared ones count once."""
    return sum(p.numel() * p.element_size() for p in (*model.parameters(), *saved_buffers(model).values()))


def saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that are saved with the parameters, by name."""
    saved = model.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}
