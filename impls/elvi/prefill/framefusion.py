"""FrameFusion: the first layers merge what frames repeat, then one look of the last tokens meets the budget.

Fu et al., ICCV 2025, arXiv:2501.01986. The budget c is the mean share of the N visual tokens that the L layers read.
Entering layer k with n tokens, (c L N - what the layers before have read) / (L - k) is what each layer to come may
read: a.

1. Merging, from layer 0 on. Every visual token is compared with the one before it in time at the same place. Runs of
   tokens with a cosine of at least S, m in all, become one with the token before them: their plain mean, at its place.
   If n - m > a, too much is left yet: merging goes on in the next layer, unless m < r n. Else only the n - a most alike
   are merged, and that is all.
2. Pruning, once, in the layer after the last that merged: the a tokens stay that the last 4 rows attend to most.

Where we differ:
- Merging and pruning are done between layers; the released code does them between attention and MLP, so that one MLP
  reads fewer tokens and the scores are of the same layer. Ours are of the layer before, as the budget counts them.
- The released code takes 28 layers for granted. Its fractions are counted in tokens here, so that rounding cannot
  pile up; the earlier of equals is merged first, and a is rounded half up.
- (R) Merging also ends where the budget would not pay for another layer as it is. The released code goes on and fails
  one layer later. What cannot be paid even so, c L < 1, is refused before anything runs.
- Tokens are compared by their places in time, so that others may have dropped or merged some of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.core.tokens import top
from elvi.errors import FitError, check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen
    from elvi.families.family import Family

ROWS = 4  # at the end of the prompt, whose attention is what a token is worth


@dataclass(frozen=True)
class FrameFusion:
    """Merge tokens with their like in the frame before while that pays, then keep what the last rows attend to.

    keep_ratio: c; threshold: S (paper: 0.6, else chosen per model); least: r, share of the tokens below which merging
    does not pay. Raises BudgetError for values out of range, FitError when c is less than one layer's worth.
    """

    keep_ratio: float = 0.3
    threshold: float = 0.6
    least: float = 0.1

    at: ClassVar[Layer] = Layer(0, every=1)
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT})
    breaks: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRID, Fact.EQUAL_FRAMES, Fact.UNIT_MASS, Fact.SAME_LENGTH_PER_LAYER}
    )
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.15, 0.3, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0)
        check_range(self, "threshold", -1.0, float("inf"))
        check_range(self, "least", 0.0, 1.0)

    def fit(self, family: Family) -> None:
        if self.keep_ratio * family.num_layers < 1:
            raise FitError(
                f"FrameFusion was asked for keep_ratio={self.keep_ratio} of the visual tokens, mean over the "
                f"{family.num_layers} layers of {family.name}, but its first layer may have to read all of them: use "
                f"{1 / family.num_layers:.3g} or more."
            )

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        assert seen.family is not None, "layers are known from Layer(0) on"
        layers, memory, visual = seen.family.num_layers, seen.memory, tokens.visual.nonzero()[:, 0]
        if seen.layer == 0:
            memory["left"], memory["phase"] = self.keep_ratio * layers * len(visual), "merge"
        affordable = memory["left"] / (layers - seen.layer)
        if not len(visual) or memory["phase"] == "done":
            return tokens
        if memory["phase"] == "merge":
            out, memory["phase"] = self._merge(tokens, visual, affordable)
        else:
            out, memory["phase"] = pruned(tokens, visual, rounded(affordable, len(visual)), seen), "done"
        read = int(out.visual.sum())
        memory["left"] -= read
        if memory["phase"] == "merge" and memory["left"] < read:
            memory["phase"] = "prune"
        return out

    def _merge(self, tokens: Tokens, visual: Tensor, affordable: float) -> tuple[Tokens, str]:
        """What merging leaves, and what is to be done in the next layer."""
        order, alike = timelines(tokens, visual)
        merged = alike >= self.threshold
        number, phase = int(merged.sum()), "merge"
        if len(visual) - number <= affordable:
            best = visual[top(alike[visual], len(visual) - rounded(affordable, len(visual)))]
            merged, phase = torch.zeros_like(merged).index_fill(0, best, True), "done"
        elif number < self.least * len(visual):
            phase = "prune"
        return fused(tokens, order, merged[order]), phase


def pruned(tokens: Tokens, visual: Tensor, count: int, seen: Seen) -> Tokens:
    """All text, and of the tokens at visual [n] the `count` that the last rows attend to most."""
    rows = torch.arange(max(0, len(tokens) - ROWS), len(tokens), device=visual.device)
    score = seen.attention(rows).mean((0, 1))[visual]
    return tokens.keep_visual(visual[top(score, count)])


def rounded(affordable: float, most: int) -> int:
    return min(most, int(affordable + 0.5))


def timelines(tokens: Tokens, visual: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens at visual [n] ordered by place, then time, and how alike each token [N] is to the one before it.

    -inf where there is none, and for the last row of the prompt, which stays whatever it is.
    """
    cell = tokens.cell[visual]
    place = cell[:, 1] * (cell[:, 2].max() + 1) + cell[:, 2]
    by_place = (place * (cell[:, 0].max() + 1) + cell[:, 0]).argsort(stable=True)
    order, place = visual[by_place], place[by_place]
    hidden = tokens.hidden[order].float()
    cosine = cosine_similarity(hidden[:-1], hidden[1:], dim=-1)
    alike = torch.full((len(tokens),), float("-inf"), device=visual.device)
    alike[order[1:]] = cosine.masked_fill(place[1:] != place[:-1], float("-inf"))
    alike[-1] = float("-inf")
    return order, alike


def fused(tokens: Tokens, order: Tensor, merged: Tensor) -> Tokens:
    """Every run of tokens that are `merged`, bool [n] along `order` [n], averaged with the token before it."""
    if not merged.any():
        return tokens
    group = (~merged).cumsum(0) - 1
    owner = torch.arange(len(tokens), device=order.device)
    owner[order] = order[~merged][group]
    weight = torch.ones_like(tokens.mass)
    weight[order] = 1 / torch.bincount(group)[group].to(weight.dtype)
    return tokens.fold(owner, weight)
