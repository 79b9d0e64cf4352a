"""Connected components: what belongs together when some pairs do."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor


def connected(edges: Tensor, total: int) -> Tensor:
    """The lowest of the nodes that each node is connected with, itself among them: edges [2, m] -> int64 [total]."""
    if edges.device.type == "cpu":
        return torch.from_numpy(unite(edges.contiguous().numpy(), total))
    return unite_reference(edges, total)


@numba.njit(cache=True)
def unite(edges: np.ndarray, total: int) -> np.ndarray:
    """Union-find whose roots are the lowest nodes: edges int64 [2, m] -> int64 [total]."""
    root = np.arange(total)
    for edge in range(edges.shape[1]):
        first, second = find(root, edges[0, edge]), find(root, edges[1, edge])
        root[max(first, second)] = min(first, second)
    for node in range(total):
        root[node] = root[root[node]]  # those before it are final
    return root


@numba.njit(cache=True)
def find(root: np.ndarray, node: int) -> int:
    """The root of a node; what is passed on the way moves up."""
    while root[node] != node:
        root[node] = root[root[node]]
        node = root[node]
    return node


def unite_reference(edges: Tensor, total: int) -> Tensor:
    """The same in torch: both ends of an edge, and their roots, take the lower root, until nothing changes."""
    root = torch.arange(total, device=edges.device)
    while True:
        ends = root[edges]
        lowest = ends.amin(0).repeat(4)
        lower = root.scatter_reduce(0, torch.cat([edges.flatten(), ends.flatten()]), lowest, "amin")
        lower = lower[lower]
        if torch.equal(lower, root):
            return root
        root = lower
