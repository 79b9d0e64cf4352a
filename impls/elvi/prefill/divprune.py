"""DivPrune: diversity-based visual token pruning.

Alvar et al., CVPR 2025, arXiv:2503.02175. Of all subsets of a given size, look for the one whose two closest members
are as far apart as possible (max-min diversity) under cosine distance, and find it greedily: start with the token
whose nearest neighbour is farthest, then always add the token that is farthest from everything chosen so far. Neither
attention nor the question is looked at.

Where we differ:
- The distance to the chosen set is kept in a running vector, O(mN) for m of N tokens; the released loop gathers all
  chosen rows again at every step, O(m^2 N). A compiled kernel does it on the CPU; elsewhere `spread_reference` does.
- A token is never chosen twice; the released code repeats indices among exact duplicates. Ties go to the lowest index.
- Similarities are computed in float32 whatever the model's type, and a token of norm zero is at distance 1 from all.
- Kept tokens keep their positions; the released code lets LLaVA number them anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.core.tokens import budget
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen


@dataclass(frozen=True)
class DivPrune:
    """Keep visual tokens that are far from one another, before the language model.

    keep_ratio: share of the visual tokens that stays (paper: 0.098, 56 of the 576 of LLaVA-1.5).
    Raises BudgetError outside 0 to 1.
    """

    keep_ratio: float = 0.098

    at: ClassVar[Layer] = Layer(0)
    needs: ClassVar[frozenset[Fact]] = frozenset()
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.098, 0.25, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0)

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        visual = tokens.visual.nonzero()[:, 0]
        stays = ~tokens.visual
        stays[visual[choose(tokens.hidden[visual], budget(self.keep_ratio, len(visual)))]] = True
        return tokens.keep(stays)


def choose(hidden: Tensor, count: int) -> Tensor:
    """Index [count] of mutually distant rows of hidden [N, D], in the order in which they were chosen."""
    if count in (0, len(hidden)):
        return torch.arange(count, device=hidden.device)
    cosine = similarity(hidden)
    if cosine.device.type == "cpu":
        return torch.from_numpy(spread(cosine.numpy(), count))
    return spread_reference(cosine, count)


def similarity(hidden: Tensor) -> Tensor:
    """Cosine similarity float32 [N, N] of the rows of hidden [N, D]."""
    unit = normalize(hidden.float(), dim=-1)
    if unit.device.type == "cpu":
        return torch.from_numpy(unit.numpy() @ unit.numpy().T)  # NumPy sees the symmetry and computes one half
    return unit @ unit.mT


@numba.njit(cache=True)
def spread(cosine: np.ndarray, count: int) -> np.ndarray:
    """Greedy max-min choice from similarities float32 [N, N]: int64 [count], in order of choice; ties to the lowest."""
    total = cosine.shape[0]
    chosen = np.empty(count, np.int64)
    nearest = np.full(total, -np.inf, np.float32)  # first: highest similarity to any other token
    for i in range(total):
        raise_to(nearest[:i], cosine[i, :i])
        raise_to(nearest[i + 1 :], cosine[i, i + 1 :])
    chosen[0] = np.argmin(nearest)
    nearest[:] = -np.inf  # from here on: highest similarity to the tokens chosen so far
    for step in range(1, count):
        raise_to(nearest, cosine[chosen[step - 1]])
        nearest[chosen[:step]] = np.inf
        chosen[step] = np.argmin(nearest)
    return chosen


@numba.njit(cache=True)
def raise_to(floor: np.ndarray, values: np.ndarray) -> None:
    """floor = max(floor, values), element by element and in place."""
    for i in range(len(floor)):
        floor[i] = max(floor[i], values[i])


def spread_reference(cosine: Tensor, count: int) -> Tensor:
    """The same choice as `spread`, in torch: cosine [N, N] -> int64 [count]."""
    nearest = cosine.clone().fill_diagonal_(float("-inf")).amax(0)
    chosen = torch.empty(count, dtype=torch.long, device=cosine.device)
    chosen[0] = nearest.argmin()
    nearest = torch.full_like(nearest, float("-inf"))
    for step in range(1, count):
        nearest = torch.maximum(nearest, cosine[chosen[step - 1]])
        nearest[chosen[:step]] = float("inf")
        chosen[step] = nearest.argmin()
    return chosen
