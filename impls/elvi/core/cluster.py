"""Density peaks: clusters whose centres are denser than what is near them (DPC-kNN).

Rodriguez and Laio, Science 2014 (density peaks), with the k-nearest-neighbour density of Du et al., Knowledge-Based
Systems 2016. With d_ij the distance of rows i and j divided by sqrt(D),

    rho_i = exp(-mean of d_ij^2 over the k nearest of i, itself among them)
    delta_i = min of d_ij over the denser j; for the densest, the largest distance of all
    centres: the rows with the highest rho_i delta_i.

Of equally dense rows the earlier one counts as denser, where published code adds random noise; so results are the same
in every run. Scores are compared as logarithms, because rho of far apart rows is too small for a float.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from elvi.core.tokens import top

EQUAL = 1e-6  # squared distances below this share of the squared lengths are rounding errors


def density_peaks(features: Tensor, count: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """Centres and clusters of rows [N, D]: ascending index [count] of the centres, and which one each row joins [N].

    neighbours: k, at most N of them are looked at. Every row joins the nearest centre, a centre itself. With no
    centre, count 0, the second is -1 throughout.
    """
    distance = distances(features)
    centre = top(peak_score(distance, neighbours), count)
    if not count:
        return centre, torch.full((len(features),), -1, device=centre.device)
    group = distance[:, centre].argmin(1)
    group[centre] = torch.arange(count, device=centre.device)
    return centre, group


def distances(features: Tensor) -> Tensor:
    """Euclidean distance over sqrt(D), float32 [N, N], of rows [N, D]; zero between rows that differ by rounding."""
    features = features.float()
    length = features.square().sum(-1)
    total = length[:, None] + length
    square = total - 2 * features @ features.mT
    square = torch.where(square > EQUAL * total, square, 0.0).fill_diagonal_(0.0)
    return (square / max(1, features.shape[1])).sqrt()


def peak_score(distance: Tensor, neighbours: int) -> Tensor:
    """log(rho delta), float32 [N], from distances [N, N]."""
    if not len(distance):
        return distance.new_empty(0)
    nearest = distance.topk(min(neighbours, len(distance)), dim=-1, largest=False).values
    density = -nearest.square().mean(-1)
    return density + to_denser(distance, density).log()


def to_denser(distance: Tensor, density: Tensor) -> Tensor:
    """delta, float32 [N]: distance [N, N] of each row to the nearest denser one, density [N] in any rising scale."""
    if distance.device.type == "cpu":
        return torch.from_numpy(scan_denser(distance.contiguous().numpy(), density.numpy()))
    return scan_denser_reference(distance, density)


@numba.njit(cache=True)
def scan_denser(distance: np.ndarray, density: np.ndarray) -> np.ndarray:
    """`scan_denser_reference` in one pass without N x N copies: float32 [N, N] and [N] -> float32 [N]."""
    total = len(density)
    delta = np.full(total, np.inf, np.float32)
    largest = np.float32(0)
    for i in range(total):
        for j in range(total):
            largest = max(largest, distance[i, j])
            if density[j] > density[i] or (density[j] == density[i] and j < i):
                delta[i] = min(delta[i], distance[i, j])
    for i in range(total):
        if delta[i] == np.inf:
            delta[i] = largest
    return delta


def scan_denser_reference(distance: Tensor, density: Tensor) -> Tensor:
    """Distance to the nearest denser row; of equally dense rows the earlier is denser; the densest: the largest."""
    place = torch.arange(len(density), device=density.device)
    earlier = (density[None] == density[:, None]) & (place[None] < place[:, None])
    denser = (density[None] > density[:, None]) | earlier
    nearest = distance.masked_fill(~denser, float("inf")).amin(1)
    return torch.where(nearest.isinf(), distance.max(), nearest)
