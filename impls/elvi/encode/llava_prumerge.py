"""LLaVA-PruMerge: adaptive token reduction for efficient large multimodal models.

Shang et al., ICCV 2025, arXiv:2403.15388. The class token attends to few patches. With a_j what it pays patch j, those
above the outlier bound Q3 + 1.5 (Q3 - Q1) stay, so that a busy picture keeps more; each of them takes in its k nearest
neighbours by keys, and one more token sums up all that is left out:

    y_i = F_i + sum over neighbours j of i of a_j F_j,    e = sum over j that are left out of a_j F_j.

PruMerge+ also keeps a regular sample of the patches, three per outlier, so that no area is lost.

As in the released code, a comes from the queries and keys of the tower's last block taken as one wide head, F from the
block that the language model reads, and the weights a_j are not normalised; neighbours may be kept tokens, too.

Where we differ:
- Outliers are counted per frame, not over a batch; one patch stays at least, the best one, where nothing stands out.
- `keep_ratio` None is the adaptive rule. The fixed share of the released code (1/8) truncates; here it is rounded. Its
  regular sample for fixed shares holds duplicates; here one rule serves both and the last patch may be sampled, too.
- Tokens stand in raster order, not by attention. e stands in the place of the last patch that is left out (R), and has
  the mass of all of them; where nothing is left out there is no e, which would be zero.
- Numbering the tokens anew, as the released code does, is `positions="compact"`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from elvi.core.facts import Fact
from elvi.core.seams import Encoded
from elvi.core.tokens import Tokens, budget, outliers, top
from elvi.errors import check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.views import Seen

LAST = -1  # the block of the tower whose queries and keys are read


@dataclass(frozen=True)
class LLaVAPruMerge:
    """Keep the patches that stand out to the class token, let them take in their neighbours, and sum up the rest.

    keep_ratio: share of a frame's tokens that stays besides the summary; None lets outliers decide. factor: how many
    interquartile ranges above the third quartile an outlier lies; neighbours: k, as many as there are at most;
    spatial: PruMerge+. positions: "original" keeps the gaps, "compact" numbers what is left anew.
    Raises BudgetError for values out of range, FitError without a class token.
    """

    keep_ratio: float | None = None
    factor: float = 1.5
    neighbours: int = 32
    spatial: bool = False
    positions: str = "original"

    at: ClassVar[Encoded] = Encoded()
    tower_layers: ClassVar[tuple[int, ...]] = (LAST,)
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.CLS_TOKEN})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES, Fact.UNIT_MASS})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = None  # even if all stay they take in their neighbours
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.0625, 0.125, 0.25, 0.5))

    def __post_init__(self) -> None:
        if self.keep_ratio is not None:
            check_range(self, "keep_ratio", 0.0, 1.0)
        check_range(self, "factor", 0.0, float("inf"))
        check_range(self, "neighbours", 0, float("inf"))
        check_choice(self, "positions", "original", "compact")

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        assert seen.tower is not None, "the tower is seen at Encoded"
        paid = seen.tower.joint_cls_attention(LAST)[tokens.row]
        key = seen.tower.head_keys(LAST).flatten(1)[tokens.row]
        frames = [tokens.cell[:, 0] == step for step in tokens.cell[:, 0].unique()]
        parts = [self._frame(tokens.keep(frame), paid[frame], key[frame]) for frame in frames]
        return reduce(Tokens.then, parts, tokens.keep(torch.zeros_like(tokens.visual)))

    def _frame(self, tokens: Tokens, paid: Tensor, key: Tensor) -> Tokens:
        """One frame: what stays, then its neighbours and the summary."""
        count = outliers(paid, self.factor) if self.keep_ratio is None else budget(self.keep_ratio, len(paid))
        stays = torch.zeros_like(tokens.visual)
        stays[top(paid, max(1, count))] = True
        if self.spatial:
            stays[:: max(1, len(paid) // max(1, count) // 3)] = True
        weight = shares(stays, paid, key, self.neighbours)
        if not stays.all():
            summary = (~stays).nonzero()[-1]
            weight[summary] = torch.where(stays, 0.0, paid)
            mass = torch.where(stays, tokens.mass, 0.0).index_fill(0, summary, float(tokens.mass[~stays].sum()))
            tokens, stays = replace(tokens, mass=mass), stays.index_fill(0, summary, True)
        hidden = weight[stays] @ tokens.hidden.float()
        return tokens.keep(stays).with_hidden(hidden.to(tokens.hidden.dtype))


def shares(stays: Tensor, paid: Tensor, key: Tensor, neighbours: int) -> Tensor:
    """Weights [n, n]: row i says what the token i that stays takes of each token, itself with 1; other rows are zero.

    stays bool [n], paid [n]: weight of each neighbour, key [n, C].
    """
    unit = normalize(key.float(), dim=-1)
    similar = (unit[stays] @ unit.mT).masked_fill(torch.eye(len(key), dtype=torch.bool, device=key.device)[stays], -9.0)
    nearest = top(similar, min(neighbours, len(key) - 1))
    rows = torch.zeros_like(similar).scatter_(1, nearest, paid.float()[nearest])
    weight = torch.eye(len(key), device=key.device) * stays
    weight[stays] += rows
    return weight
