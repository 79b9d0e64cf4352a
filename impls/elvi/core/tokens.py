"""A row of tokens with everything known about each of them.

Shape letters used in the whole core: N tokens, D width, P position axes (1, or 3 for M-RoPE), H key-value heads,
Hq query heads, Q query rows, K cached keys, d head width, L layers, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Tokens in prompt order.

    hidden [N, D]; position [P, N] rotary positions; token [N] vocabulary ids (the placeholder id for visual tokens);
    cell [N, 3] place in the visual grid as (t, y, x), -1 for text; mass [N] how many original tokens each stands for;
    row [N] where the token stood before anything was dropped: ascending, never renumbered.
    """

    hidden: Tensor
    position: Tensor
    token: Tensor
    cell: Tensor
    mass: Tensor
    row: Tensor

    def __len__(self) -> int:
        return self.hidden.shape[0]

    @property
    def visual(self) -> Tensor:
        """bool [N]: which tokens show a part of the picture."""
        return self.cell[:, 0] >= 0

    @property
    def step(self) -> Tensor:
        """[N]: the time step that each token belongs to; text to the picture before it, -1 before the first one."""
        return self.cell[:, 0].cummax(0).values if len(self) else self.cell[:, 0]

    @property
    def frames(self) -> Tensor:
        """[T, n]: index in this row of the n visual tokens of every time step, where all steps have equally many."""
        visual = self.visual.nonzero()[:, 0]
        return visual.view(len(self.cell[visual, 0].unique()), -1) if len(visual) else visual.view(0, 0)

    def with_hidden(self, hidden: Tensor) -> Tokens:
        """The same tokens with other hidden states [N, D]."""
        return replace(self, hidden=hidden)

    def keep(self, index: Tensor) -> Tokens:
        """The tokens at `index` [M] (ascending positions in this row, or a bool mask [N])."""
        if index.dtype == torch.bool:
            index = index.nonzero()[:, 0]
        return Tokens(
            self.hidden[index],
            self.position[:, index],
            self.token[index],
            self.cell[index],
            self.mass[index],
            self.row[index],
        )

    def keep_visual(self, index: Tensor) -> Tokens:
        """All text, and of the visual tokens those at `index` [m], in any order.

        The last token stays whatever it is: should the prompt end in a picture, its logits are wanted.
        """
        stays = (~self.visual).index_fill(0, index, True)
        stays[-1] = True
        return self.keep(stays)

    def then(self, later: Tokens) -> Tokens:
        """These tokens followed by others."""
        return Tokens(
            torch.cat([self.hidden, later.hidden]),
            torch.cat([self.position, later.position], dim=1),
            torch.cat([self.token, later.token]),
            torch.cat([self.cell, later.cell]),
            torch.cat([self.mass, later.mass]),
            torch.cat([self.row, later.row]),
        )

    def compact(self) -> Tokens:
        """Numbered anew, without gaps: text counts on from what stands before it.

        On every axis a picture's positions become their ranks, counted on from the text before it; the text after it
        begins one above the highest of them.
        """
        position, following = self.position.clone(), int(self.position[0, 0])
        ends = [*(self.visual[1:] != self.visual[:-1]).nonzero()[:, 0] + 1, len(self)]
        for start, stop in pairwise([0, *map(int, ends)]):
            span = position[:, start:stop]
            if self.visual[start]:
                span = torch.stack([axis.unique(return_inverse=True)[1] for axis in span])
            else:
                span = torch.arange(stop - start, device=span.device).expand_as(span)
            position[:, start:stop] = following + span
            following += int(span.max()) + 1
        return replace(self, position=position)

    def merge(self, group: Tensor, anchor: Tensor, weight: Tensor | None = None) -> Tokens:
        """Sum tokens of one group into one token that stands at its anchor.

        group [N]: which of the M results each token goes to; anchor [M]: ascending index of the token that lends its
        position, cell and row; weight [N]: factor of each token in its sum (default: mass-weighted mean).
        Mass is conserved: the mass of a result is the sum over its group.
        """
        count = len(anchor)
        mass = torch.zeros(count, dtype=self.mass.dtype, device=self.mass.device).index_add_(0, group, self.mass)
        if weight is None:
            weight = self.mass / mass[group]
        hidden = torch.zeros(count, self.hidden.shape[1], dtype=self.hidden.dtype, device=self.hidden.device)
        hidden.index_add_(0, group, self.hidden * weight[:, None].to(self.hidden.dtype))
        return replace(self.keep(anchor), hidden=hidden, mass=mass)

    def fold(self, owner: Tensor, weight: Tensor | None = None) -> Tokens:
        """Merge every token into the one that owns it: owner [N] indexes this row, -1 drops a token.

        What is merged into has to own itself, and is the anchor; weight [N]: see `merge`.
        """
        left = owner >= 0
        anchor = (owner == torch.arange(len(owner), device=owner.device)).nonzero()[:, 0]
        group, place = torch.searchsorted(anchor, owner[left]), (left.cumsum(0) - 1)[anchor]
        return self.keep(left).merge(group, place, None if weight is None else weight[left])


def top(score: Tensor, count: int) -> Tensor:
    """Ascending indices [..., count] of the highest scores in the last dimension; ties go to the lower index."""
    order = torch.sort(score, dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(dim=-1).values


def budget(keep_ratio: float, total: int) -> int:
    """How many of `total` a keep ratio leaves: rounded half up, between 0 and `total`."""
    return max(0, min(total, int(keep_ratio * total + 0.5)))


def outliers(score: Tensor, factor: float = 1.5) -> int:
    """How many of score [n] lie more than `factor` interquartile ranges above the third quartile (interpolated)."""
    low, high = (score.double().quantile(share) for share in (0.25, 0.75))
    return int((score > high + factor * (high - low)).sum())
