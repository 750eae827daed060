"""`grid`: the mutual information of a joint histogram whose samples are shared smoothly between nodes."""

import torch
from torch import Tensor

from mikernels.options import GRID_BANDWIDTH_FLOOR, NODE_SPAN, Problem


def grid(x: Tensor, y: Tensor, problem: Problem) -> Tensor:
    """`sum_ab J_ab log(J_ab / (p_a q_b))` with `J = phi(x)^T phi(y) / M` on G x G nodes.

    `phi_g` is the share of a value that node g receives: the kernel around the value, normalized over the nodes.

    Args:
        x, y: `[N, M]` and `[K, M]`, complex128 (`mikernels.reference`).

    Returns:
        `[N, K]` nats.
    """
    phi_x, phi_y = (torch.stack([node_shares(v, problem) for v in values]) for values in (x, y))
    joint = torch.einsum("nma,kmb->nkab", phi_x, phi_y) / x.shape[1]  # [N, K, G, G]
    p, q = phi_x.mean(1), phi_y.mean(1)  # [N, G], [K, G]
    product = p[:, None, :, None] * q[None, :, None, :]
    return torch.special.xlogy(joint, joint / product.clamp(min=1e-300)).sum((2, 3))  # a node may be empty


def node_shares(x: Tensor, problem: Problem) -> Tensor:
    """`phi [M, G]` of the values of a variable `x [M]`: rows sum to 1; values beyond the end nodes are moved onto them.

    A variable with atoms has a node for each of them. Its other values share the nodes beyond the first 1, 2, 4, ...,
    G / 2, the smallest of these numbers that holds the atoms. The bandwidth is at least 0.75 of the distance between
    those, or as much of it as is asked for between all nodes.
    """
    atom, n_atoms, nodes = x.imag.long() - 1, int(x.imag.max()), problem.nodes
    kept = 0
    while kept < min(n_atoms, nodes // 2):
        kept = min(max(1, 2 * kept), nodes // 2)
    place = torch.linspace(-NODE_SPAN, NODE_SPAN, nodes - kept, dtype=x.real.dtype, device=x.device)
    h = problem.bandwidth
    if kept:
        distance = 2 * NODE_SPAN / max(nodes - kept - 1, 1)
        h = max(h, distance * min(GRID_BANDWIDTH_FLOOR, h / (2 * NODE_SPAN / (nodes - 1))))
    distances = (x.real.clamp(-NODE_SPAN, NODE_SPAN)[:, None] - place) / h
    shares = x.real.new_zeros(len(x), nodes)
    shares[:, kept:] = torch.softmax(-0.5 * distances.square(), dim=-1)
    own = torch.eye(max(nodes, n_atoms), dtype=shares.dtype, device=x.device)[atom.clamp(min=0), :nodes]
    return torch.where((atom >= 0)[:, None], own, shares)
