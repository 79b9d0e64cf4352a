"""AKVQ-VL: more bits for what a layer attends to, two for the rest.

Su et al., 2025, arXiv:2501.15021. Some layers, mostly the first ones, attend to text ("text-salient"), the others to a
few pivot tokens with massive activations ("pivot-salient"). In the former, text takes 4 bits; in the latter, the pivots
stay exact; so do the last tokens in all layers, and everything else takes 2 bits. Rows are held as x H, with the
normalised Hadamard matrix H, which spreads outliers over the channels and leaves all products q k as they are. Per
token and group of channels, with [a, c] the range that is covered,

    s = (c - a) / (2^n - 1),    z = -round(a / s),    code = clip(round(x / s) + z, 0, 2^n - 1),    x^ = s (code - z).

No code was released, and the paper leaves much open. Our reconstruction (R):
- A layer is text-salient where the last rows of the prompt pay text more than half of their attention; the paper fixes
  such layers per model.
- Pivots are the tokens with the largest number in the residual stream as they enter the first pivot-salient layer.
- [a, c] is the range of the group times `clip` (1 at 4 bits). What is stored is s and -s z, as precise as the cache.

Where we differ:
- Rows are rotated back when they are restored; the paper rotates queries, and W_V and W_O offline. The logits are the
  same, and the model stays as it is.
- Tokens leave the recent ones `block` at a time, where drafts end, so that speculation reads what plain decoding reads.
- Groups are at most as wide as a head. Where heads hold different numbers of tokens of a kind, the surplus stays exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.bits import Levels, Pair, levels
from elvi.core.facts import Fact
from elvi.core.scores import observers, window_score
from elvi.core.tokens import top
from elvi.errors import FitError, check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView
    from elvi.families.family import Family

FEW, MORE, EXACT = 2, 4, 16  # bits


@dataclass(frozen=True)
class AKVQVL:
    """Keep the last `recent` tokens exact and hold earlier ones in 2 bits, with more for what the layer attends to.

    pivots: U, exact in pivot-salient layers; group: channels that share s and z; clip: share of the range that 2 bits
    cover; text_share: of attention, above which a layer is text-salient; block: tokens that leave the recent ones at
    once. Bytes are those of codes and two numbers per group. Raises BudgetError, and FitError for unfit heads.
    """

    recent: int = 128
    pivots: int = 15
    group: int = 128
    clip: float = 0.8
    text_share: float = 0.5
    block: int = 32

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.WHOLE_PROMPT, Fact.SETTLED, Fact.SAME_LENGTH_PER_HEAD})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.EXACT_VALUES, Fact.SETTLED})
    lossless: ClassVar[bool] = False
    window: ClassVar[int] = 32
    entering: ClassVar[bool] = True
    full: ClassVar[dict[str, Any] | None] = {"recent": 1_000_000}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("recent", (16, 32, 64, 128))

    def __post_init__(self) -> None:
        for field, least in (("recent", 0), ("pivots", 0), ("group", 1), ("block", 1)):
            check_range(self, field, least, float("inf"))
        check_range(self, "clip", 0.0, 1.0, open_low=True)
        check_range(self, "text_share", 0.0, 1.0)

    def fit(self, family: Family) -> None:
        width, group = family.head_dim, min(self.group, family.head_dim)
        if width & (width - 1) or width % group or group % 4:
            raise FitError(
                f"AKVQVL was asked for groups of {group} in heads {width} wide of {family.name}, but heads have to be "
                "a power of two wide, and groups to divide them into whole bytes: use another group, or another codec."
            )

    def pack(self, views: list[LayerView]) -> int:
        if views[0].phase == "prompt":
            self._look(views)
        for view in views:
            for bits, clip in ((MORE, 1.0), (FEW, self.clip)):
                chosen = self._bits(replace(view)) == bits  # a fresh view, for packing moves slots
                slots = top(chosen.float(), int(chosen.sum(1).min()))
                if slots.numel():
                    rows = (torch.stack([x[at] for x, at in zip(half, slots)]) for half in view.store.rows.read())
                    view.store.pack(Pair(*(quantise(x, bits, self.group, clip) for x in rows)), slots)
        return self.block

    def _look(self, views: list[LayerView]) -> None:
        """Note for every layer the row numbers of its pivots, or None where it is text-salient."""
        pivots = None
        for view in views:
            salient = text_share(view, self.window) > self.text_share
            if not salient and pivots is None:
                tokens = view.entering
                pivots = tokens.row[top(tokens.hidden.abs().amax(-1), self.pivots)]
            view.memory["pivots"] = None if salient else pivots

    def _bits(self, view: LayerView) -> Tensor:
        """Bits [H, n] that each row takes that is not packed yet."""
        exact = view.store.rows.longest
        first, pivots = view.store.length - exact, view.memory["pivots"]
        special = ~view.visual if pivots is None else torch.isin(view.row, pivots)
        bits = torch.where(special[:, first:], MORE if pivots is None else EXACT, FEW)
        return bits.masked_fill(torch.arange(exact, device=bits.device) >= exact - self.recent, EXACT)


def text_share(view: LayerView, window: int) -> float:
    """Share of the attention of the last rows, at most `window`, that goes to text; mean over heads and rows."""
    paid = window_score(view, observers(view.query_row, view.layout, window))
    return float(paid.masked_fill(view.visual, 0.0).sum(1).mean())


@dataclass(frozen=True)
class Rotated:
    """Rows [H, m, d] times H, as levels [H, m, groups, channels]."""

    levels: Levels

    @property
    def nbytes(self) -> int:
        return self.levels.nbytes

    def restore(self) -> Tensor:
        return rotated(self.levels.restore().flatten(-2))


def quantise(x: Tensor, bits: int, group: int, clip: float) -> Rotated:
    """x [H, m, d], rotated, per token and group of channels."""
    x = rotated(x).unflatten(-1, (-1, min(group, x.shape[-1])))
    low, high = x.amin(-1, keepdim=True) * clip, x.amax(-1, keepdim=True) * clip
    step = (high - low) / (2**bits - 1)
    low = torch.where(step > 0, (low / step).round() * step, low)  # -s z; constant groups have one level
    return Rotated(levels(x, bits, low, low + step * (2**bits - 1)))


def rotated(x: Tensor) -> Tensor:
    """x H, and x again if done twice: H is the symmetric, orthogonal Hadamard matrix of Sylvester's construction."""
    matrix = torch.ones(1, 1, device=x.device)
    while len(matrix) < x.shape[-1]:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return (x.float() @ matrix / x.shape[-1] ** 0.5).to(x.dtype)
