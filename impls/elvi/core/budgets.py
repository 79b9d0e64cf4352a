"""How many rows each layer or head may keep: integers that add up exactly to what was asked for."""

from __future__ import annotations

import torch
from torch import Tensor


def split(weight: Tensor, total: int, most: int | Tensor, least: int | Tensor = 0) -> Tensor:
    """`total` rows over n parts in proportion to weight [n], each between `least` and `most`: int64 [n].

    Every part gets `least`, the rest is shared out by weight; what exceeds `most` goes to the others, again by weight
    (equally where all weights are zero). Fractions are given by largest remainder, ties to the lower index. The sum is
    `total`, or as near to it as the limits let it be.
    """
    weight = weight.detach().double().cpu().clamp(min=0)
    high = torch.as_tensor(most).cpu().double().expand(len(weight))
    low = torch.as_tensor(least).cpu().double().expand(len(weight)).minimum(high)
    share = low.clone()
    left = max(0.0, min(float(total), float(high.sum())) - float(low.sum()))
    while left > 1e-9:
        free = share < high - 1e-12
        parts = weight * free
        parts = parts if parts.sum() > 0 else free.double()
        given = torch.minimum(left * parts / parts.sum(), high - share)
        share += given
        left -= float(given.sum())
    whole = (share + 1e-9).floor()
    missing = round(float((share - whole).sum()))
    order = (share - whole).masked_fill(whole >= high, -1.0).sort(descending=True, stable=True).indices
    whole[order[:missing]] += 1
    return whole.long()


def clipped(weight: Tensor, total: int, most: int | Tensor, least: int | Tensor) -> Tensor:
    """`total` rows over n parts in proportion to weight [n], but `least` to `most` each: int64 [n].

    Unlike in `split`, `least` is no gift on top: a part whose weight is worth more gets just what that is worth.
    """
    weight = weight.detach().double().cpu().clamp(min=0)
    high = torch.as_tensor(most).cpu().double().expand(len(weight))
    low = torch.as_tensor(least).cpu().double().expand(len(weight)).minimum(high)
    lower, upper = 0.0, float((high / weight.clamp(min=1e-12)).max())
    for _ in range(100):  # bisection: what a unit of weight is worth, so that the clipped parts add up to `total`
        worth = (lower + upper) / 2
        lower, upper = (worth, upper) if float((worth * weight).clamp(low, high).sum()) < total else (lower, worth)
    return split((upper * weight).clamp(low, high) - low, total, most, least)


def pyramid(layers: int, total: int, most: int | Tensor, beta: float) -> Tensor:
    """Budgets [L] that add up to `total` and fall linearly over the layers, from 2 mean - mean / beta to mean / beta.

    Layers get `most` rows at most; where that is less than the line starts with, it starts there and ends higher.
    """
    mean = total / layers
    first = float(torch.as_tensor(most).expand(layers)[0])
    high = min(2 * mean - mean / beta, first)
    return split(torch.linspace(high, 2 * mean - high, layers), total, most)


def best_of_all(score: Tensor, total: int) -> Tensor:
    """How many of the `total` highest entries of score [H, K] each head has, ties to the lower head and slot: [H]."""
    order = score.flatten().sort(descending=True, stable=True).indices[:total]
    return torch.bincount(order // score.shape[1], minlength=score.shape[0])


def over_heads(score: Tensor, mean: int, floor_ratio: float, *, normalise: bool) -> Tensor:
    """Budgets [H] that add up to H mean, by how many of the H mean highest entries of score [H, K] each head has.

    score: not negative, and of one scale in all heads. Every head gets floor_ratio of `mean` (rounded down) anyway.
    normalise: heads are scaled first by the share of their score that their `mean` highest entries hold.
    """
    if normalise:
        best = score.sort(descending=True).values[:, :mean].sum(1, keepdim=True)
        score = score * best / score.sum(1, keepdim=True).clamp(min=torch.finfo(score.dtype).tiny)
    heads, most = score.shape
    return split(best_of_all(score, heads * mean), heads * mean, most, int(floor_ratio * mean))
