"""Greedy max-min choice: always the one that is farthest from everything chosen so far."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize


def similarity(hidden: Tensor) -> Tensor:
    """Cosine similarity float32 [N, N] of the rows of hidden [N, D]; a row of norm zero is at 0 from all."""
    unit = normalize(hidden.float(), dim=-1)
    if unit.device.type == "cpu":
        return torch.from_numpy(unit.numpy() @ unit.numpy().T)  # NumPy sees the symmetry and computes one half
    return unit @ unit.mT


def farthest(similar: Tensor, count: int, given: Tensor | None = None) -> Tensor:
    """Index [count] of the least similar rows of similar float32 [N, N], in the order of choice; ties to the lowest.

    given: what counts as chosen already, and is not chosen again; without it the first choice is the row whose nearest
    neighbour is farthest. There must be `count` rows to choose from.
    """
    if given is None:
        given = torch.empty(0, dtype=torch.long, device=similar.device)
    if similar.device.type == "cpu":
        return torch.from_numpy(spread(similar.numpy(), count, given.numpy()))
    return spread_reference(similar, count, given)


@numba.njit(cache=True)
def spread(similar: np.ndarray, count: int, given: np.ndarray) -> np.ndarray:
    """The compiled choice: similar float32 [N, N], given int64 [G] -> int64 [count]; O(count N)."""
    total, start = similar.shape[0], 0
    chosen = np.empty(count, np.int64)
    nearest = np.full(total, -np.inf, np.float32)  # first: highest similarity to any other row
    if count > 0 and len(given) == 0:
        for i in range(total):
            raise_to(nearest[:i], similar[i, :i])
            raise_to(nearest[i + 1 :], similar[i, i + 1 :])
        chosen[0], start = np.argmin(nearest), 1
        nearest[:] = similar[chosen[0]]  # from here on: highest similarity to the rows chosen so far
    for row in given:
        raise_to(nearest, similar[row])
    nearest[given] = np.inf
    for step in range(start, count):
        nearest[chosen[:step]] = np.inf
        chosen[step] = np.argmin(nearest)
        raise_to(nearest, similar[chosen[step]])
    return chosen


@numba.njit(cache=True)
def raise_to(floor: np.ndarray, values: np.ndarray) -> None:
    """floor = max(floor, values), element by element and in place."""
    for i in range(len(floor)):
        floor[i] = max(floor[i], values[i])


def spread_reference(similar: Tensor, count: int, given: Tensor) -> Tensor:
    """The same choice as `spread`, in torch."""
    chosen = [*given.tolist()]
    if not chosen and count:
        chosen = [int(similar.clone().fill_diagonal_(float("-inf")).amax(0).argmin())]
    nearest = torch.full_like(similar[:, 0], float("-inf"))
    for row in chosen:
        nearest = torch.maximum(nearest, similar[row])
    while len(chosen) < len(given) + count:
        nearest[chosen] = float("inf")
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, similar[chosen[-1]])
    return torch.tensor(chosen[len(given) :], dtype=torch.long, device=similar.device)
