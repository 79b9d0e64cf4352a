"""How many rows each layer or head may keep: integers that add up exactly to what was asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from elvi.errors import BudgetError


def check_window(technique: object, count: int, window: int) -> None:
    """Raise BudgetError where `count` rows a head are fewer than the `window` last ones that always stay."""
    if count < window:
        raise BudgetError(
            f"{type(technique).__name__} was asked to keep {count} rows a head, fewer than the {window} of its "
            "observation window, which always stay: raise keep_ratio, or lower window."
        )


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
