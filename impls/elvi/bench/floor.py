"""Random selection at equal budget: what a technique must beat to have chosen well.

A twin lets its technique choose, keeps only how many were chosen, and draws that many at random at the same place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from elvi.core.plan import Encoded, Keep, Layer, Reduce, SelectFrames

if TYPE_CHECKING:
    from elvi.core.facts import Fact
    from elvi.core.tokens import Tokens
    from elvi.core.views import LayerView, Seen
    from elvi.media import Clip


@dataclass(frozen=True)
class _Random:
    of: Any
    seed: int

    lossless: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[Fact]:
        return self.of.needs

    @property
    def breaks(self) -> frozenset[Fact]:
        return self.of.breaks


@dataclass(frozen=True)
class RandomFrames(_Random):
    """As many random time steps as the technique chose."""

    def select_frames(self, clip: Clip, question: str | None) -> np.ndarray:
        count = len(self.of.select_frames(clip, question))
        return np.sort(np.random.default_rng(self.seed).choice(len(clip), count, replace=False))


@dataclass(frozen=True)
class RandomTokens(_Random):
    """As many random visual tokens as the technique left, at the same place; all text stays."""

    @property
    def at(self) -> Encoded | Layer:
        return self.of.at

    @property
    def tower_layers(self) -> tuple[int, ...]:
        return getattr(self.of, "tower_layers", ())

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        count = int(self.of.reduce(tokens, seen).visual.sum())
        visual = tokens.visual.nonzero()[:, 0]
        stays = ~tokens.visual
        stays[visual[_draw(len(visual), count, self.seed).to(visual.device)]] = True
        return tokens.keep(stays)


@dataclass(frozen=True)
class RandomSlots(_Random):
    """As many random visual slots of each head as the technique kept; text slots are those that it kept."""

    rolling: ClassVar[bool] = False

    @property
    def window(self) -> int:
        return self.of.window

    def keep(self, views: list[LayerView]) -> list[Tensor | None]:
        chosen = self.of.keep(views)
        return [None if slots is None else self._slots(view, slots) for view, slots in zip(views, chosen)]

    def _slots(self, view: LayerView, slots: Tensor) -> Tensor:
        kept = torch.zeros_like(view.visual).scatter_(1, slots, True)
        count = (kept & view.visual).sum(-1, keepdim=True)
        generator = torch.Generator().manual_seed(self.seed * 1000 + view.layer)
        score = torch.rand(view.row.shape, generator=generator).to(slots.device).masked_fill(~view.visual, -1.0)
        rank = score.argsort(dim=-1, descending=True).argsort(dim=-1)
        stays = torch.where(view.visual, rank < count, kept)
        return stays.nonzero()[:, 1].view(slots.shape)


def twin(technique: Any, seed: int) -> _Random | None:
    """Random selection at the technique's own budget; None where it selects nothing that could be drawn at random."""
    if isinstance(technique, SelectFrames):
        return RandomFrames(technique, seed)
    if isinstance(technique, Reduce):
        return RandomTokens(technique, seed)
    if isinstance(technique, Keep) and not technique.rolling:
        return RandomSlots(technique, seed)
    return None


def _draw(total: int, count: int, seed: int) -> Tensor:
    """`count` ascending indices below `total`, drawn without replacement."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values
