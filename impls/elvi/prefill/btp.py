"""BTP: balanced token pruning, for what a layer loses and for what all later layers lose.

Li et al., NeurIPS 2025, arXiv:2505.22038. To prune at a layer by attention costs that layer least, but takes from later
ones what they might have needed; a diverse choice keeps more for them. So tokens go in stages, shallow ones choosing by
diversity and deep ones by attention. A calibration (`elvi search btp`) says where: right after layers that change the
visual tokens much. At each stage, of n visual tokens b stay,

    P = argmax lambda sum_{j in P} a_j + (1 - lambda) F(P),   |P| = b,

with a_j the attention that the text after the last picture pays token j in the layer before, summed over its rows and
averaged over heads, and F the distance between the two closest members of P. Attention is rebalanced, as tokens late in
a picture get more of it for their place alone: of the k' > b best ones those in the front half of their picture come
first, and the best of the others fill up. F is built cheaply: first tokens far apart on the grid, then a few far apart
in their hidden states.

Where we differ; the released code was not readable, and what is marked (R) is our reconstruction:
- The joint objective is met greedily (R): round((1 - lambda) b) tokens for diversity, the others by attention.
- Layers (R): after the S layers with the lowest local minima of the cosine between what enters and what leaves them;
  if there are fewer minima, after the lowest of the other layers.
- Every stage leaves the same share (R); lambda rises evenly from stage to stage (R); k' = 1.5 b (R); the share of
  diverse tokens that is found on the grid (R), where distance is Manhattan's over time, rows and columns.
- The calibration runs on clips of the tiny models' world; the paper's takes 64 pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.core.searched import searched
from elvi.core.spread import farthest, similarity
from elvi.core.tokens import budget
from elvi.errors import FitError, check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen
    from elvi.families.family import Family

FOUND = Path(__file__).with_name("btp_layers.json")  # by model: one row of cosines, of all layers but the last


@dataclass(frozen=True)
class BTP:
    """Prune in stages, for diversity in shallow layers and by attention in deep ones.

    stages: S; keep_ratio: share of its visual tokens that a stage leaves to the next; shallow, deep: lambda of the
    first and of the last stage; candidates: k' / b; grid: share of the diverse tokens that is found on the grid; table:
    "auto" (the shipped calibration), "even" (stages end at equal parts of the depth) or a file that `elvi search btp`
    wrote. Raises BudgetError for values out of range, FitError for a model with too few layers or no calibration.
    """

    stages: int = 3
    keep_ratio: float = 0.5
    shallow: float = 0.2
    deep: float = 0.9
    candidates: float = 1.5
    grid: float = 0.5
    table: str = "auto"

    at: ClassVar[Layer] = Layer(1, every=1)
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES, Fact.SAME_LENGTH_PER_LAYER})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.1, 0.25, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "stages", 1, float("inf"))
        for field in ("keep_ratio", "shallow", "deep", "grid"):
            check_range(self, field, 0.0, 1.0)
        check_range(self, "candidates", 1.0, float("inf"))

    def fit(self, family: Family) -> None:
        if self.stages > family.num_layers - 1:
            raise FitError(
                f"BTP was asked for {self.stages} stages, but {family.name} has {family.num_layers} layers, between "
                f"which there is room for {family.num_layers - 1}: ask for fewer."
            )
        self.layers(family)

    def layers(self, family: Family) -> list[int]:
        """The layers, ascending, that run on fewer tokens than the one before."""
        count = family.num_layers
        if self.table == "even":
            return [max(1, stage * count // (self.stages + 1)) for stage in range(1, self.stages + 1)]
        source = FOUND if self.table == "auto" else Path(self.table)
        return after_changes(searched(source, family, (1, count - 1), "btp", self)[0].tolist(), self.stages)

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        assert seen.family is not None
        layers, visual = self.layers(seen.family), tokens.visual.nonzero()[:, 0]
        if seen.layer not in layers:
            return tokens
        stage = layers.index(seen.layer)
        count = budget(self.keep_ratio ** (stage + 1), seen.entered)
        if count >= len(visual):
            return tokens
        weight = self.shallow + (self.deep - self.shallow) * stage / max(1, self.stages - 1)
        asking = seen.question_index
        attention = seen.attention(asking).sum(1).mean(0)[visual] if len(asking) else tokens.mass[visual]
        return tokens.keep_visual(visual[self.balanced(tokens.keep(visual), attention, count, weight)])

    def balanced(self, visual: Tokens, attention: Tensor, count: int, weight: float) -> Tensor:
        """Index [count] of visual tokens, diverse ones first; attention [N], weight lambda."""
        spread = budget(1 - weight, count)
        place = visual.cell.float()
        seeds = farthest(-torch.cdist(place, place, p=1), budget(self.grid, spread))
        others = spread - len(seeds)
        diverse = torch.cat([seeds, farthest(similarity(visual.hidden), others, seeds)]) if others else seeds
        rest = torch.ones_like(attention, dtype=torch.bool).index_fill(0, diverse, False).nonzero()[:, 0]
        best = rebalanced(attention[rest], front_half(visual)[rest], count - spread, self.candidates)
        return torch.cat([diverse, rest[best]])


def after_changes(cosine: list[float], stages: int) -> list[int]:
    """The layers after the lowest local minima of cosine [L - 1], then after the lowest others: ascending [stages]."""
    around = [float("inf"), *cosine, float("-inf")]  # whether the last one is a minimum is not known
    dips = [around[i] >= around[i + 1] <= around[i + 2] for i in range(len(cosine))]
    return sorted(i + 1 for i in sorted(range(len(cosine)), key=lambda i: (not dips[i], cosine[i], i))[:stages])


def front_half(visual: Tokens) -> Tensor:
    """bool [N]: whether a token stands in the front half of those that are left of its picture."""
    step = visual.cell[:, 0]
    same = step[:, None] == step
    return 2 * same.tril(-1).sum(1) < same.sum(1)


def rebalanced(attention: Tensor, front: Tensor, count: int, candidates: float) -> Tensor:
    """Index [count]: of the best `candidates` times as many those in front, the best first, then the best others."""
    order = attention.sort(descending=True, stable=True).indices
    first = torch.zeros_like(front).index_fill(0, order[: int(candidates * count)], True) & front
    return torch.cat([order[first[order]], order[~first[order]]])[:count]
