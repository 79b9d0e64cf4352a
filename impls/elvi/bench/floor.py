"""Random selection at equal budget: what a technique must beat to have chosen well.

A twin lets its technique choose, keeps only how many were chosen, and draws that many at random at the same place. A
twin without a seed takes as many that are evenly spaced instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from elvi.core.facts import Fact
from elvi.core.seams import Attend, Encoded, Fetch, Keep, Layer, Reduce, Resize, SelectFrames, Tower
from elvi.core.store import Kept
from elvi.media import uniform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from elvi.core.tokens import Tokens
    from elvi.core.views import LayerView, Seen
    from elvi.media import Clip

GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class _Random:
    of: Any
    seed: int | None

    lossless: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[Fact]:
        return self.of.needs

    @property
    def breaks(self) -> frozenset[Fact]:
        return self.of.breaks

    def draw(self, total: int, count: int, salt: int = 0, scale: int = 1) -> Tensor:
        """`count` ascending indices below `total` without replacement; the salt tells draws of one seed apart."""
        if self.seed is None:
            return torch.from_numpy(uniform(total, count))
        generator = torch.Generator().manual_seed(self.seed * scale + salt)
        return torch.randperm(total, generator=generator)[:count].sort().values


class _Reads:
    """Of a twin that says what rows read: when its technique does."""

    of: Any

    @property
    def prefill(self) -> bool:
        return self.of.prefill

    @property
    def decode(self) -> bool:
        return self.of.decode


@dataclass(frozen=True)
class RandomFrames(_Random):
    """As many random time steps as the technique chose."""

    def select_frames(self, clip: Clip, question: str | None) -> np.ndarray:
        count = len(self.of.select_frames(clip, question))
        if self.seed is None:
            return self.draw(len(clip), count).numpy()
        return np.sort(np.random.default_rng(self.seed).choice(len(clip), count, replace=False))


@dataclass(frozen=True)
class RandomSizes(_Random):
    """As many random time steps of every size as the technique chose."""

    def resize(self, clip: Clip, question: str | None) -> np.ndarray:
        sizes = self.of.resize(clip, question)
        if self.seed is not None:
            return np.random.default_rng(self.seed).permutation(sizes)
        spread = np.argsort(np.arange(len(sizes)) * GOLDEN % 1, kind="stable")  # any first few are far apart
        even = np.empty_like(sizes)
        even[spread] = np.sort(sizes)[::-1]
        return even


@dataclass(frozen=True)
class RandomTokens(_Random):
    """As many random visual tokens as the technique left, at the same place; all text stays."""

    @property
    def at(self) -> Tower | Encoded | Layer:
        return self.of.at

    @property
    def tower_layers(self) -> tuple[float, ...]:
        return getattr(self.of, "tower_layers", ())

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        count = int(self.of.reduce(tokens, seen).visual.sum())
        stays = ~tokens.visual
        if seen.block is None:
            parts = [tokens.visual.nonzero()[:, 0]]
        else:  # inside a vision tower every frame is left with as many
            parts = [*tokens.row.new_tensor(range(len(tokens))).view(int(tokens.cell[-1, 0]) + 1, -1)]
        for number, visual in enumerate(parts):
            drawn = self.draw(len(visual), count // len(parts), 1000 * number)
            stays[visual[drawn.to(visual.device)]] = True
        return tokens.keep(stays)


@dataclass(frozen=True)
class RandomFramesAndTokens(RandomFrames, RandomTokens):
    """Random time steps, and later random tokens of them, of a technique that chooses both."""


@dataclass(frozen=True)
class RandomCuts(RandomTokens):
    """Random tokens of a technique whose cache then follows what its tokens were cut to."""

    rolling: ClassVar[bool] = False

    @property
    def window(self) -> int:
        return self.of.window

    def keep(self, views: list[LayerView]) -> Sequence[Kept | Tensor | Sequence[Tensor] | None]:
        return self.of.keep(views)


@dataclass(frozen=True)
class RandomCutsAndReads(_Reads, RandomCuts):
    """Random tokens, of which every later row reads as many random ones as the technique would have it read."""

    @property
    def rolling(self) -> bool:  # type: ignore[override]
        return self.of.rolling

    def attend(self, view: LayerView) -> Tensor | None:
        reads = self.of.attend(view)
        if reads is None or reads.dtype != torch.bool:
            return reads
        drawn, places = reads & ~view.visual[0], view.visual[0].nonzero()[:, 0]
        for place, row in enumerate(view.query_row.tolist()):
            count = int(reads[0, place, places].sum())
            drawn[:, place, places[self.draw(len(places), count, view.layer * 1000 + row, 1_000_000)]] = True
        return drawn


@dataclass(frozen=True)
class RandomSlots(_Random):
    """As many random visual slots of each head as the technique kept near; text slots are those that it kept.

    Where a head fetches rows of the second tier, as many random ones of those that moved there, kept for good.
    """

    rolling: ClassVar[bool] = False

    @property
    def window(self) -> int:
        return self.of.window

    @property
    def streams(self) -> bool:
        return getattr(self.of, "streams", False)

    @property
    def inputs(self) -> bool:
        return getattr(self.of, "inputs", False)

    def keep(self, views: list[LayerView]) -> list[list[Tensor] | None]:
        chosen = self.of.keep(views)
        return [None if kept is None else self._slots(view, kept) for view, kept in zip(views, chosen)]

    def _slots(self, view: LayerView, kept: Kept | Tensor | Sequence[Tensor]) -> list[Tensor]:
        near, far = (kept.slots, kept.far) if isinstance(kept, Kept) else (kept, None)
        fetched = [0] * len(near)
        if far is not None and isinstance(self.of, Fetch):
            fetched = [slots.shape[1] for slots in self.of.fetch(view).slots]
        shared = Fact.SAME_KEYS_PER_HEAD in self.of.needs  # what acts again needs heads that hold the same rows
        drawn = []
        for head, slots in enumerate(near):
            salt = (view.layer * 1000 + (0 if shared else head), 1_000_000)
            visual = view.visual[head]
            stays = torch.zeros_like(visual).index_fill(0, slots, True)
            if far is not None and fetched[head] > 0:
                stays[far[head][self.draw(len(far[head]), fetched[head], *salt).to(visual.device)]] = True
            else:
                places, count = visual.nonzero()[:, 0], int((stays & visual).sum())
                stays &= ~visual
                stays[places[self.draw(len(places), count, *salt).to(places.device)]] = True
            drawn.append(stays.nonzero()[:, 0])
        return drawn


@dataclass(frozen=True)
class RandomReads(_Reads, RandomSlots):
    """Random slots of a technique that also says what rows read, which it goes on saying."""

    def attend(self, view: LayerView) -> Tensor | None:
        return self.of.attend(view)


@dataclass(frozen=True)
class RandomTokensAndSlots(RandomTokens, RandomSlots):
    """Random tokens, and later random slots, of a technique that chooses both."""


def twin(technique: Any, seed: int | None) -> _Random | None:
    """Random selection at the technique's own budget, evenly spaced without a seed; None where nothing is selected."""
    if isinstance(technique, SelectFrames):
        return (RandomFramesAndTokens if isinstance(technique, Reduce) else RandomFrames)(technique, seed)
    if isinstance(technique, Resize):
        return RandomSizes(technique, seed)
    if isinstance(technique, Reduce) and not isinstance(technique, Keep):
        return RandomTokens(technique, seed)
    if isinstance(technique, Reduce) and getattr(technique, "follows", False):
        return (RandomCutsAndReads if isinstance(technique, Attend) else RandomCuts)(technique, seed)
    streams = getattr(technique, "streams", False)
    if isinstance(technique, Keep) and not (technique.rolling or (isinstance(technique, Fetch) and streams)):
        if isinstance(technique, Reduce):
            return RandomTokensAndSlots(technique, seed)
        return (RandomReads if isinstance(technique, Attend) else RandomSlots)(technique, seed)
    return None
