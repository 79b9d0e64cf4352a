"""Bipartite soft matching: which tokens of a frame go into which others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from collections.abc import Callable

    from elvi.core.tokens import Tokens


def matched(metric: Tensor, count: int, penalty: Tensor | None = None) -> Tensor:
    """The token [n] that each token goes into, itself where it stays: exactly min(count, n // 2) go.

    metric [n, d]: likeness is the cosine of its rows; penalty [n]: subtracted from the likeness of a token that would
    go. Tokens at even places may go into tokens at odd ones, each to the one most like it; of these ties the strongest
    are taken. Ties between equals go to the lower index.
    """
    owner = torch.arange(len(metric), device=metric.device)
    count = min(count, len(metric) // 2)
    if count <= 0:
        return owner
    unit = normalize(metric.float(), dim=-1)
    likeness = unit[0::2] @ unit[1::2].mT
    if penalty is not None:
        likeness = likeness - penalty[0::2, None]
    best, partner = likeness.max(1)
    going = best.sort(descending=True, stable=True).indices[:count]
    owner[2 * going] = 2 * partner[going] + 1
    return owner


def folded(metric: Tensor, mass: Tensor, count: int, penalty: Tensor | None = None) -> Tensor:
    """As `matched`, for more than half of the tokens: matched again and again until `count` are gone, at most n - 1.

    Between two rounds metric and penalty of a token become the means of what it holds, weighted by mass [n].
    """
    owner = torch.arange(len(metric), device=metric.device)
    left, count = owner, min(count, len(metric) - 1)
    total = mass.to(metric.dtype)
    while count > 0:
        going = matched(metric, count, penalty)
        count -= min(count, len(left) // 2)
        owner = left[going][torch.searchsorted(left, owner)]
        anchor, group = going.unique(return_inverse=True)
        metric = means(metric, total, group)
        penalty = None if penalty is None else means(penalty, total, group)
        total = torch.zeros_like(total[: len(anchor)]).index_add_(0, group, total)
        left = left[anchor]
    return owner


def quota(total: int, block: int, blocks: int) -> int:
    """How many of `total` fall to one of so many blocks when they are spread evenly over all."""
    return total * (block + 1) // blocks - total * block // blocks


def means(values: Tensor, mass: Tensor, group: Tensor) -> Tensor:
    """Mean [M, ...] of values [N, ...] over each group [N], weighted by mass [N]."""
    size = int(group.max()) + 1
    total = torch.zeros(size, dtype=mass.dtype, device=mass.device).index_add_(0, group, mass)
    share = (mass / total[group]).view(-1, *[1] * (values.ndim - 1))
    return torch.zeros(size, *values.shape[1:], dtype=values.dtype, device=values.device).index_add_(
        0, group, values * share.to(values.dtype)
    )


def owners(tokens: Tokens, choose: Callable[[Tensor], Tensor]) -> Tensor:
    """The token [N] that each token goes into, frame by frame: `choose` says it of a frame, index [n] -> owner [n]."""
    owner = torch.arange(len(tokens), device=tokens.row.device)
    for step in tokens.cell[:, 0].unique():
        frame = (tokens.cell[:, 0] == step).nonzero()[:, 0]
        owner[frame] = frame[choose(frame)]
    return owner


def by_frame(tokens: Tokens, choose: Callable[[Tensor], Tensor]) -> Tokens:
    """Every frame's tokens merged into the `owners`, which become means weighted by mass."""
    owner = owners(tokens, choose)
    anchor, group = owner.unique(return_inverse=True)
    return tokens if len(anchor) == len(tokens) else tokens.merge(group, anchor)
