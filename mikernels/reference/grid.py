"""`grid`: the mutual information of a joint histogram whose samples are shared smoothly between nodes."""

import torch
from torch import Tensor

from mikernels.options import NODE_SPAN, Problem


def grid(x: Tensor, y: Tensor, problem: Problem) -> Tensor:
    """`sum_ab J_ab log(J_ab / (p_a q_b))` with `J = phi(x)^T phi(y) / M` on G x G nodes.

    `phi_g` is the share of a value that node g receives: the kernel around the value, normalized over the nodes.

    Args:
        x, y: `[N, M]` and `[K, M]`, float64.

    Returns:
        `[N, K]` nats.
    """
    phi_x, phi_y = node_shares(x, problem), node_shares(y, problem)  # [N, M, G], [K, M, G]
    joint = torch.einsum("nma,kmb->nkab", phi_x, phi_y) / x.shape[1]  # [N, K, G, G]
    p, q = phi_x.mean(1), phi_y.mean(1)  # [N, G], [K, G]
    product = p[:, None, :, None] * q[None, :, None, :]
    return torch.special.xlogy(joint, joint / product).sum((2, 3))


def node_shares(x: Tensor, problem: Problem) -> Tensor:
    """`phi [..., G]` of values `x [...]`: rows sum to 1; values beyond the end nodes are moved onto them."""
    nodes = torch.linspace(-NODE_SPAN, NODE_SPAN, problem.nodes, dtype=x.dtype, device=x.device)
    distance = (x.clamp(-NODE_SPAN, NODE_SPAN)[..., None] - nodes) / problem.bandwidth
    return torch.softmax(-0.5 * distance.square(), dim=-1)
